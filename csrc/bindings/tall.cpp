// Tall blocks: Gram matrices, coefficients in a basis, and what is left without it.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/bind.h"
#include "common/checks.h"
#include "cpu/gram.h"
#include "cpu/span.h"

namespace py = pybind11;

namespace specxai {
namespace {

using std::int64_t;
using std::uintptr_t;
using Level = std::optional<std::string>;

SimdLevel simd(const Level& level) { return level ? parse_level(*level, "level") : active_level(); }

void require_matrix(uintptr_t pointer, int64_t rows, int64_t columns, const char* name) {
  require_count(rows, name);
  require_count(columns, name);
  require_pointer(pointer, checked_area(rows, columns, name), name);
}

template <class T>
void bind(py::module_& m, const std::string& dtype) {
  m.def(("gram_" + dtype).c_str(),
        [](uintptr_t left, int64_t n_left, uintptr_t right, int64_t n_right, int64_t n_rows, uintptr_t output,
           const Level& level) {
          require_matrix(left, n_rows, n_left, "left");
          require_matrix(right, n_rows, n_right, "right");
          require_matrix(output, n_left, n_right, "output");
          const SimdLevel at = simd(level);
          const py::gil_scoped_release release;
          gram(reinterpret_cast<const T*>(left), n_left, reinterpret_cast<const T*>(right), n_right, n_rows,
               reinterpret_cast<double*>(output), at);
        },
        py::kw_only(), py::arg("left"), py::arg("n_left"), py::arg("right"), py::arg("n_right"), py::arg("n_rows"),
        py::arg("output"), py::arg("level"));
  m.def(("coefficients_" + dtype).c_str(),
        [](uintptr_t basis, int64_t n_basis, uintptr_t block, int64_t width, int64_t n, uintptr_t output,
           const Level& level) {
          require_matrix(basis, n_basis, n, "basis");
          require_matrix(block, n, width, "block");
          require_matrix(output, n_basis, width, "output");
          const SimdLevel at = simd(level);
          const py::gil_scoped_release release;
          coefficients(reinterpret_cast<const T*>(basis), n_basis, reinterpret_cast<const T*>(block), width, n,
                       reinterpret_cast<double*>(output), at);
        },
        py::kw_only(), py::arg("basis"), py::arg("n_basis"), py::arg("block"), py::arg("width"), py::arg("n"),
        py::arg("output"), py::arg("level"));
  m.def(("subtract_" + dtype).c_str(),
        [](uintptr_t basis, int64_t n_basis, uintptr_t factors, uintptr_t block, int64_t width, int64_t n,
           uintptr_t output, const Level& level) {
          require_matrix(basis, n_basis, n, "basis");
          require_matrix(factors, n_basis, width, "factors");
          require_matrix(block, n, width, "block");
          require_matrix(output, n, width, "output");
          const SimdLevel at = simd(level);
          const py::gil_scoped_release release;
          subtract(reinterpret_cast<const T*>(basis), n_basis, reinterpret_cast<const double*>(factors),
                   reinterpret_cast<const T*>(block), width, n, reinterpret_cast<T*>(output), at);
        },
        py::kw_only(), py::arg("basis"), py::arg("n_basis"), py::arg("factors"), py::arg("block"), py::arg("width"),
        py::arg("n"), py::arg("output"), py::arg("level"));
}

}  // namespace

void bind_tall(py::module_& m) {
  bind<float>(m, "f32");
  bind<double>(m, "f64");
}

}  // namespace specxai
