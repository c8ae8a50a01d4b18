"""The typed door to the compiled kernels: every check is made here or when a stage is built, none while it runs."""

from __future__ import annotations

from specxai.native import cuda
from specxai.native.checks import is_columns
from specxai.native.memory import empty, release_idle
from specxai.native.module import available, has_rough, simd_level, supported_levels
from specxai.native.peak import multiply_add_peak
from specxai.native.stages import LINE, PROBE_UNIT, GatherGemm, LowRank, RowSum, pitch_of, stride_of
from specxai.native.tables import any_neighbour, count_distinct, map_rows
from specxai.native.tall import coefficients, gram, subtract

__all__ = ["LINE", "PROBE_UNIT", "GatherGemm", "LowRank", "RowSum", "any_neighbour", "available", "coefficients",
           "count_distinct", "cuda", "empty", "gram", "has_rough", "is_columns", "map_rows", "multiply_add_peak",
           "pitch_of", "release_idle", "simd_level", "stride_of", "subtract", "supported_levels"]
