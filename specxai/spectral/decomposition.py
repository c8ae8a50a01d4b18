"""The singular value decomposition of the map from one input to one layer, from which any number of targets is read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

import torch

from specxai.errors import FileError
from specxai.spectral.record import SETTINGS_KINDS, Record
from specxai.spectral.store import FLOATING, Layout, read
from specxai.spectral.summary import decomposition_summary

__all__ = ["Decomposition"]

_F64 = (torch.float64,)
_NUMBER = (float, None)


@dataclass(frozen=True, eq=False, repr=False)
class Decomposition(Record):
    """R ≈ U diag(S) Vᵀ of the map R (m_s, n) from an input x to a layer, signs fixed so that φ_k·x ≥ 0.

    Made by `specxai.decompose`; `specxai.explain(decomposition, target=...)` reads a target from it.  Everything is on
    the CPU; the (k,) numbers are float64, the vectors have the model's dtype.  An int, slice, list or mask picks
    components; `error` and `estimate` then grow by what is left out.

    layer        name
    U (m_s, k), S (k,) descending, V (n, k)   the triplets
    residuals    (k,) certificates: some true singular value of R lies within residuals_k of S_k
    projections  (k,) φ_k·x ≥ 0
    indices      (k,) place in the spectrum, which differs from the position only in a slice
    x            (*in), the input without its batch axis of 1;  layer_shape of the layer's output without it
    image        (m_s,) R x: what the components should add up to at the layer
    error        bound of ‖R − U diag(S) Vᵀ‖_F, None if unknown;  norm, floor, estimate as of `specxai.svd`
    converged    whether the solver reached its tolerance;  worst_residual the largest relative to λ₁
    method, products, seed   of the solver;  gates, backend of the affine map
    backends     {"decomposition": the backends that ran its products}
    exactness    disagreement of the two routes to the bias;  agreement of J with the model run by torch, None if that
                 was not checked
    settings     the rest: the request, the solver's own under "svd", versions
    local        the Local it came from; None after loading or unpickling

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> d = specxai.decompose(net, torch.ones(1, 4), layer="1", rank=2)
    >>> d.U.shape, d.S.shape, d.V.shape, len(d[:1]), d[:1].error > d.error
    (torch.Size([8, 2]), torch.Size([2]), torch.Size([4, 2]), 1, True)
    """

    layer: str
    U: torch.Tensor
    S: torch.Tensor
    V: torch.Tensor
    residuals: torch.Tensor
    projections: torch.Tensor
    indices: torch.Tensor
    x: torch.Tensor
    layer_shape: tuple[int, ...]
    image: torch.Tensor
    error: float | None
    method: str
    products: int
    seed: int
    gates: str
    backend: str
    exactness: float
    agreement: float | None = None
    backends: dict[str, str] = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    local: object | None = None

    ROWS = ("S", "residuals", "projections", "indices")
    LAYOUT = Layout(
        "a decomposition", "specxai.decomposition", 1,
        tensors={"S": (_F64, ("k",)), "residuals": (_F64, ("k",)), "projections": (_F64, ("k",)),
                 "indices": ((torch.int64,), ("k",)), "U": (FLOATING, ("m", "k")), "V": (FLOATING, ("n", "k")),
                 "x": (FLOATING, ("*in",)), "image": (FLOATING, ("m",))},
        values={"layer": str, "layer_shape": [int], "error": _NUMBER, "method": str, "products": int, "seed": int,
                "gates": str, "backend": str, "exactness": float, "agreement": _NUMBER, "backends": {str: str},
                "settings": SETTINGS_KINDS},
    )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of x, without its batch axis of 1."""
        return tuple(self.x.shape)

    @property
    def norm(self) -> float | None:
        """‖R‖_F as the solver knows it."""
        return self.solver.get("norm")

    @property
    def floor(self) -> float | None:
        """What rounding may add to a product; already in `residuals` and `error`."""
        return self.solver.get("floor")

    @property
    def estimate(self) -> float | None:
        """Unbiased estimate (of its square) of what `error` bounds."""
        return self.solver.get("estimate")

    def __getitem__(self, key) -> Decomposition:
        """The components at an int, slice, list, or mask."""
        position = self.positions(key)
        rows, settings = self._rows(position), self.settings
        if self.estimate is not None:
            left_out = max(float((self.S**2).sum()) - float((rows["S"] ** 2).sum()), 0.0)
            settings = {**settings, "svd": {**self.solver, "estimate": math.hypot(self.estimate, left_out**0.5)}}
        return replace(self, **rows, U=self.U[:, position], V=self.V[:, position], settings=settings)

    def __repr__(self) -> str:
        return self.summary()

    def summary(self, n: int = 10) -> str:
        """The first `n` components and the solver's certificates, as text."""
        return decomposition_summary(self, n)

    def plot(self, path=None, **kw):
        """Draw the spectrum with its certificates; see `specxai.plots.plot_decomposition`, which gets the arguments."""
        from specxai.plots import plot_decomposition

        return plot_decomposition(self, path, **kw)

    @classmethod
    def load(cls, path) -> Self:
        """Read a file written by `save`; `explain(decomposition, target=..., local=...)` then takes its Local.

        Raises FileNotFoundError, or FileError (a ValueError) that names the cause.
        """
        fields = read(path, cls.LAYOUT)
        shape = fields["layer_shape"] = tuple(fields["layer_shape"])
        if min(shape, default=0) < 0 or (len(fields["U"]), len(fields["V"])) != (math.prod(shape), fields["x"].numel()):
            raise FileError(f"the shapes in {path} do not fit together: U {tuple(fields['U'].shape)} to a layer of "
                            f"shape {shape}, V {tuple(fields['V'].shape)} to an input of {tuple(fields['x'].shape)}")
        return cls(**fields)
