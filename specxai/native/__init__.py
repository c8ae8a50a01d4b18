"""The typed door to the compiled kernels: every check is made here or when a stage is built, none while it runs."""

from __future__ import annotations

from specxai.native.linear import gated_linear
from specxai.native.module import available, simd_level, supported_levels
from specxai.native.stages import PANEL, PROBE_UNIT, GatherGemm, RowSum, pack

__all__ = ["PANEL", "PROBE_UNIT", "GatherGemm", "RowSum", "available", "gated_linear", "pack", "simd_level",
           "supported_levels"]
