"""The result of `explain`: one output as a sum of spectral contributions, eq. (20), with every other term visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from specxai.spectral import contraction, reduction
from specxai.spectral.record import SETTINGS_KINDS, Record
from specxai.spectral.store import FLOATING, Layout
from specxai.spectral.summary import summary
from specxai.spectral.surgery import Surgery, operate
from specxai.spectral.symbolic import Symbolic

__all__ = ["Explanation"]


@dataclass(eq=False, repr=False)
class Explanation(Record):
    """output = Σ_k alpha_k + bias + bypass + remainder, with alpha_k = psi_k · S_k · projections_k (eq. 20).

    Shapes: k components, m outputs, `in` the input's and `mid` the layer's shape without the batch axis of 1.
    Everything is on the CPU; the (k,) numbers are float64, the vectors have the model's dtype.  A component is
    addressed by its position 0..k−1 everywhere; `indices` gives its place in the spectrum, which differs from the
    position only in a slice of an explanation.

    layer, target_label  names; target (m,) the weights w over the outputs that `output` = w·f(x) refers to
    S            (k,) singular values λ of R, descending
    psi          (k,) ψ = Uᵀ(Lᵀw), how the rest of the network reads each component
    projections  (k,) φ_k·x ≥ 0: the sign convention, which makes every sign below meaningful
    alpha        (k,) the contributions
    residuals    (k,) certificates: some true singular value of R lies within residuals_k of S_k
    right_vectors (k, *in) φ_k;  left_vectors (k, *mid) u_k;  x (*in)
    output, bias, bypass, remainder   numbers: w·f(x), w·b, the paths round the layer, the components not in `alpha`
    bias_contributions  {layer: w·β_l}, the second route to the bias (eq. 9)
    gradient (*in) Jᵀw;  bypass_gradient (*in) its part that goes round the layer (zero where nothing does)
    exactness    disagreement of the two routes to the bias;  error the bound of ‖R − UΣVᵀ‖_F, None if unknown
    agreement    disagreement of J with the model run by torch (see `Local.agreement`), None if that was not checked
    method, products, seed   of the decomposition;  gates, backend of the affine map
    backends     {"decomposition": …, "targets": …}, what ran the products of each part; {} in files of version 1
    settings     the rest, the solver's own certificates under "svd"
    converged    whether the solver reached its tolerance;  worst_residual the largest relative to λ₁
    local        the Local it came from; None after loading or unpickling, and then surgery cannot run the network

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> e = specxai.explain(net, torch.ones(1, 4), layer="1", rank=2)
    >>> len(e), len(e[:1]), e[:1].completeness < 1e-5
    (2, 1, True)
    """

    layer: str
    target: torch.Tensor
    target_label: str
    S: torch.Tensor
    alpha: torch.Tensor
    psi: torch.Tensor
    projections: torch.Tensor
    residuals: torch.Tensor
    indices: torch.Tensor
    right_vectors: torch.Tensor
    left_vectors: torch.Tensor
    x: torch.Tensor
    output: float
    bias: float
    bypass: float
    remainder: float
    bias_contributions: dict[str, float]
    gradient: torch.Tensor
    bypass_gradient: torch.Tensor
    exactness: float
    error: float | None
    method: str
    products: int
    gates: str
    backend: str
    seed: int
    settings: dict = field(default_factory=dict)
    local: object | None = None
    agreement: float | None = None
    backends: dict[str, str] = field(default_factory=dict)

    ROWS = ("S", "alpha", "psi", "projections", "residuals", "indices", "right_vectors", "left_vectors")
    LAYOUT = Layout(
        "an explanation", "specxai.explanation", 2,
        tensors={**dict.fromkeys(("S", "alpha", "psi", "projections", "residuals"), ((torch.float64,), ("k",))),
                 "indices": ((torch.int64,), ("k",)), "target": (FLOATING, ("m",)), "x": (FLOATING, ("*in",)),
                 "right_vectors": (FLOATING, ("k", "*in")), "left_vectors": (FLOATING, ("k", "*mid")),
                 "gradient": (FLOATING, ("*in",)), "bypass_gradient": (FLOATING, ("*in",))},
        values={"layer": str, "target_label": str, "output": float, "bias": float, "bypass": float, "remainder": float,
                "bias_contributions": {str: float}, "exactness": float, "error": (float, None), "method": str,
                "products": int, "gates": str, "backend": str, "seed": int, "settings": SETTINGS_KINDS,
                "agreement": (float, None), "backends": {str: str}},
        added={2: {"agreement": None, "backends": {}}},
    )

    # ---- what it is made of

    @property
    def completeness(self) -> float:
        """|output − (Σα + bias + bypass + remainder)| relative to the largest of these; rounding if all is well."""
        terms = [float(self.alpha.sum()), self.bias, self.bypass, self.remainder]
        scale = max(map(abs, [self.output, *terms]))
        gap = abs(self.output - sum(terms))
        return gap / scale if scale != 0 else gap

    @property
    def remainder_gradient(self) -> torch.Tensor:
        """(*in) float64, the row ρ with ρ·x = remainder: Jᵀw less the bypass and less every component's ψλφ."""
        rows = contraction.combine(self.psi * self.S, self.right_vectors)
        return self.gradient.double() - self.bypass_gradient.double() - rows

    def __getitem__(self, key) -> Explanation:
        """The components at an int, slice, list, or mask; the contributions left out move to the remainder."""
        kept = self._rows(self.positions(key))
        dropped = float(self.alpha.sum()) - float(kept["alpha"].sum())
        return replace(self, **kept, remainder=self.remainder + dropped)

    # ---- the method

    def contract(self, dim: int | Sequence[int] = 0) -> torch.Tensor:
        """(k, *rest) maps c^k = Σ_dim φ_k ∘ x over axes of the input without batch (eq. 23); 0 for channels first."""
        return contraction.contract(self.right_vectors, self.x, dim)

    def reduce(self) -> reduction.Reduction:
        """Contributions merged until one sign is left (eqs. 21-22).  The remainder takes no part in it."""
        return reduction.reduce_alphas(self.alpha)

    def symbolic(self, dim: int | Sequence[int] = 0, reduced: bool = False, top: int | None = None) -> Symbolic:
        """The sum as a formula that can be printed and evaluated at other inputs (eqs. 25-26), see `Symbolic`."""
        return Symbolic.of(self, dim=dim, reduced=reduced, top=top)

    def surgery(self, keep=None, drop=None, scale: dict[int, float] | None = None) -> Surgery:
        """Remove or rescale components at the layer and see what the network then says, see `Surgery`."""
        return operate(self, keep=keep, drop=drop, scale=scale)

    def top(self, n: int, by: str = "lambda") -> list[int]:
        """Positions of the `n` first components by "lambda" (λ), "alpha" (|α|), or "reduced" (dominant survivors).

        Raises ValueError for another order, or fewer than none.
        """
        if n < 0:
            raise ValueError(f"n={n}: the number of components cannot be negative")
        if by == "lambda":
            return self.S.argsort(descending=True, stable=True)[:n].tolist()
        if by == "alpha":
            return self.alpha.abs().argsort(descending=True, stable=True)[:n].tolist()
        if by == "reduced":
            return self.reduce().dominant[:n]
        raise ValueError(f"by={by!r}: choose 'lambda', 'alpha' or 'reduced'")

    # ---- to look at, to keep

    def table(self) -> list[dict]:
        """One row per component: k (place in the spectrum), lambda, psi, projection, alpha, share of Σ|α|, residual."""
        total = float(self.alpha.abs().sum())
        share = self.alpha.abs() / total if total else torch.zeros_like(self.alpha)
        columns = (self.indices, self.S, self.psi, self.projections, self.alpha, share, self.residuals)
        names = ("k", "lambda", "psi", "projection", "alpha", "share", "residual")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def summary(self, n: int = 10) -> str:
        """The `n` largest contributions, then every other term and the checks, as text."""
        return summary(self, n)

    def __repr__(self) -> str:
        return self.summary()

    def plot(self, path=None, **kw):
        """Draw it; see `specxai.plots.plot_explanation`, which gets the arguments."""
        from specxai.plots import plot_explanation

        return plot_explanation(self, path, **kw)
