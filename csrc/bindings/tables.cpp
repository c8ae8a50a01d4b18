// Index tables of a plan; specxai/native/tables.py, the only caller, has checked what is behind the pointers.
#include "bindings/bind.h"

#include "common/checks.h"
#include "cpu/tables.h"

namespace py = pybind11;

namespace specxai {
namespace {

using std::int64_t;
using std::uintptr_t;

const std::int32_t* indices(uintptr_t address, int64_t count, const char* name) {
  require_count(count, name);
  require_pointer(address, count, name);
  return reinterpret_cast<const std::int32_t*>(address);
}

}  // namespace

void bind_tables(py::module_& m) {
  m.def("map_rows", [](uintptr_t rows, int64_t n_rows, uintptr_t map, int64_t n_map, uintptr_t mapped) {
    const std::int32_t* from = indices(rows, n_rows, "rows");
    const std::int32_t* table = indices(map, n_map, "map");
    require_pointer(mapped, n_rows, "mapped");
    const py::gil_scoped_release release;
    map_rows(from, n_rows, table, n_map, reinterpret_cast<std::int32_t*>(mapped));
  });
  m.def("count_distinct", [](uintptr_t rows, int64_t n_rows, uintptr_t begin, int64_t n_groups, uintptr_t counts) {
    const std::int32_t* of = indices(rows, n_rows, "rows");
    const std::int32_t* starts = indices(begin, n_groups + 1, "begin");
    require_pointer(counts, n_groups, "counts");
    const py::gil_scoped_release release;
    count_distinct(of, n_rows, starts, n_groups, reinterpret_cast<int64_t*>(counts));
  });
  m.def("any_neighbour", [](uintptr_t cells, int64_t n_inside, int64_t groups, uintptr_t neighbours, int64_t n_outside,
                            int64_t taps, uintptr_t seen) {
    require_count(n_inside, "n_inside");
    require_count(groups, "groups");
    require_count(n_outside, "n_outside");
    require_count(taps, "taps");
    require_pointer(cells, checked_area(n_inside, groups, "cells"), "cells");
    require_pointer(seen, checked_area(n_outside, groups, "seen"), "seen");
    const std::int32_t* near = indices(neighbours, checked_area(n_outside, taps, "neighbours"), "neighbours");
    const py::gil_scoped_release release;
    any_neighbour(reinterpret_cast<const std::uint8_t*>(cells), n_inside, groups, near, n_outside, taps,
                  reinterpret_cast<std::uint8_t*>(seen));
  });
}

}  // namespace specxai
