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
#include "cpu/peak.h"

namespace py = pybind11;
using specxai::SimdLevel;
using std::int64_t;

namespace {

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

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.doc() = "Compiled kernels of SpecXAI; call them through specxai.native.";
  m.def("simd_level", [] { return specxai::name_of(specxai::active_level()); });
  m.def("supported_levels", supported_levels);
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
