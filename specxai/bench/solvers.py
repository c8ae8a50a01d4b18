"""Singular triplets by other people's solvers, over whatever products they are given: U, S, V and columns used."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor

from specxai.operators import LinearOperator
from specxai.svd.products import Counted, ProgressBar


@dataclass(frozen=True)
class Triplets:
    """U (m, k), S (k,) descending, V (n, k), and how many columns went through the operator."""

    U: Tensor
    S: Tensor
    V: Tensor
    products: int
    converged: bool
    method: str


def scipy_svds(operator: LinearOperator, rank: int, tol: float, solver: str, seed: int) -> Triplets:
    """ARPACK or PROPACK, one vector at a time, as both are, to residuals of about tol σ₁.

    SciPy hands ARPACK the square of its tolerance, as if the eigenvalues of RᵀR had to be as exact as singular values;
    with the root, ‖RᵀRv − σ²v‖ ≤ tol σ², and the residual is what was asked for.
    """
    counted = Counted(operator, ProgressBar(False))
    wanted = counted.to_scipy()
    start = np.random.default_rng(seed).standard_normal(min(operator.shape)).astype(wanted.dtype)
    # Room for a slow decay: PROPACK fails where ten vectors a triplet are not enough.
    tol = tol**0.5 if solver == "arpack" else tol
    U, s, Vt = svds(wanted, k=rank, tol=tol, solver=solver, v0=start, maxiter=50 * rank, random_state=seed)
    order = np.argsort(s)[::-1]
    U, S, V = (torch.from_numpy(np.ascontiguousarray(a)) for a in (U[:, order], s[order], Vt[order].T))
    return Triplets(U, S, V, counted.products, True, solver)


def skerch_svd(operator: LinearOperator, rank: int, tol: float, seed: int, most: int) -> Triplets:
    """One sketch and its range, the columns doubled until the triplets hold or `most` columns have been used."""
    from skerch.algorithms import ssvd

    counted = Counted(operator, ProgressBar(False))
    width, widest = 2 * rank, min(operator.shape)  # its QR takes tall matrices only
    while True:
        U, S, Vh = ssvd(_Both(counted), operator.device, operator.dtype, width, seed=seed, noise_type="gaussian")
        found = Triplets(U[:, :rank], S[:rank], Vh[:rank].T, counted.products, True, "skerch hmt")
        if residual(counted, found) <= tol:
            return found
        if width == widest or counted.products + 4 * width > most:
            return replace(found, products=counted.products, converged=False)
        width = min(widest, 2 * width)


def has_skerch() -> bool:
    return find_spec("skerch") is not None


def residual(operator: LinearOperator, found: Triplets) -> float:
    """Worst of max(‖Rv − σu‖, ‖Rᵀu − σv‖) over σ₁, from real products."""
    forward = (operator.matmat(found.V.contiguous()) - found.U * found.S).norm(dim=0)
    adjoint = (operator.rmatmat(found.U.contiguous()) - found.V * found.S).norm(dim=0)
    return float(torch.maximum(forward, adjoint).max() / found.S[0])


class _Both:
    """An operator as skerch takes one: `lop @ x` and `x @ lop`, vectors or matrices."""

    def __init__(self, operator: LinearOperator) -> None:
        self._operator, self.shape = operator, operator.shape

    def __matmul__(self, X: Tensor) -> Tensor:
        return self._operator @ X.contiguous()

    def __rmatmul__(self, Y: Tensor) -> Tensor:
        return (self._operator.T @ Y.T.contiguous()).T
