"""The spectral method (paper section 4): contributions α, reduction, contraction, symbolic form, surgery.

`decompose` finds the components of the map to a layer, `explain` reads an output from them.  Knows
`specxai.affine.local` only by the interface of a Local (see `explain`), nothing of capture and rules, and of backends
only the names.
"""

from specxai.spectral.contraction import contract
from specxai.spectral.decompose import decompose, fix_signs
from specxai.spectral.decomposition import Decomposition
from specxai.spectral.explain import explain
from specxai.spectral.explanation import Explanation
from specxai.spectral.lipschitz import Norms, lipschitz
from specxai.spectral.many import explain_many
from specxai.spectral.pullback import pullback
from specxai.spectral.reduction import Reduction, reduce_alphas
from specxai.spectral.surgery import Surgery
from specxai.spectral.symbolic import Symbolic
from specxai.spectral.tokens import Contributions, Tokens, tokens

__all__ = ["Contributions", "Decomposition", "Explanation", "Norms", "Reduction", "Surgery", "Symbolic", "Tokens",
           "contract", "decompose", "explain", "explain_many", "fix_signs", "lipschitz", "load", "pullback",
           "reduce_alphas", "tokens"]

load = Explanation.load
