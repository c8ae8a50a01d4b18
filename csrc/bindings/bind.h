#pragma once

#include <pybind11/pybind11.h>

namespace specxai {

// The stages of a plan: GatherGemm_f32, GatherGemm_f64, RowSum_f32, RowSum_f64,
// LowRank_f32, LowRank_f64.
void bind_stages(pybind11::module_& m);

// Their index tables: map_rows, count_distinct, any_neighbour.
void bind_tables(pybind11::module_& m);

// Tall blocks: gram, coefficients, subtract.
void bind_tall(pybind11::module_& m);

}  // namespace specxai
