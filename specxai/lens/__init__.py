"""The Jacobian lens: what a residual in the middle of a decoder says, moved to its end by the mean Jacobian.

J_l = E[∂h_L / ∂h_l] is fitted exactly as the reference fits it (Gurnee et al. 2026), all layers of a prompt in one
adjoint sweep; files are the reference's.  `fit` makes a `Lens`, `load` reads one, `residuals` gives what a lens reads,
and `BackwardProvider` lends the products to the fit loop of TransformerLens.
"""

from __future__ import annotations

from specxai.lens.decoder import residuals
from specxai.lens.factors import LowRank
from specxai.lens.fit import fit
from specxai.lens.lens import Lens, load
from specxai.lens.provider import BackwardProvider

__all__ = ["BackwardProvider", "Lens", "LowRank", "fit", "load", "residuals"]
