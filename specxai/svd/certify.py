"""Certificates: how far a computed SVD can be from the true one.

Three kinds of statement, from strong to weak:

* Per triplet, max(‖Rv − λu‖, ‖Rᵀu − λv‖), from real products (`residual_norms`) or from those that a solver has made
  of a whole basis.  (u, v)/√2 is an approximate eigenvector of [[0, R], [Rᵀ, 0]], so some singular value lies within it
  of λ (Parlett 1998, thm 4.5.1).  A bound, up to the rounding floor.
* For the whole, `HeldOut`: Gaussian probes Ω that the solver never sees.  E‖(I − QQᵀ)RΩ‖_F² = s ‖(I − QQᵀ)R‖_F², and
  Chernoff gives P(mean ≤ θ truth) ≤ (θ e^{1−θ})^{s/2} for every remainder: Π(1 + 2tμᵢ) ≥ 1 + 2tΣμᵢ, so a remainder of
  rank one is the worst.  A bound that fails with probability 1e-5, at s columns once per run; deeper bases reuse them.
* `leave_one_out` (Epperly & Tropp, arXiv 2207.06342): the solver's own probes, each tested against the basis of the
  others.  An estimate that needs no products; it steers subspace iteration.  A Krylov basis has no such cheap form:
  leaving a probe out removes its whole chain of powers, an ill-conditioned downdate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from specxai.operators import LinearOperator
from specxai.svd.orth import row_chunks
from specxai.svd.products import gaussian

__all__ = ["FAILURE", "FLOORS", "HELD_OUT", "HeldOut", "adjoint_residuals", "distances", "forward_residuals",
           "leave_one_out", "product_distances", "residual_norms", "rounding_floor"]  # fmt: skip

HELD_OUT = 32
FAILURE = 1e-5
FLOORS = 4  # rounding floors in `error`: bases, small SVD, forming the factors and the certificate each leave one
COLUMNS = 64  # residuals are formed this many columns at a time


def rounding_floor(norm: float, dtype: torch.dtype) -> float:
    """What rounding may add to a product with a unit vector: 4 eps ‖R‖_F, the size of | |R| |v| | at worst."""
    return 4 * torch.finfo(dtype).eps * norm


def safety_factor(probes: int, failure: float = FAILURE) -> float:
    """1/√θ where (θ e^{1−θ})^{probes/2} = failure: truth ≤ factor · estimate, except with that probability."""
    target = 2 * math.log(failure) / probes
    low, high = -2000.0, 0.0  # log θ, by bisection: log θ + 1 − θ increases up to θ = 1
    for _ in range(200):
        middle = (low + high) / 2
        if middle + 1 - math.exp(middle) < target:
            low = middle
        else:
            high = middle
    return math.exp(-low / 2)


class HeldOut:
    """Products RΩ with probes that no basis is built from."""

    def __init__(self, operator: LinearOperator, generator: torch.Generator, probes: int = HELD_OUT) -> None:
        self.probes = probes
        self.factor = safety_factor(probes)
        self.image = operator.matmat(gaussian(operator.shape[1], probes, generator, operator))
        if not torch.isfinite(self.image).all():
            raise ValueError(
                f"{operator.operator!r} gives values that are not finite: "
                "the model's weights or its input hold inf or nan, or a product overflows its dtype"
            )
        self.norm = float(torch.linalg.norm(self.image.double())) / math.sqrt(probes)

    def unseen(self, Q: Tensor) -> float:
        """Estimate of ‖(I − QQᵀ)R‖_F; times `factor` it is the bound."""
        outside = self.image - Q @ (Q.mT @ self.image)
        return float(torch.linalg.norm(outside.double())) / math.sqrt(self.probes)


def leave_one_out(Q: Tensor, T: Tensor, image: Tensor) -> float:
    """Estimate of ‖R − QQᵀR‖_F from the products image = RΩ that began the basis, Q T = p(RRᵀ) RΩ.

    Shapes: Q (m, b), T (b, b) float64, image (m, b).  With tᵢ the normalised columns of T⁻ᵀ, the basis without probe i
    projects as Q(I − tᵢtᵢᵀ)Qᵀ (Epperly & Tropp, eq. 2.4).
    """
    inverse = torch.linalg.pinv(T).mT
    t = inverse / torch.linalg.norm(inverse, dim=0).clamp_min(torch.finfo(torch.float64).tiny)
    inside = (Q.mT @ image).double()
    outside = torch.linalg.norm((image - Q @ inside.to(Q.dtype)).double(), dim=0) ** 2
    return math.sqrt(float((outside + (t * inside).sum(0) ** 2).mean()))


def residual_norms(operator: LinearOperator, U: Tensor, S: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """(‖Rv − λu‖, ‖Rᵀu − λv‖) per triplet, each (k,) float64, from 2k real products."""
    return forward_residuals(operator, U, S, V), adjoint_residuals(operator, U, S, V)


def forward_residuals(operator: LinearOperator, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """‖Rv − λu‖ per triplet, (k,) float64, from k real products."""
    return _residuals(operator.matmat, V, U, S)


def adjoint_residuals(operator: LinearOperator, U: Tensor, S: Tensor, V: Tensor) -> Tensor:
    """‖Rᵀu − λv‖ per triplet, (k,) float64, from k real products."""
    return _residuals(operator.rmatmat, U, V, S)


def distances(images: Tensor, vectors: Tensor, S: Tensor) -> Tensor:
    """‖image − s · vector‖ of each column, (k,) float64."""
    return _distances(lambda rows: images[rows], vectors, S)


def product_distances(X: Tensor, M: Tensor, vectors: Tensor, S: Tensor) -> Tensor:
    """The same of X M for a tall X and a small M, which is never held whole."""
    M = M.to(X.dtype)
    return _distances(lambda rows: X[rows] @ M, vectors, S)


def _distances(images: Callable[[slice], Tensor], vectors: Tensor, S: Tensor) -> Tensor:
    s = S.double()
    total = torch.zeros_like(s)
    for rows in row_chunks(vectors):
        total += (images(rows).double() - vectors[rows].double() * s).square().sum(0)
    return total.sqrt()


def _residuals(product, sources: Tensor, targets: Tensor, S: Tensor) -> Tensor:
    parts = [S.new_zeros(0, dtype=torch.float64)]
    for start in range(0, S.shape[0], COLUMNS):
        part = slice(start, start + COLUMNS)
        parts.append(distances(product(sources[:, part]), targets[:, part], S[part]))
    return torch.cat(parts)
