#include "cuda/tables.h"

#include "cuda/launch.cuh"

namespace specxai::cuda {
namespace {

constexpr int n_threads = 256;

// One thread an element.
template <class Element>
struct Map {
  static constexpr int threads = n_threads, blocks = 4;
  static constexpr const char* name = Element::name;
  using Shared = Nothing;
  Element element;
  Index n;

  template <class B>
  SPECXAI_BODY void operator()(B& block, Shared&) const {
    block.phase([&](int thread) {
      const Index i = block.x * n_threads + thread;
      if (i < n) element(i);
    });
  }
};

template <class Element>
void over(Index n, const Element& element, Place place) {
  launch(place, ceil_div(n, n_threads), 1, 1, Map<Element>{element, n});
}

// A place below 0 is none, and so is one beyond n: what a table holds is known to the device alone.
SPECXAI_BODY bool exists(Index place, Index n) { return place >= 0 && place < n; }

struct MapRow {
  static constexpr const char* name = "map_rows";
  const std::int32_t* rows;
  const std::int32_t* map;
  Index n_map;
  std::int32_t* mapped;

  SPECXAI_BODY void operator()(Index i) const { mapped[i] = exists(rows[i], n_map) ? map[rows[i]] : -1; }
};

struct AnyNeighbour {
  static constexpr const char* name = "any_neighbour";
  const std::uint8_t* cells;
  Index n_inside, groups;
  const std::int32_t* neighbours;
  Index taps;
  std::uint8_t* seen;

  SPECXAI_BODY void operator()(Index i) const {
    const Index site = i / groups, group = i % groups;
    bool any = false;
    for (Index t = 0; t < taps && !any; ++t) {
      const Index near = neighbours[site * taps + t];
      any = exists(near, n_inside) && cells[near * groups + group] != 0;
    }
    seen[i] = any;
  }
};

struct TapRow {
  static constexpr const char* name = "tap_rows";
  const std::int32_t* inside;
  Index n_inside, groups, depth;
  const std::int32_t* neighbours;
  Index taps;
  std::int32_t* rows;

  SPECXAI_BODY void operator()(Index i) const {
    const Index c = i % depth, t = i / depth % taps, g = i / depth / taps % groups, site = i / depth / taps / groups;
    const Index near = neighbours[site * taps + t];
    rows[i] = exists(near, n_inside) ? inside[(near * groups + g) * depth + c] : -1;
  }
};

}  // namespace

void map_rows(const std::int32_t* rows, std::int64_t n_rows, const std::int32_t* map, std::int64_t n_map,
              std::int32_t* mapped, Place place) {
  over(n_rows, MapRow{rows, map, n_map, mapped}, place);
}

void any_neighbour(const std::uint8_t* cells, std::int64_t n_inside, std::int64_t groups,
                   const std::int32_t* neighbours, std::int64_t n_outside, std::int64_t taps, std::uint8_t* seen,
                   Place place) {
  over(n_outside * groups, AnyNeighbour{cells, n_inside, groups, neighbours, taps, seen}, place);
}

void tap_rows(const std::int32_t* inside, std::int64_t n_inside, std::int64_t groups, std::int64_t depth,
              const std::int32_t* neighbours, std::int64_t n_outside, std::int64_t taps, std::int32_t* rows,
              Place place) {
  over(n_outside * groups * taps * depth, TapRow{inside, n_inside, groups, depth, neighbours, taps, rows}, place);
}

}  // namespace specxai::cuda
