"""The result of `explain`: one output as a sum of spectral contributions, eq. (20), with every other term visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from specxai.spectral import contraction, reduction

__all__ = ["Explanation"]


@dataclass(eq=False, repr=False)
class Explanation:
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
    method, products, seed   of the decomposition;  gates, backend of the affine map;  settings the
                 rest, the solver's own certificates under "svd"
    local        the Local it came from; None after loading, and then surgery cannot run the network

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

    # ---- what it is made of

    def __len__(self) -> int:
        return len(self.S)

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
        position = self.positions(key)
        rows = ("S", "alpha", "psi", "projections", "residuals", "indices", "right_vectors", "left_vectors")
        kept = {name: getattr(self, name)[position] for name in rows}
        dropped = float(self.alpha.sum()) - float(kept["alpha"].sum())
        error = self.error
        if error is not None:  # by the triangle inequality, for what is now left out as well
            left_out = float((self.S**2).sum()) - float((kept["S"] ** 2).sum())
            error += max(left_out, 0.0) ** 0.5
        return replace(self, **kept, remainder=self.remainder + dropped, error=error)

    def positions(self, key) -> torch.Tensor:
        """`key` (int, slice, list, mask, tensor) as a tensor of distinct positions 0..k−1."""
        if not isinstance(key, slice):
            key = torch.as_tensor(sorted(key) if isinstance(key, (set, frozenset, range)) else key)
            key = key.long() if key.numel() == 0 else key
            if key.dtype == torch.bool and key.shape != (len(self),):
                raise IndexError(f"a mask over components must have shape ({len(self)},), not {tuple(key.shape)}")
            if key.dtype != torch.bool and (key.is_floating_point() or key.is_complex() or key.ndim > 1):
                raise TypeError("components are chosen by integers, a slice or a mask, not by a tensor of "
                                f"{key.dtype} and shape {tuple(key.shape)}")
            outside = [] if key.dtype == torch.bool else [i for i in key.reshape(-1).tolist()
                                                          if not -len(self) <= i < len(self)]
            if outside:
                raise IndexError(f"component {outside[0]} does not exist: this explanation has {len(self)}, at "
                                 "positions from 0; explain with a higher rank (None for all) to get more")
        found = torch.arange(len(self))[key].reshape(-1)
        if len(found.unique()) < len(found):
            raise IndexError(f"a component is named twice in {found.tolist()}, and would be counted twice")
        return found

    # ---- the method

    def contract(self, dim: int | Sequence[int] = 0) -> torch.Tensor:
        """(k, *rest) maps c^k = Σ_dim φ_k ∘ x over axes of the input without batch (eq. 23); 0 for channels first."""
        return contraction.contract(self.right_vectors, self.x, dim)

    def reduce(self) -> reduction.Reduction:
        """Contributions merged until one sign is left (eqs. 21-22).  The remainder takes no part in it."""
        return reduction.reduce_alphas(self.alpha)

    def symbolic(self, dim: int | Sequence[int] = 0, reduced: bool = False, top: int | None = None):
        """The sum as a formula that can be printed and evaluated at other inputs (eqs. 25-26), see `Symbolic`."""
        from specxai.spectral.symbolic import Symbolic

        return Symbolic.of(self, dim=dim, reduced=reduced, top=top)

    def surgery(self, keep=None, drop=None, scale: dict[int, float] | None = None):
        """Remove or rescale components at the layer and see what the network then says, see `Surgery`."""
        from specxai.spectral.surgery import operate

        return operate(self, keep=keep, drop=drop, scale=scale)

    def top(self, n: int, by: str = "lambda") -> list[int]:
        """Positions of the `n` first components by "lambda" (λ), "alpha" (|α|), or "reduced" (dominant survivors)."""
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
        from specxai.spectral.summary import summary

        return summary(self, n)

    def __repr__(self) -> str:
        return self.summary()

    def plot(self, path=None, **kw):
        """Draw it; see `specxai.plots.plot_explanation`, which gets the arguments."""
        from specxai.plots import plot_explanation

        return plot_explanation(self, path, **kw)

    def save(self, path) -> None:
        """Write one safetensors file, or, where `path` ends in .npz, a NumPy export that `load` does not read."""
        from specxai.spectral import store

        store.save(self, path)

    @staticmethod
    def load(path) -> Explanation:
        """Read a file written by `save`.  All works but surgery on the real network, which needs the model."""
        from specxai.spectral import store

        return store.load(path)

    def __getstate__(self) -> dict:
        return {**vars(self), "local": None}  # which runs on a model of this process

    def to_dict(self) -> dict:
        """All fields but `local`, shallow."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "local"}
