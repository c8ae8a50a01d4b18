"""Steps of Krylov without a wait for the device: nothing is decided from a step's numbers until the next check.

On a device every number that the host looks at makes it wait until all work before is done, and leaves the device idle
until the next launches come.  `extend` here therefore branches on nothing.  It returns a flag, on the device, which
says whether its block has all that `orth.extend` would have seen to: `Steps` collects the flags, and where one is not
set when they are read, the steps since are taken back and made again by `orth.extend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specxai.native import cuda
from specxai.svd.orth import NEARLY, gram, project_out, tall_product

if TYPE_CHECKING:
    from specxai.svd.space import Space

__all__ = ["Steps", "defers", "extend"]


def defers(device: torch.device) -> bool:
    """Is a wait for this device worth avoiding?  The CPU has its numbers at hand, and decides as it goes."""
    return device.type != "cpu"


class Steps:
    """The steps of a space since its numbers were last looked at.

    deferring   are steps taken that nothing is looked at in?
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self.deferring = defers(space.operator.device)
        self._good: Tensor | None = None
        self._before = (0, 0, 0, 0)  # columns of Q, of P, of the block that came first; steps made

    def begin(self, block: Tensor, depth: int) -> bool:
        """May the step with the block (m, b), the one after `depth` others, be one that is not looked at?

        Not where the bases may have no room for it: then how many columns are new has to be known.
        """
        if not (self.deferring and 0 < block.shape[1] <= (min(self._space.operator.shape) - self._space.size) // 2):
            return False
        if self._good is None:
            self._before = (self._space.size, self._space.P.shape[1], block.shape[1], depth)
        return True

    def extend(self, basis: Tensor, X: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `orth.extend`, with the flag kept for `settle`."""
        Q, H, C, good = extend(basis, X, floor)
        self._good = good if self._good is None else self._good & good
        return Q, H, C

    def settle(self) -> tuple[Tensor, int] | None:
        """Waits for the device: None where every step was good.

        Else the space is what it was before the first of them, and the block and the depth to go on from are returned;
        from then on no step is deferred, as what stopped one mostly stops the next.
        """
        good, self._good = self._good, None
        if good is None or bool(good):
            return None
        size, right, columns, depth = self._before
        block = self._space.Q[:, size : size + columns].clone()
        self._space.cut(size, right)
        self.deferring = False
        return block, depth


def extend(basis: Tensor, X: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The part of X (m, b) outside an orthonormal `basis` (m, q): Q (m, b), H (q, b), C (b, b), X = basis H + Q C.

    The last is a flag (): Q is orthonormal and orthogonal to the basis to the rounding of one product, and all of C is
    above `floor`.  Where it is not set only X = basis H + Q C may hold.

    One pass of CholeskyQR between two projections, so that the second acts on unit columns, and one after them, which
    starts from nearly orthonormal columns or the flag is not set.  In float64, whose Gram matrix has no digits to
    spare, another comes first, shifted where the matrix is not definite (Fukaya et al. 2020, arXiv 1809.11085).
    """
    unit = torch.eye(X.shape[1], dtype=torch.float64, device=X.device)
    H, Q = project_out(basis, X)
    Q, C, _ = _pass(Q, unit, X.dtype is torch.float64)
    if X.dtype is torch.float64:
        Q, more, _ = _pass(Q, unit)
        C = more @ C
    again, Q = project_out(basis, Q)
    H = H + again @ C
    Q, more, good = _pass(Q, unit)
    C = more @ C
    # σ_min(C) ≥ 1/‖C⁻¹‖_F; a NaN compares as False.
    inverse = torch.linalg.solve_triangular(C, unit, upper=True)
    return Q, H, C, good & (floor * torch.linalg.norm(inverse) < 1)


def _pass(X: Tensor, unit: Tensor, shifts: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """X = Q C by one pass of CholeskyQR, and a flag: was X so near to orthonormal that Q is?

    `shifts`: by the least amount that makes the Gram matrix definite in theory, where it is not in numbers.
    """
    m, b = X.shape
    G = gram(X)
    L, failed = torch.linalg.cholesky_ex(G)
    if shifts:
        shift = 11 * (m * b + b * (b + 1)) * torch.finfo(torch.float64).eps / 2 * G.diagonal().max()
        shifted, failed_again = torch.linalg.cholesky_ex(G + shift * unit)
        L, failed = torch.where(failed == 0, L, shifted), torch.where(failed == 0, failed, failed_again)
    good = (failed == 0) & (torch.linalg.norm(G - unit) <= NEARLY)
    if cuda.takes(X) and b <= cuda.MOST_SOLVED:
        return cuda.solve_triangular(X, L.mT.contiguous()), L.mT, good
    return tall_product(X, torch.linalg.solve_triangular(L.mT, unit, upper=True)), L.mT, good
