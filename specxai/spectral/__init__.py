"""The spectral method (paper section 4): contributions α, reduction, contraction, symbolic form, surgery.

Knows `specxai.local` only by the interface of a Local (see `explain`), and nothing of capture, rules or backends.
"""

from specxai.spectral.contraction import contract
from specxai.spectral.explain import explain, fix_signs
from specxai.spectral.explanation import Explanation
from specxai.spectral.reduction import Reduction, reduce_alphas
from specxai.spectral.store import load
from specxai.spectral.surgery import Surgery
from specxai.spectral.symbolic import Symbolic

__all__ = ["Explanation", "Reduction", "Surgery", "Symbolic", "contract", "explain", "fix_signs", "load",
           "reduce_alphas"]
