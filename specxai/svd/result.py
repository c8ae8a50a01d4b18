"""What a solver returns: the triplets, and how far they can be from the truth."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

__all__ = ["SVDResult"]


@dataclass(frozen=True)
class SVDResult:
    """R ≈ U diag(S) Vᵀ with certificates.

    Attributes:
        U: (m, k), orthonormal columns.
        S: (k,), descending, positive.
        V: (n, k), orthonormal columns.
        residuals: (k,) float64, max(‖Rv − λu‖, ‖Rᵀu − λv‖) from products with the operator, plus `floor`: a bound.
            Some true singular value lies within it of λ.  It does not show that none was missed; `error` does.
            After "exact" of more than 32 triplets it rests on products with random columns, and fails as `error` does.
        error: bound of ‖R − U diag(S) Vᵀ‖_F, which fails with probability at most 2e-5 over the seed (see
            `specxai.svd.certify`).
        estimate: unbiased estimate (of its square) of the same error; equal to `error` after "exact".
        norm: ‖R‖_F, known after "exact", else estimated.
        floor: what rounding may add to a product, 4 eps ‖R‖_F in the operator's dtype; already in `residuals` and
            `error` (four times).  A model of rounding, not a proof: where layers cancel each other more is lost.
        method: "exact", "krylov" or "subspace".
        products: columns sent through the operator, forward and adjoint together, certificates included.
        seed: of the probes.
        converged: whether the tolerance was met.
        settings: what the solver ran with (tolerance, block, basis, depth, reason for the choice).

    k can be smaller than the rank asked for: singular values lost in rounding (≤ `floor`) are never returned, and a
    zero operator has k = 0.

    Example:
        >>> import torch, specxai
        >>> from specxai.operators import DenseOperator
        >>> found = specxai.svd(DenseOperator(torch.diag(torch.tensor([3.0, 2.0, 1.0]))), rank=2)
        >>> found.rank, found.U.shape, found.converged, found.relative_error < 0.3
        (2, torch.Size([3, 2]), True, True)
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    error: float
    estimate: float
    norm: float
    floor: float
    method: str
    products: int
    seed: int
    converged: bool = True
    settings: dict = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Number of triplets k."""
        return self.S.shape[0]

    @property
    def relative_error(self) -> float:
        """`error` / ‖R‖_F, 0 for the zero operator."""
        return self.error / self.norm if self.norm > 0 else 0.0

    def __repr__(self) -> str:
        top = f", λ₁ {float(self.S[0]):.4g}" if self.rank else ""
        return (
            f"SVDResult({self.U.shape[0]} x {self.V.shape[0]}, k {self.rank}{top}, {self.method}, "
            f"error {self.error:.3g} of {self.norm:.4g}, {self.products} products, "
            f"{'converged' if self.converged else 'NOT converged'})"
        )
