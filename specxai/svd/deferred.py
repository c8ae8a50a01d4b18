"""Steps of Krylov without a wait for the device: nothing is decided from a step's numbers until the next check.

On a device every number that the host looks at makes it wait until all work before is done, and leaves the device idle
until the next launches come.  `orth.extend_unseen` therefore branches on nothing.  It returns a flag, on the device,
which says whether its block has all that `orth.extend` would have seen to: `Steps` collects the flags, and where one is
not set when they are read, the steps since are taken back and made again by `orth.extend`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from specxai.svd import orth

if TYPE_CHECKING:
    from specxai.svd.space import Space

__all__ = ["Steps"]


class Steps:
    """The steps of a space since its numbers were last looked at.

    deferring   are steps taken that nothing is looked at in?
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        self.deferring = orth.defers(space.operator.device)
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
        Q, H, C, good = orth.extend_unseen(basis, X, floor)
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
