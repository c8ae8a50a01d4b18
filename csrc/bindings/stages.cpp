// Stages are built once a plan, checked there, and run many times.  specxai/native/stages.py, the only caller, keeps
// the arrays behind the pointers alive and unchanged.
#include "bindings/bind.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "common/checks.h"
#include "cpu/gather_gemm.h"
#include "cpu/low_rank.h"
#include "cpu/rough_gemm.h"
#include "cpu/row_sum.h"

namespace py = pybind11;

namespace specxai {
namespace {

using std::int64_t;
using std::uintptr_t;

// An array as (address, length).
using Array = std::pair<uintptr_t, int64_t>;

template <class T>
const T* elements(const Array& array, int64_t length, const char* name) {
  require(array.second == length, std::string(name) + " has " + std::to_string(array.second) + " elements, not " +
                                      std::to_string(length));
  require_pointer(array.first, length, name);
  return reinterpret_cast<const T*>(array.first);
}

template <class T>
std::unique_ptr<GatherGemmStage<T>> gather_gemm(const Array& inside, const Array& outside, const Array& neighbours,
                                                const Array& weight, int64_t n_inside, int64_t n_outside, int64_t taps,
                                                int64_t across, int64_t groups, int64_t depth, int64_t width,
                                                int64_t pitch) {
  require_count(n_inside, "n_inside");
  require_count(n_outside, "n_outside");
  require_count(taps, "taps");
  require_count(across, "across");
  require_count(groups, "groups");
  require_count(depth, "depth");
  require_count(width, "width");
  require_count(pitch, "pitch");
  const int64_t inputs = checked_area(groups, depth, "the inputs");
  const int64_t n_weights = checked_area(checked_area(taps, pitch, "the weights"), width, "the weights");
  return std::make_unique<GatherGemmStage<T>>(GatherGemmTables<T>{
      n_inside, n_outside, taps, groups, across, depth, width, pitch,
      elements<std::int32_t>(inside, checked_area(n_inside, inputs, "inside"), "inside"),
      elements<std::int32_t>(outside, checked_area(n_outside, width, "outside"), "outside"),
      elements<std::int32_t>(neighbours, checked_area(n_outside, taps, "neighbours"), "neighbours"),
      elements<T>(weight, n_weights, "weight")});
}

template <class T>
void bind_gather_gemm(py::module_& m, const char* name) {
  using Stage = GatherGemmStage<T>;
  py::class_<Stage>(m, name)
      .def(py::init(&gather_gemm<T>), py::kw_only(), py::arg("inside"), py::arg("outside"), py::arg("neighbours"),
           py::arg("weight"), py::arg("n_inside"), py::arg("n_outside"), py::arg("taps"), py::arg("across"),
           py::arg("groups"), py::arg("depth"), py::arg("width"), py::arg("pitch"))
      .def_property_readonly("multiply_adds", &Stage::multiply_adds)
      .def(
          "run",
          [](const Stage& stage, uintptr_t input, int64_t input_rows, uintptr_t output, int64_t output_rows,
             int64_t stride, bool accumulate, bool may_spread, const std::optional<std::string>& level) {
            require_count(input_rows, "input_rows");
            require_count(output_rows, "output_rows");
            require_pointer(input, input_rows * stride, "input");
            require_pointer(output, output_rows * stride, "output");
            const SimdLevel simd = level ? parse_level(*level, "level") : active_level();
            const py::gil_scoped_release release;
            stage.run(reinterpret_cast<const T*>(input), input_rows, reinterpret_cast<T*>(output), output_rows, stride,
                      accumulate, may_spread, simd);
          },
          py::arg("input"), py::arg("input_rows"), py::arg("output"), py::arg("output_rows"), py::arg("stride"),
          py::arg("accumulate"), py::arg("may_spread"), py::arg("level"))
      .def(
          "run_rough",
          [](const Stage& stage, uintptr_t input, int64_t input_rows, uintptr_t output, int64_t output_rows,
             int64_t stride, bool accumulate) {
            require_count(input_rows, "input_rows");
            require_count(output_rows, "output_rows");
            require_pointer(input, input_rows * stride, "input");
            require_pointer(output, output_rows * stride, "output");
            const py::gil_scoped_release release;
            stage.run_rough(reinterpret_cast<const T*>(input), input_rows, reinterpret_cast<T*>(output), output_rows,
                           stride, accumulate);
          },
          py::arg("input"), py::arg("input_rows"), py::arg("output"), py::arg("output_rows"), py::arg("stride"),
          py::arg("accumulate"));
}

// A stage on rows of a block whose first n_probes numbers count.
template <class T, class Stage>
void run_rows(const Stage& stage, uintptr_t input, int64_t input_rows, int64_t input_stride, uintptr_t output,
              int64_t output_rows, int64_t output_stride, int64_t output_width, int64_t n_probes, bool accumulate,
              const std::optional<std::string>& level) {
  require_count(input_rows, "input_rows");
  require_count(output_rows, "output_rows");
  require_count(n_probes, "n_probes");
  require_pointer(input, n_probes ? input_rows * input_stride : 0, "input");
  require_pointer(output, output_rows * output_stride, "output");
  const SimdLevel simd = level ? parse_level(*level, "level") : active_level();
  const Rows<T> rows{reinterpret_cast<const T*>(input), input_stride, reinterpret_cast<T*>(output),
                     output_stride, output_width, n_probes, accumulate};
  const py::gil_scoped_release release;
  stage.run(rows, input_rows, output_rows, simd);
}

template <class T>
void bind_row_sum(py::module_& m, const char* name) {
  using Stage = RowSumStage<T>;
  py::class_<Stage>(m, name)
      .def(py::init([](const Array& to, const Array& from, const Array& scale, const Array& empty) {
             const int64_t n = to.second;
             return std::make_unique<Stage>(RowSum<T>{n, elements<std::int32_t>(to, n, "to"),
                                                      elements<std::int32_t>(from, n, "from_"),
                                                      scale.first ? elements<T>(scale, n, "scale") : nullptr,
                                                      empty.second,
                                                      elements<std::int32_t>(empty, empty.second, "empty")});
           }),
           py::kw_only(), py::arg("to"), py::arg("from_"), py::arg("scale"), py::arg("empty"))
      .def(py::init([](const Array& inside, const Array& outside, const Array& neighbours, const Array& weight,
                       int64_t n_inside, int64_t n_outside, int64_t taps, int64_t channels) {
             require_count(n_inside, "n_inside");
             require_count(n_outside, "n_outside");
             require_count(taps, "taps");
             require_count(channels, "channels");
             return std::make_unique<Stage>(Depthwise<T>{
                 n_inside, n_outside, taps, channels,
                 elements<std::int32_t>(inside, checked_area(n_inside, channels, "inside"), "inside"),
                 elements<std::int32_t>(outside, checked_area(n_outside, channels, "outside"), "outside"),
                 elements<std::int32_t>(neighbours, checked_area(n_outside, taps, "neighbours"), "neighbours"),
                 elements<T>(weight, checked_area(channels, taps, "weight"), "weight")});
           }),
           py::kw_only(), py::arg("inside"), py::arg("outside"), py::arg("neighbours"), py::arg("weight"),
           py::arg("n_inside"), py::arg("n_outside"), py::arg("taps"), py::arg("channels"))
      .def_property_readonly("entries", &Stage::entries)
      .def("run", &run_rows<T, Stage>, py::arg("input"), py::arg("input_rows"), py::arg("input_stride"),
           py::arg("output"), py::arg("output_rows"), py::arg("output_stride"), py::arg("output_width"),
           py::arg("n_probes"), py::arg("accumulate"), py::arg("level"));
}

template <class T>
void bind_low_rank(py::module_& m, const char* name) {
  using Stage = LowRankStage<T>;
  py::class_<Stage>(m, name)
      .def(py::init([](const Array& inside, const Array& outside, const Array& diagonal, const Array& left,
                       const Array& right, int64_t n_groups, int64_t size, int64_t rank) {
             require_count(n_groups, "n_groups");
             require_count(size, "size");
             require_count(rank, "rank");
             const int64_t units = checked_area(n_groups, size, "the units");
             const int64_t factors = checked_area(units, rank, "the factors");
             return std::make_unique<Stage>(LowRankTables<T>{
                 n_groups, size, rank, elements<std::int32_t>(inside, units, "inside"),
                 elements<std::int32_t>(outside, units, "outside"), elements<T>(diagonal, units, "diagonal"),
                 elements<T>(left, factors, "left"), elements<T>(right, factors, "right")});
           }),
           py::kw_only(), py::arg("inside"), py::arg("outside"), py::arg("diagonal"), py::arg("left"),
           py::arg("right"), py::arg("n_groups"), py::arg("size"), py::arg("rank"))
      .def_property_readonly("multiply_adds", &Stage::multiply_adds)
      .def("run", &run_rows<T, Stage>, py::arg("input"), py::arg("input_rows"), py::arg("input_stride"),
           py::arg("output"), py::arg("output_rows"), py::arg("output_stride"), py::arg("output_width"),
           py::arg("n_probes"), py::arg("accumulate"), py::arg("level"));
}

}  // namespace

void bind_stages(py::module_& m) {
  bind_gather_gemm<float>(m, "GatherGemm_f32");
  bind_gather_gemm<double>(m, "GatherGemm_f64");
  m.def("has_rough", has_rough);
  bind_row_sum<float>(m, "RowSum_f32");
  bind_row_sum<double>(m, "RowSum_f64");
  bind_low_rank<float>(m, "LowRank_f32");
  bind_low_rank<double>(m, "LowRank_f64");
}

}  // namespace specxai
