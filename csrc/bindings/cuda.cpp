// specxai._cuda: device pointers, sizes, device and stream as integers, so that one build serves every torch.
// specxai/native/cuda.py, the only caller, has checked what is behind the pointers.  Built with SPECXAI_CUDA_EMULATED
// it is the same module on the CPU's memory, for tests (cuda/block.cuh).
#include <pybind11/pybind11.h>

#include <string>

#include "common/checks.h"
#include "cuda/compact.h"
#include "cuda/gather_gemm.h"
#include "cuda/gram.h"
#include "cuda/span.h"
#include "cuda/tables.h"
#ifdef SPECXAI_CUDA_EMULATED
#include "cuda/block.cuh"
#endif

namespace py = pybind11;

namespace specxai::cuda {
namespace {

using std::int32_t;
using std::int64_t;
using std::uintptr_t;

template <class T>
T* required(const py::tuple& array, int64_t count, const char* name) {
  require(array.size() == 2, std::string(name) + " must be (address, length)");
  const auto address = array[0].cast<uintptr_t>();
  const auto length = array[1].cast<int64_t>();
  require_count(count, name);
  require(length >= count, std::string(name) + " holds " + std::to_string(length) + " elements, " +
                               std::to_string(count) + " are to be read or written");
  require_pointer(address, count, name);
  return reinterpret_cast<T*>(address);
}

// Null for none.
template <class T>
T* optional(const py::object& array, int64_t count, const char* name) {
  return array.is_none() ? nullptr : required<T>(array.cast<py::tuple>(), count, name);
}

void bind_compact(py::module_& m) {
  m.def("compact_workspace", compact_workspace);
  m.def(
      "compact",
      [](const py::tuple& from, bool table, int64_t n, int64_t width, const py::dict& wanted,
         const py::tuple& workspace, int device, uintptr_t stream) {
        require(n >= 0 && n < int64_t{1} << 31, "n = " + std::to_string(n) + " must lie in 0 to 2^31 - 1");
        require(width > 0 && n % width == 0, "lines of " + std::to_string(width) + " do not divide " +
                                                 std::to_string(n) + " numbers");
        const auto out = [&](const char* name, int64_t count) {
          return wanted.contains(name) ? required<int32_t>(wanted[name].cast<py::tuple>(), count, name) : nullptr;
        };
        const Found found{out("at", n), out("rank", n), table ? out("row", n) : nullptr, out("column", n),
                          out("begin", n / width + 1), out("count", 1)};
        int32_t* const room = required<int32_t>(workspace, compact_workspace(n), "workspace");
        if (table) {
          compact(required<const int32_t>(from, n, "table"), n, width, found, room, {device, stream});
        } else {
          compact(required<const std::uint8_t>(from, n, "mask"), n, found, room, {device, stream});
        }
      },
      py::kw_only(), py::arg("source"), py::arg("table"), py::arg("n"), py::arg("width"), py::arg("wanted"),
      py::arg("workspace"), py::arg("device"), py::arg("stream"));
}

void bind_tables(py::module_& m) {
  m.def(
      "map_rows",
      [](const py::tuple& rows, int64_t n_rows, const py::tuple& map, int64_t n_map, const py::tuple& mapped,
         int device, uintptr_t stream) {
        map_rows(required<const int32_t>(rows, n_rows, "rows"), n_rows, required<const int32_t>(map, n_map, "map"),
                 n_map, required<int32_t>(mapped, n_rows, "mapped"), {device, stream});
      },
      py::kw_only(), py::arg("rows"), py::arg("n_rows"), py::arg("map"), py::arg("n_map"), py::arg("mapped"),
      py::arg("device"), py::arg("stream"));
  m.def(
      "any_neighbour",
      [](const py::tuple& cells, int64_t n_inside, int64_t groups, const py::tuple& neighbours, int64_t n_outside, int64_t taps,
         const py::tuple& seen, int device, uintptr_t stream) {
        const int64_t n_near = checked_area(n_outside, taps, "neighbours");
        any_neighbour(required<const std::uint8_t>(cells, checked_area(n_inside, groups, "cells"), "cells"), n_inside,
                      groups,
                      required<const int32_t>(neighbours, n_near, "neighbours"), n_outside, taps,
                      required<std::uint8_t>(seen, checked_area(n_outside, groups, "seen"), "seen"),
                      {device, stream});
      },
      py::kw_only(), py::arg("cells"), py::arg("n_inside"), py::arg("groups"), py::arg("neighbours"),
      py::arg("n_outside"), py::arg("taps"), py::arg("seen"), py::arg("device"), py::arg("stream"));
  m.def(
      "tap_rows",
      [](const py::tuple& inside, int64_t n_inside, int64_t groups, int64_t depth, const py::tuple& neighbours,
         int64_t n_outside, int64_t taps, const py::tuple& rows, int device, uintptr_t stream) {
        const int64_t n_near = checked_area(n_outside, taps, "neighbours");
        const int64_t width = checked_area(groups, depth, "inside");
        const int64_t n = checked_area(n_near, width, "rows");
        tap_rows(required<const int32_t>(inside, checked_area(n_inside, width, "inside"), "inside"), n_inside, groups,
                 depth,
                 required<const int32_t>(neighbours, n_near, "neighbours"), n_outside, taps,
                 required<int32_t>(rows, n, "rows"), {device, stream});
      },
      py::kw_only(), py::arg("inside"), py::arg("n_inside"), py::arg("groups"), py::arg("depth"),
      py::arg("neighbours"), py::arg("n_outside"), py::arg("taps"), py::arg("rows"), py::arg("device"), py::arg("stream"));
}

template <class T>
void bind_gather_gemm(py::module_& m, const char* name) {
  m.def(
      name,
      [](int64_t n_sites, int64_t groups, int64_t taps, int64_t depth, int64_t width, const py::tuple& neighbours,
         const py::tuple& in_begin, const py::tuple& in_row, const py::tuple& in_column, const py::tuple& out_begin,
         const py::tuple& out_row, const py::tuple& out_column, const py::tuple& weight, uintptr_t input,
         int64_t in_stride, uintptr_t output, int64_t out_stride, int64_t probes, bool accumulate, int device,
         uintptr_t stream) {
        require(taps <= most_taps, std::to_string(taps) + " taps, more than the " + std::to_string(most_taps) +
                                       " that a list keeps");
        const int64_t weights = checked_area(checked_area(groups, taps, "weight"), depth, "weight");
        const GatherGemm<T> stage{
            n_sites, groups, taps, depth, width,
            required<const int32_t>(neighbours, checked_area(n_sites, taps, "neighbours"), "neighbours"),
            required<const int32_t>(in_begin, 1, "in_begin"), required<const int32_t>(in_row, 0, "in_row"),
            required<const int32_t>(in_column, 0, "in_column"),
            required<const int32_t>(out_begin, checked_area(n_sites, groups, "out_begin") + 1, "out_begin"),
            required<const int32_t>(out_row, 0, "out_row"), required<const int32_t>(out_column, 0, "out_column"),
            required<const T>(weight, checked_area(weights, width, "weight"), "weight")};
        gather_gemm(stage, reinterpret_cast<const T*>(input), in_stride, reinterpret_cast<T*>(output), out_stride,
                    probes, accumulate, {device, stream});
      },
      py::kw_only(), py::arg("n_sites"), py::arg("groups"), py::arg("taps"), py::arg("depth"), py::arg("width"),
      py::arg("neighbours"), py::arg("in_begin"), py::arg("in_row"), py::arg("in_column"), py::arg("out_begin"),
      py::arg("out_row"), py::arg("out_column"), py::arg("weight"), py::arg("input"), py::arg("in_stride"),
      py::arg("output"), py::arg("out_stride"), py::arg("probes"), py::arg("accumulate"), py::arg("device"),
      py::arg("stream"));
}

template <class T>
void bind_tall(py::module_& m, const std::string& dtype) {
  m.def(
      ("gram_" + dtype).c_str(),
      [](const py::tuple& left, int64_t n_left, const py::tuple& right, int64_t n_right, int64_t n_rows,
         const py::tuple& output, const py::tuple& workspace, int device, uintptr_t stream) {
        gram(required<const T>(left, checked_area(n_rows, n_left, "left"), "left"), n_left,
             required<const T>(right, checked_area(n_rows, n_right, "right"), "right"), n_right, n_rows,
             required<double>(output, checked_area(n_left, n_right, "output"), "output"),
             required<double>(workspace, gram_workspace(n_left, n_right, n_rows), "workspace"), {device, stream});
      },
      py::kw_only(), py::arg("left"), py::arg("n_left"), py::arg("right"), py::arg("n_right"), py::arg("n_rows"),
      py::arg("output"), py::arg("workspace"), py::arg("device"), py::arg("stream"));
  m.def(
      ("solve_triangular_" + dtype).c_str(),
      [](const py::tuple& block, const py::tuple& R, int64_t n_rows, int64_t width, const py::tuple& output,
         int device, uintptr_t stream) {
        require(width <= most_solved, std::to_string(width) + " columns, more than " + std::to_string(most_solved));
        const int64_t n = checked_area(n_rows, width, "block");
        solve_triangular(required<const T>(block, n, "block"), required<const double>(R, width * width, "R"), n_rows,
                         width, required<T>(output, n, "output"), {device, stream});
      },
      py::kw_only(), py::arg("block"), py::arg("R"), py::arg("n_rows"), py::arg("width"), py::arg("output"),
      py::arg("device"), py::arg("stream"));
  m.def(
      ("span_" + dtype).c_str(),
      [](const py::tuple& basis, int64_t n_basis, const py::object& before, const py::tuple& block, int64_t width,
         int64_t n, const py::object& output, const py::object& coefficients, const py::object& workspace, int device,
         uintptr_t stream) {
        require(width <= most_span_width,
                std::to_string(width) + " columns, more than " + std::to_string(most_span_width));
        const int64_t n_factors = checked_area(n_basis, width, "factors"), n_block = checked_area(n, width, "block");
        require(output.is_none() == before.is_none(), "output is written where `before` is given");
        span(required<const T>(basis, checked_area(n_basis, n, "basis"), "basis"), n_basis,
             optional<const double>(before, n_factors, "before"), required<const T>(block, n_block, "block"), width, n,
             optional<T>(output, n_block, "output"), optional<double>(coefficients, n_factors, "coefficients"),
             optional<double>(workspace, coefficients.is_none() ? 0 : span_workspace(n_basis, width, n), "workspace"),
             {device, stream});
      },
      py::kw_only(), py::arg("basis"), py::arg("n_basis"), py::arg("before"), py::arg("block"), py::arg("width"),
      py::arg("n"), py::arg("output"), py::arg("coefficients"), py::arg("workspace"), py::arg("device"),
      py::arg("stream"));
}

}  // namespace
}  // namespace specxai::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace specxai::cuda;
  m.doc() = "Compiled CUDA kernels of SpecXAI; call them through specxai.native.cuda.";
  m.attr("most_taps") = most_taps;
  m.attr("most_solved") = most_solved;
  m.attr("most_span_width") = most_span_width;
#ifdef SPECXAI_CUDA_EMULATED
  m.attr("device_type") = "cpu";
  m.def("set_backward", [](bool value) { backward() = value; });
#else
  m.attr("device_type") = "cuda";
#endif
  m.def("gram_workspace", gram_workspace);
  m.def("span_workspace", span_workspace);
  bind_compact(m);
  bind_tables(m);
  bind_gather_gemm<float>(m, "gather_gemm_f32");
  bind_gather_gemm<double>(m, "gather_gemm_f64");
  bind_tall<float>(m, "f32");
  bind_tall<double>(m, "f64");
}
