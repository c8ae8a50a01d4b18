"""The SVDs of all blocks J_t (m, d) of an operator J = [J_1 … J_T] (m, T d), from adjoint products that they share.

An adjoint product with one vector gives a row of every block at once, a forward product a column of a single one.  So
B_t = J_tᵀ Q (d, q) is found for all t by q adjoint products with an orthonormal Q (w, q), and with B_t = V Σ Yᵀ the
triplets of block t are u = Q y, σ, v: J_tᵀ u = σ v holds to rounding, and only ‖J_t v − σ u‖ = ‖(I − QQᵀ) J_t v‖ says
how far they are from the truth.

exact   Q = I.  Where all paths pass a narrow cut, J = A R with A = Q_A C, it is C R that has few rows.
range   Q spans what forward products with the weighted blocks J D reach, block Krylov on (J D)(J D)ᵀ, D the inverse of
        the blocks' norms: far blocks, of small norm, count as much as near ones.  It grows until the worst triplet of
        any block meets the tolerance, and is completed to Q = I where that takes too long.

What Q misses is measured by Gaussian probes G that it never sees: Gᵀ(I − QQᵀ) J_t v is known for all t and v from the
adjoint products Jᵀ G.  Chernoff's bound of `HeldOut` turns its norm into a bound of ‖(I − QQᵀ) J_t v‖, rounding of the
adjoint products included.  Forward products with random columns, weighted in the same way, bound by how much they
differ from the adjoint ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from specxai._blocks import identity_blocks
from specxai.operators import ComposedOperator, Cut, DenseOperator, LinearOperator
from specxai.precision import full_precision
from specxai.svd.auto import A_COLUMN, A_TRIPLET, FIRST
from specxai.svd.certify import FAILURE, HELD_OUT, rounding_floor, safety_factor
from specxai.svd.exact import useful_cut
from specxai.svd.orth import extend, leading_eigh, tall_qr
from specxai.svd.products import Counted, ProgressBar, gaussian, generator_of

__all__ = ["BlockSVDs", "block_svds"]

WEIGHING = 8  # probes that weigh the blocks against each other
FORWARD = 16  # random columns that compare forward with adjoint products
KRYLOV_BLOCK = 32
CHECK_GROWTH = 1.3  # the triplets are looked at whenever the basis has grown by this factor
WORTH_A_RANGE = 0.5  # of the columns that exact needs, what a shared range may be expected to take
COLUMNS = 256  # of an adjoint product


@dataclass(frozen=True)
class BlockSVDs:
    """J_t ≈ U_t diag(S_t) V_tᵀ of every block.

    U (T, m, k), S (T, k) descending, V (T, d, k)
    residuals   (T, k) float64: some true singular value of J_t lies within it of S; fails with probability 1e-5 for
                all of them together
    norms       (T,) float64, estimates of ‖J_t‖_F
    method      "exact" or "range";  products columns in all;  converged whether a range met its tolerance
    settings    width w of the space of left vectors, columns q of Q

    Where a block has fewer than k singular values above rounding, the rest are 0 and their vectors zeros.
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    norms: Tensor
    method: str
    products: int
    seed: int
    converged: bool = True
    settings: dict = field(default_factory=dict)


def block_svds(operator: LinearOperator, blocks: int, rank: int, *, tol: float = 1e-3, method: str = "auto",
               seed: int = 0, max_memory: int | None = None, progress: bool | None = None) -> BlockSVDs:
    """The `rank` leading triplets of each of `blocks` equal blocks of columns of an operator (m, n).

    tol         of a residual relative to the block's σ₁, for a range; exact blocks are exact
    method      "exact", "range", or "auto", by counted columns
    max_memory  bytes of all that is held beside the operator's own products: exact blocks are made in groups where they
                do not fit, each by all the columns again

    Raises ValueError for an argument out of range, MemoryError where not even one block fits.

    >>> import torch
    >>> from specxai.operators import DenseOperator
    >>> J = DenseOperator(torch.tensor([[3.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 0.0]]))
    >>> found = block_svds(J, blocks=2, rank=1)
    >>> [round(float(s), 4) for s in found.S[:, 0]], found.method
    ([3.0, 5.0], 'exact')
    """
    n = operator.shape[1]
    if blocks < 1 or n % blocks:
        raise ValueError(f"{n} columns are no {blocks} blocks of equal size")
    bar = ProgressBar(progress)
    counted = Counted(operator, bar)
    try:
        with full_precision(operator.device):
            return _Solver(counted, blocks, rank, tol, seed, max_memory, method).solve()
    finally:
        bar.close()


