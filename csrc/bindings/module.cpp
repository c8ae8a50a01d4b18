// specxai._native: pointers and sizes as integers, so that one build serves every torch.  specxai/native/, the only
// caller, has checked what is behind the pointers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/checks.h"
#include "common/memory.h"
#include "common/simd_level.h"
#include "bindings/bind.h"
#include "cpu/gated_linear.h"
#include "cpu/peak.h"

namespace py = pybind11;
using specxai::SimdLevel;
using std::int64_t;
using std::uintptr_t;

namespace {

template <class T>
void gated_linear(uintptr_t weight, int64_t weight_rows, int64_t weight_cols, uintptr_t rows, int64_t n_rows,
                  uintptr_t cols, int64_t n_cols, uintptr_t scale, uintptr_t input, uintptr_t output,
                  int64_t n_probes, bool transpose, const std::optional<std::string>& level) {
  using specxai::checked_area;
  using specxai::require;
  specxai::require_count(weight_rows, "weight_rows");
  specxai::require_count(weight_cols, "weight_cols");
  specxai::require_count(n_rows, "n_rows");
  specxai::require_count(n_cols, "n_cols");
  specxai::require_count(n_probes, "n_probes");
  require(rows != 0 || n_rows == weight_rows, "without rows, n_rows must be weight_rows");
  require(cols != 0 || n_cols == weight_cols, "without cols, n_cols must be weight_cols");
  const int64_t row_block = checked_area(n_rows, n_probes, "the block of row units");
  const int64_t col_block = checked_area(n_cols, n_probes, "the block of column units");
  const int64_t n_weights = checked_area(weight_rows, weight_cols, "the weight matrix");
  specxai::require_pointer(weight, n_weights, "weight");
  specxai::require_pointer(input, transpose ? row_block : col_block, "input");
  specxai::require_pointer(output, transpose ? col_block : row_block, "output");

  const SimdLevel simd = level ? specxai::parse_level(*level, "level") : specxai::active_level();
  const specxai::GatedLinear<T> stage{reinterpret_cast<const T*>(weight),
                                      weight_cols,
                                      reinterpret_cast<const int64_t*>(rows),
                                      n_rows,
                                      reinterpret_cast<const int64_t*>(cols),
                                      n_cols,
                                      reinterpret_cast<const T*>(scale),
                                      reinterpret_cast<const T*>(input),
                                      reinterpret_cast<T*>(output),
                                      n_probes,
                                      transpose};
  const py::gil_scoped_release release;
  specxai::gated_linear(stage, simd);
}

template <class T>
void bind_multiply_add(py::module_& m, const char* name) {
  m.def(name, [](int64_t rounds, const std::optional<std::string>& level) {
    const SimdLevel simd = level ? specxai::parse_level(*level, "level") : specxai::active_level();
    const py::gil_scoped_release release;
    return specxai::multiply_add<T>(rounds, simd);
  });
}

std::vector<std::string> supported_levels() {
  std::vector<std::string> names;
  for (SimdLevel level : specxai::supported_levels()) names.emplace_back(specxai::name_of(level));
  return names;
}

template <class T>
void bind(py::module_& m, const char* name) {
  m.def(name, gated_linear<T>, py::kw_only(), py::arg("weight"), py::arg("weight_rows"), py::arg("weight_cols"),
        py::arg("rows"), py::arg("n_rows"), py::arg("cols"), py::arg("n_cols"), py::arg("scale"), py::arg("input"),
        py::arg("output"), py::arg("n_probes"), py::arg("transpose"), py::arg("level"));
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels of SpecXAI; call them through specxai.native.";
  m.def("simd_level", [] { return specxai::name_of(specxai::active_level()); });
  m.def("supported_levels", supported_levels);
  bind<float>(m, "gated_linear_f32");
  bind<double>(m, "gated_linear_f64");
  py::class_<specxai::Block>(m, "Block", py::buffer_protocol())
      .def(py::init([](int64_t size) {
        specxai::require_count(size, "size");
        return std::make_unique<specxai::Block>(static_cast<std::size_t>(size));
      }))
      .def_buffer([](specxai::Block& block) {
        return py::buffer_info(static_cast<unsigned char*>(block.data()), static_cast<py::ssize_t>(block.size()));
      });
  m.def("release_idle", specxai::release_idle);
  bind_multiply_add<float>(m, "multiply_add_f32");
  bind_multiply_add<double>(m, "multiply_add_f64");
  specxai::bind_stages(m);
  specxai::bind_tables(m);
  specxai::bind_tall(m);
}
