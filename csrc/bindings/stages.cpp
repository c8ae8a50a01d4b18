// Stages are built once a plan, checked there, and run many times.  specxai/native/stages.py, the only caller, keeps
// the arrays behind the pointers alive and unchanged.
#include "bindings/stages.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>

#include "common/checks.h"
#include "cpu/gather_gemm.h"
#include "cpu/row_sum.h"

namespace py = pybind11;

namespace specxai {
namespace {

using std::int64_t;
using std::uintptr_t;

// An index array as (address, length).
using Array = std::pair<uintptr_t, int64_t>;

const std::int32_t* indices(const Array& array, int64_t length, const char* name) {
  require(array.second == length, std::string(name) + " has " + std::to_string(array.second) + " entries, not " +
                                      std::to_string(length));
  require_pointer(array.first, length, name);
  return reinterpret_cast<const std::int32_t*>(array.first);
}

template <class T>
const T* numbers(const Array& array, int64_t length, const char* name) {
  if (array.first == 0) return nullptr;
  require(array.second == length, std::string(name) + " has " + std::to_string(array.second) + " entries, not " +
                                      std::to_string(length));
  return reinterpret_cast<const T*>(array.first);
}

int64_t groups(const Array& offsets, const char* name) {
  require(offsets.second >= 1, std::string(name) + " needs one entry more than there are groups");
  return offsets.second - 1;
}

template <class T>
std::unique_ptr<GatherGemmStage<T>> gather_gemm(const Array& run_begin, const Array& run_entry, const Array& run_count,
                               const Array& run_tap, const Array& in_row, const Array& in_column,
                               const Array& out_begin, const Array& out_row, const Array& out_column,
                               const Array& weight, int64_t taps, int64_t depth, int64_t width) {
  GatherGemm<T> s{};
  s.n_sites = groups(run_begin, "run_begin");
  s.n_runs = run_entry.second;
  s.n_entries = in_row.second;
  s.n_outputs = out_row.second;
  s.run_begin = indices(run_begin, s.n_sites + 1, "run_begin");
  s.run_entry = indices(run_entry, s.n_runs, "run_entry");
  s.run_count = indices(run_count, s.n_runs, "run_count");
  s.run_tap = indices(run_tap, s.n_runs, "run_tap");
  s.in_row = indices(in_row, s.n_entries, "in_row");
  s.in_column = indices(in_column, s.n_entries, "in_column");
  s.out_begin = indices(out_begin, s.n_sites + 1, "out_begin");
  s.out_row = indices(out_row, s.n_outputs, "out_row");
  s.out_column = indices(out_column, s.n_outputs, "out_column");
  require_count(taps, "taps");
  require_count(depth, "depth");
  require_count(width, "width");
  const int64_t panels = (width + weight_panel - 1) / weight_panel;
  const int64_t n_weights = checked_area(checked_area(taps, depth, "the weights"), panels * weight_panel, "the weights");
  s.weight = numbers<T>(weight, n_weights, "weight");
  require(s.weight != nullptr || n_weights == 0, "weight is a null pointer");
  s.taps = taps;
  s.depth = depth;
  s.width = width;
  return std::make_unique<GatherGemmStage<T>>(s);
}

template <class T>
void bind_gather_gemm(py::module_& m, const char* name) {
  using Stage = GatherGemmStage<T>;
  py::class_<Stage>(m, name)
      .def(py::init(&gather_gemm<T>), py::kw_only(), py::arg("run_begin"), py::arg("run_entry"), py::arg("run_count"),
           py::arg("run_tap"), py::arg("in_row"), py::arg("in_column"), py::arg("out_begin"), py::arg("out_row"),
           py::arg("out_column"), py::arg("weight"), py::arg("taps"), py::arg("depth"),
           py::arg("width"))
      .def_property_readonly("multiply_adds", &Stage::multiply_adds)
      .def(
          "run",
          [](const Stage& stage, uintptr_t input, int64_t input_rows, uintptr_t output, int64_t output_rows,
             int64_t stride, bool accumulate, const std::optional<std::string>& level) {
            require_count(input_rows, "input_rows");
            require_count(output_rows, "output_rows");
            require_pointer(input, input_rows * stride, "input");
            require_pointer(output, output_rows * stride, "output");
            const SimdLevel simd = level ? parse_level(*level, "level") : active_level();
            const py::gil_scoped_release release;
            stage.run(reinterpret_cast<const T*>(input), input_rows, reinterpret_cast<T*>(output), output_rows, stride,
                      accumulate, simd);
          },
          py::arg("input"), py::arg("input_rows"), py::arg("output"), py::arg("output_rows"), py::arg("stride"),
          py::arg("accumulate"), py::arg("level"))
      .def(
          "run_bf16",
          [](const Stage& stage, uintptr_t input, int64_t input_rows, uintptr_t output, int64_t output_rows,
             int64_t stride, bool accumulate) {
            require_count(input_rows, "input_rows");
            require_count(output_rows, "output_rows");
            require_pointer(input, input_rows * stride, "input");
            require_pointer(output, output_rows * stride, "output");
            const py::gil_scoped_release release;
            stage.run_bf16(reinterpret_cast<const T*>(input), input_rows, reinterpret_cast<T*>(output), output_rows,
                           stride, accumulate);
          },
          py::arg("input"), py::arg("input_rows"), py::arg("output"), py::arg("output_rows"), py::arg("stride"),
          py::arg("accumulate"));
}

template <class T>
void bind_row_sum(py::module_& m, const char* name) {
  using Stage = RowSumStage<T>;
  py::class_<Stage>(m, name)
      .def(py::init([](const Array& begin, const Array& in_row, const Array& scale, const Array& out_row) {
             RowSum<T> s{};
             s.n_outputs = groups(begin, "begin");
             s.n_entries = in_row.second;
             s.begin = indices(begin, s.n_outputs + 1, "begin");
             s.in_row = indices(in_row, s.n_entries, "in_row");
             s.scale = numbers<T>(scale, s.n_entries, "scale");
             s.out_row = indices(out_row, s.n_outputs, "out_row");
             return RowSumStage<T>(s);
           }),
           py::kw_only(), py::arg("begin"), py::arg("in_row"), py::arg("scale"), py::arg("out_row"))
      .def(
          "run",
          [](const Stage& stage, uintptr_t input, int64_t input_rows, int64_t input_stride, uintptr_t output,
             int64_t output_rows, int64_t output_stride, int64_t n_probes, bool accumulate) {
            require_count(input_rows, "input_rows");
            require_count(output_rows, "output_rows");
            require_count(n_probes, "n_probes");
            require_pointer(input, input_rows * input_stride, "input");
            require_pointer(output, output_rows * output_stride, "output");
            const py::gil_scoped_release release;
            stage.run(reinterpret_cast<const T*>(input), input_rows, input_stride, reinterpret_cast<T*>(output),
                      output_rows, output_stride, n_probes, accumulate);
          },
          py::arg("input"), py::arg("input_rows"), py::arg("input_stride"), py::arg("output"),
          py::arg("output_rows"), py::arg("output_stride"), py::arg("n_probes"), py::arg("accumulate"));
}

}  // namespace

void bind_stages(py::module_& m) {
  bind_gather_gemm<float>(m, "GatherGemm_f32");
  bind_gather_gemm<double>(m, "GatherGemm_f64");
  m.def("has_bf16", has_bf16);
  bind_row_sum<float>(m, "RowSum_f32");
  bind_row_sum<double>(m, "RowSum_f64");
}

}  // namespace specxai