class _Solver:
    """What exact blocks and a shared range have in common: J = outer @ inner, probes, weights, certificates."""

    def __init__(self, operator: Counted, blocks: int, rank: int, tol: float, seed: int, max_memory: int | None,
                 method: str) -> None:
        self.operator, self.T, self.d = operator, blocks, operator.shape[1] // blocks
        self.tol, self.seed, self.max_memory = tol, seed, max_memory
        cut = useful_cut(operator)
        cut = cut if cut and cut.width else None  # through no units goes the zero map, whose triplets are zeros
        self.width = min(operator.shape[0], cut.width) if cut else operator.shape[0]
        self.k = min(rank, self.width, self.d)
        self.room = self._room(cut is not None)
        self.outer, self.inner = (None, operator) if cut is None else _through(operator, cut)
        exact, sought = self.width + FORWARD, FIRST + A_TRIPLET * self.k + A_COLUMN * KRYLOV_BLOCK
        self.by_range = method == "range" or (method == "auto" and sought <= WORTH_A_RANGE * exact)
        self.inner.expect(sought if self.by_range else exact)
        self.generator = generator_of(seed)
        probes = gaussian(self.width, WEIGHING + HELD_OUT, self.generator, operator)
        image = self.inner.rmatmat(probes)
        if not torch.isfinite(image).all():
            raise ValueError(f"{operator.operator!r} gives values that are not finite: the model's weights or its "
                             "input hold inf or nan, or a product overflows its dtype")
        image = image.reshape(self.T, self.d, -1)
        self.probes, self.image = probes[:, WEIGHING:].double(), image[..., WEIGHING:]
        # From probes of their own: a range is sought with these, and the others must know nothing of it.
        weighing = image[..., :WEIGHING].double()
        self.norms = torch.linalg.matrix_norm(weighing) / math.sqrt(WEIGHING)
        self.weights = torch.where(self.norms > 0, 1 / self.norms, 0.0).to(operator.dtype)
        self.factor = safety_factor(HELD_OUT, FAILURE / (self.T * self.k)) / math.sqrt(HELD_OUT)
        self.floors = rounding_floor(1.0, operator.dtype) * self.norms

    def solve(self) -> BlockSVDs:
        return self._by_range() if self.by_range else self._exact()

    def _exact(self) -> BlockSVDs:
        parts = []
        for group in self._groups():
            B = torch.empty(len(group), self.d, self.width, dtype=self.operator.dtype, device=self.operator.device)
            for start, stop, block in identity_blocks(self.width, B.dtype, B.device, self._columns()):
                rows = self.inner.rmatmat(block).reshape(self.T, self.d, stop - start)
                B[..., start:stop] = rows[group.start:group.stop]
            parts.append(self._triplets(B, None, group))
        return self._result("exact", parts, None, self.width, True)

    def _by_range(self) -> BlockSVDs:
        operator, scale = self.operator, self.weights.repeat_interleave(self.d)[:, None]
        Q = torch.empty(self.width, 0, dtype=operator.dtype, device=operator.device)
        B = torch.empty(self.T * self.d, 0, dtype=operator.dtype, device=operator.device)
        floor, limit = rounding_floor(math.sqrt(self.T), operator.dtype), self.width // 2
        if self.room is not None:  # a basis that grows is there twice for a moment
            limit = min(limit, self.room // (2 * self._column))
        probes = scale * gaussian(len(B), KRYLOV_BLOCK, self.generator, operator) / math.sqrt(len(B))
        due = self.k + KRYLOV_BLOCK
        while True:
            new = extend(Q, self.inner.matmat(probes), floor)[0][:, :self.width - Q.shape[1]]
            found = None if new.shape[1] else self._triplets(B.reshape(self.T, self.d, -1), Q, range(self.T))
            if found is not None and self._holds(found):  # all that the blocks have in common
                return self._result("range", [found], Q, Q.shape[1], True)
            everything = found is not None or Q.shape[1] + new.shape[1] > limit
            if everything:
                if len(self._groups()) > 1:
                    return self._exact()
                new = _complement(Q)
            image = torch.cat([self.inner.rmatmat(part) for part in new.split(self._columns(), 1)], 1)
            Q, B = torch.cat([Q, new], 1), torch.cat([B, image], 1)
            if everything or Q.shape[1] >= due:
                found = self._triplets(B.reshape(self.T, self.d, -1), Q, range(self.T))
                due = int(CHECK_GROWTH * Q.shape[1])
                if everything or self._holds(found):
                    return self._result("range", [found], Q, Q.shape[1], self._holds(found) or Q.shape[1] == self.width)
            probes = scale**2 * image

    def _holds(self, found: tuple[Tensor, ...]) -> bool:
        _, S, _, residuals = found
        allowed = torch.maximum(self.tol * S[:, :1].double(), 4 * self.floors[:, None])
        return bool((residuals <= allowed).all())

    @property
    def _column(self) -> int:
        """Bytes of a column over all blocks."""
        return self.T * self.d * self.operator.dtype.itemsize

    def _room(self, through_cut: bool) -> int | None:
        """Bytes for blocks and products, None for any: without the results, the left factor and the probes' images."""
        if self.max_memory is None:
            return None
        m, item = self.operator.shape[0], self.operator.dtype.itemsize
        fixed = item * self.k * self.T * (m + self.d) + 2 * item * m * self.width * through_cut
        room = self.max_memory - fixed - 2 * self._column * (WEIGHING + HELD_OUT)
        needed = item * self.d * self.width + 2 * self._column
        if room < needed:
            raise MemoryError(f"{self.k} triplets of each of {self.T} tokens need at least "
                              f"{(self.max_memory - room + needed) / 2**20:,.1f} MiB beside products, and max_memory "
                              f"leaves {self.max_memory / 2**20:,.1f}; give more, or a smaller rank")
        return room

    def _columns(self) -> int:
        """Columns of one adjoint product: a quarter of the room for its result."""
        return COLUMNS if self.room is None else max(1, min(COLUMNS, self.room // (4 * self._column)))

    def _groups(self) -> list[range]:
        """Blocks that are held at once."""
        if self.room is None:
            return [range(self.T)]
        one = self.d * self.width * self.operator.dtype.itemsize
        most = max(1, (self.room - 2 * self._column * self._columns()) // one)
        return [range(start, min(start + most, self.T)) for start in range(0, self.T, most)]

    def _triplets(self, B: Tensor, Q: Tensor | None, group: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Y (t, q, k), S (t, k), V (t, d, k) and the residuals (t, k) of the blocks J_tᵀQ (t, d, q) of a group."""
        apart = self._apart(B, Q, group)
        inside = self.probes if Q is None else Q.double().mT @ self.probes
        parts = []
        for i, t in enumerate(group):
            block = B[i].double()
            Y, S, V = leading(block, self.k, float(self.floors[t]), B.dtype)
            back = block.mT @ V
            forward = torch.linalg.norm(back - Y * S, dim=0)
            adjoint = torch.linalg.norm(block @ Y - V * S, dim=0)
            missed = self.factor * torch.linalg.norm(self.image[t].double().mT @ V - inside.mT @ back, dim=0)
            residual = torch.maximum(torch.hypot(forward, missed), adjoint) + apart * self.norms[t] + self.floors[t]
            parts.append((Y.to(B.dtype), S.to(B.dtype), V.to(B.dtype), torch.where(S > 0, residual, 0.0)))
        return tuple(torch.stack(part) for part in zip(*parts, strict=True))

    def _apart(self, B: Tensor, Q: Tensor | None, group: range) -> float:
        """Bound of ‖Qᵀ(J − J')D‖_F, J by forward products, J' by the adjoint ones that the blocks come from."""
        rows = slice(group.start * self.d, group.stop * self.d)
        X = torch.zeros(self.T * self.d, FORWARD, dtype=B.dtype, device=B.device)
        scale = self.weights[group.start:group.stop].repeat_interleave(self.d)[:, None]
        X[rows] = scale * gaussian(len(scale), FORWARD, generator_of(self.seed + 1), self.operator)
        image = self.inner.matmat(X)
        image = image if Q is None else Q.mT @ image
        gap = image.double() - B.reshape(len(scale), -1).mT.to(B.dtype) @ X[rows]
        return safety_factor(FORWARD) / math.sqrt(FORWARD) * float(torch.linalg.norm(gap.double()))

    def _result(self, method: str, parts: list, Q: Tensor | None, columns: int, converged: bool) -> BlockSVDs:
        Y, S, V, residuals = (torch.cat(part) for part in zip(*parts, strict=True))
        left = self.outer if Q is None else Q if self.outer is None else self.outer @ Q
        scale = self.operator.scale or 1.0
        return BlockSVDs(Y if left is None else left @ Y, S / scale, V, residuals / scale, self.norms / scale, method,
                         self.operator.products, self.seed, converged, {"width": self.width, "columns": columns})


def leading(block: Tensor, k: int, floor: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Y (q, k), S (k,), V (d, k) of block (d, q) = V diag(S) Yᵀ, all float64; zeros below `floor`, and beyond the rank.

    In float32 from the eigenvectors of the smaller Gram matrix, which has digits to spare in float64; else by an SVD.
    """
    if dtype is not torch.float32:
        V, S, Yt = torch.linalg.svd(block, full_matrices=False)
        Y, S, V = Yt.mT[:, :k], S[:k], V[:, :k]
    else:
        turned = block.shape[0] < block.shape[1]
        tall = block.mT if turned else block
        right = leading_eigh(tall.mT @ tall, k)
        image = tall @ right
        S = torch.linalg.norm(image, dim=0)
        left = image / S.clamp_min(torch.finfo(torch.float64).tiny)
        Y, V = (left, right) if turned else (right, left)
    alive = floor < S
    missing = k - len(S)
    return tuple(F.pad(part * alive, (0, missing)) for part in (Y, S, V))


def _through(operator: Counted, cut: Cut) -> tuple[Tensor, LinearOperator]:
    """outer (m, w), orthonormal, and inner (w, n) with J = outer @ inner."""
    dense = torch.empty(cut.left.shape, dtype=operator.dtype, device=operator.device)
    for start, stop, block in identity_blocks(cut.width, operator.dtype, operator.device):
        dense[:, start:stop] = cut.left.matmat(block)
        operator.add(stop - start)
    Q, C = tall_qr(dense)
    return Q, Counted(ComposedOperator(DenseOperator(C.to(operator.dtype)), cut.right), operator.bar, operator)


def _complement(Q: Tensor) -> Tensor:
    """An orthonormal basis of what is orthogonal to Q (w, q)."""
    return torch.linalg.qr(Q.double(), mode="complete")[0][:, Q.shape[1]:].to(Q.dtype)
