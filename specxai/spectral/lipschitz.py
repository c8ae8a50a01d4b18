"""How much a network can stretch a small change of its input, at each of several inputs, bounded from both sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.affine.captured import linearize
from specxai.precision import full_precision
from specxai.svd import svd
from specxai.svd.certify import FAILURE

__all__ = ["Norms", "lipschitz"]

BLOCK = 8  # columns of Krylov: as many independent starts of which one is enough


@dataclass(frozen=True)
class Norms:
    """‖J(x)‖₂, the local Lipschitz constant, at each of B inputs: lower ≤ ‖J(x)‖₂ ≤ upper.

    S         (B,) float64, the largest singular values found;  residuals (B,) as of `specxai.svd`
    upper     (B,) float64, fails with probability 1e-5 for each;  lower = S − residuals, at least 0
    V         (B, n), the directions of the inputs that are stretched most, of length one; their signs are arbitrary
    products  columns in all

    >>> found = Norms(torch.tensor([2.0]), torch.tensor([0.1]), torch.tensor([2.2]), torch.ones(1, 1), 10)
    >>> bool(found.lower < found.S) and bool(found.S < found.upper)
    True
    """

    S: Tensor
    residuals: Tensor
    upper: Tensor
    V: Tensor
    products: int

    @property
    def lower(self) -> Tensor:
        """(B,) float64."""
        return (self.S - self.residuals).clamp_min(0)


def lipschitz(model, X: Tensor, *, tol: float = 1e-4, seed: int = 0, gates: str = "tangent", backend: str = "auto",
              output=None, kwargs: dict | None = None) -> Norms:
    """The spectral norm of the model's Jacobian at each of a batch of inputs, with bounds from both sides.

    model    an nn.Module or a captured model, recorded once for all inputs
    X        inputs (B, ...), each of which the model gets as (1, ...)
    tol      of the residual, relative; smaller ones bring `upper` nearer, too
    gates, backend, output, kwargs   as for `specxai.linearize`

    From above, ‖J‖₂ ≤ S exactly where all of J is decomposed.  Of block Krylov after q blocks of c random columns,
    ‖J‖₂ ≤ S / √(1 − ε) with (2q − 1) √ε = log(1.648 √n / δ^(1/c)), except with probability δ: the bound of Kuczyński &
    Woźniakowski 1992 for a random start of Lanczos, which c independent ones all would have to miss.  Residuals are
    added to both.

    Raises ValueError for a batch without inputs, and what `specxai.linearize` raises.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> found = specxai.lipschitz(net, torch.randn(5, 4))
    >>> found.S.shape, bool((found.lower <= found.upper).all())
    (torch.Size([5]), True)
    """
    if not isinstance(X, Tensor) or X.ndim == 0 or not len(X):
        raise ValueError("lipschitz needs a batch of inputs (B, ...), at least one; a single x has shape (1, ...)")
    rows, products = [], 0
    for x in X.split(1):
        local = linearize(model, x, gates=gates, backend=backend, output=output, kwargs=kwargs)
        with local.checked(), full_precision(local.input.device):
            found = svd(local.jacobian, rank=1, tol=tol, seed=seed, block_size=BLOCK)
        products += found.products
        V = found.V[:, 0] if found.rank else found.V.new_zeros(len(found.V))
        s, residual = (float(t[0]) if found.rank else 0.0 for t in (found.S, found.residuals))
        rows.append((s, residual, _above(found, s) + (residual if found.rank else found.error), V.cpu()))
    S, residuals, upper = (torch.tensor(column, dtype=torch.float64) for column in list(zip(*rows, strict=True))[:3])
    return Norms(S, residuals, upper, torch.stack([row[3] for row in rows]), products)


def _above(found, s: float) -> float:
    """What the largest singular value is at most, rounding and the residual of `s` aside."""
    if found.method == "exact" or not found.rank:
        return s
    bounds = [max(s, found.error)]  # what is not s u vᵀ is at most `error`
    q, c = found.settings["depth"], found.settings["block_size"]
    if found.settings["basis"] <= q * c <= found.settings["max_basis"]:  # without a restart
        root = math.log(1.648 * math.sqrt(len(found.V)) / FAILURE ** (1 / c)) / (2 * q - 1)
        if root < 1:
            bounds.append(s / math.sqrt(1 - root**2))
    return min(bounds)
