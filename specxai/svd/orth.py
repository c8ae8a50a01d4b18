"""Orthonormal bases of tall blocks: CholeskyQR2 with a double-precision Gram matrix, and Householder where it fails.

X (m, b) = Q C.  CholeskyQR is one Gram matrix and one triangular solve, matrix products throughout; a second pass
brings the orthogonality down to the working precision (Yamamoto et al. 2015), a shift with a third pass carries it
through where the Gram matrix is not numerically definite (Fukaya et al. 2020, arXiv 1809.11085).  Well-conditioned
columns, as those of most blocks are, need the first pass only.

The CPU looks at the numbers as it goes, and leaves out what they need not.  On a device a look is a wait: there the
same is done without one, and a flag at the end says whether it was enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specxai import native
from specxai.native import cuda
from specxai.native.checks import takes

__all__ = ["defers", "difference_norms", "extend", "extend_unseen", "gram", "leading_eigh", "range_basis", "row_chunks",
           "tall_product", "tall_qr"]

# Numbers taken to double precision at a time: what a second-level cache holds, so that no copy ever reaches memory.
CHUNK = 1 << 16
# The last pass of CholeskyQR starts from columns at most this far from orthonormal, ‖QᵀQ − I‖_F: then its triangle is
# well conditioned, and what it returns is orthonormal to the rounding of one product.
NEARLY = 0.5
# Up to this condition number (of unit columns) one pass is nearly as good as two: it leaves columns that are
# orthonormal to eps κ in float32, whose Gram matrix has digits to spare, and to eps κ² in float64.
WELL_CONDITIONED = 4

# Up to this condition number (of unit columns) what is left of a block hardly multiplies its projection's rounding.
INDEPENDENT = 10

# Columns up to which the compiled projection, which reads a basis once, beats two matrix products.
NARROW = 32


def defers(device: torch.device) -> bool:
    """Is a wait for this device worth avoiding?  The CPU has its numbers at hand, and decides as it goes."""
    return device.type != "cpu"


def gram(X: Tensor, Y: Tensor | None = None) -> Tensor:
    """Xᵀ Y (Xᵀ X without Y), accumulated in float64 on the device of X."""
    Y = X if Y is None else Y
    if cuda.takes(X) and cuda.takes(Y):
        return cuda.gram(X, Y)
    if native.available()[0] and takes(X) and takes(Y):
        return native.gram(X, Y)
    total = torch.zeros(X.shape[1], Y.shape[1], dtype=torch.float64, device=X.device)
    for rows in row_chunks(X):
        left = X[rows].double()
        right = left if Y is X else Y[rows].double()
        total.addmm_(left.mT, right)
    return total


def row_chunks(X: Tensor):
    """Slices over the rows of X (m, b), each of about CHUNK numbers; all rows at once away from the CPU."""
    rows = max(1, X.shape[0] if X.device.type != "cpu" else CHUNK // max(1, X.shape[1]))
    for start in range(0, X.shape[0], rows):
        yield slice(start, start + rows)


def tall_qr(X: Tensor, overwrite: bool = False) -> tuple[Tensor, Tensor]:
    """Q (m, min(m, b)) with orthonormal columns in X's dtype, and C (min(m, b), b) in float64, with X = Q C.

    overwrite   Q may take X's memory
    """
    m, b = X.shape
    if b == 0 or m == 0:
        return X.new_zeros(m, 0), torch.zeros(0, b, dtype=torch.float64, device=X.device)
    before = torch.eye(b, dtype=torch.float64, device=X.device)
    if b <= m and defers(X.device):
        Q, C, good = _qr_unseen(X)
        if bool(good):
            return Q, C
    if b <= m:
        X, before, done = _cholesky_qr(X, overwrite and X.is_contiguous())
        if done:
            return X, before
    Q, C = torch.linalg.qr(X)
    return Q, C.double() @ before


def _cholesky_qr(X: Tensor, overwrite: bool) -> tuple[Tensor, Tensor, bool]:
    """CholeskyQR2, with a third pass where X is ill conditioned: Q, C, and whether that was enough; X = Q C anyway."""
    m, b = X.shape
    unit = torch.eye(b, dtype=torch.float64, device=X.device)
    Q, C, passes = X, unit, 2
    for step in range(3):
        G = gram(Q)
        if not torch.isfinite(G).all():
            break
        if step == passes - 1 and torch.linalg.norm(G - unit) > NEARLY:
            if passes == 3:
                break
            passes = 3
        L, failed = torch.linalg.cholesky_ex(G)
        if failed and step == 0:
            L, failed = torch.linalg.cholesky_ex(G + _shift(X, G) * unit)
            passes = 3
        if failed:
            break
        anew = step == 0 and not (overwrite and passes == 2)  # what fails later is begun again, from X
        if cuda.takes(Q) and b <= cuda.MOST_SOLVED:
            Q = cuda.solve_triangular(Q, L.mT.contiguous(), out=None if anew else Q)
        else:
            # The small inverse makes the tall step one product; what it loses the next pass repairs.
            inverse = torch.linalg.solve_triangular(L.mT, unit, upper=True).to(X.dtype)
            if anew:
                Q = tall_product(X, inverse)
            else:  # in place: pages that are new cost more than the product
                for rows in row_chunks(Q):
                    Q[rows] = Q[rows] @ inverse
        C = L.mT @ C
        # To ask for the condition number costs about half an SVD: not where the second pass costs less.
        asks = step == 0 and passes == 2 and small_svd_cost(b) <= 6 * m * b**2
        if step == passes - 1 or (asks and _condition(C) <= WELL_CONDITIONED):
            return Q, C, True
    return (Q, C, False) if overwrite and Q is X else (X, unit, False)


def _condition(C: Tensor) -> float:
    """Condition number of C's columns, each brought to unit norm; that of X's for X = Q C."""
    s = torch.linalg.svdvals(C / torch.linalg.norm(C, dim=0))
    return float(s[0] / s[-1])


def tall_product(X: Tensor, M: Tensor, overwrite: bool = False) -> Tensor:
    """X M for tall X (m, b) and small M (b, k), in X's dtype; `overwrite`: it may take X's memory."""
    M = M.to(X.dtype)
    if X.device.type != "cpu":
        return X @ M
    if overwrite and M.shape[1] <= M.shape[0] and X.is_contiguous():
        # Row i of the result ends before row i + 1 of X begins.
        product = X.view(-1)[: len(X) * M.shape[1]].view(len(X), M.shape[1])
        for rows in row_chunks(X):
            product[rows] = X[rows] @ M
        return product
    if _lies_by_columns(X, M.shape[1]):
        zeros = native.empty(len(X), M.shape[1], dtype=X.dtype).zero_()
        return native.subtract(X.mT, -M.double().contiguous(), zeros, out=zeros)
    return torch.mm(X, M, out=native.empty(len(X), M.shape[1], dtype=X.dtype))


def difference_norms(X: Tensor, A: Tensor, Y: Tensor, B: Tensor) -> Tensor:
    """‖X A − Y B‖ of each column in float64, (k,), for tall X and Y and small A and B."""
    total = torch.zeros(A.shape[1], dtype=torch.float64, device=X.device)
    for rows in row_chunks(X):
        total += (X[rows].double() @ A - Y[rows].double() @ B).square_().sum(0)
    return total.sqrt()


def range_basis(X: Tensor, floor: float, overwrite: bool = False) -> tuple[Tensor, Tensor]:
    """Basis Q (m, r) of the directions of X with singular value above `floor`, and C (r, b) with X ≈ Q C.

    What is dropped has spectral norm at most `floor`.  `overwrite` as for `tall_qr`.
    """
    if X.shape[1] <= len(X) and X.numel() and defers(X.device):
        Q, C, good = _qr_unseen(X)
        if bool(good & _above(C, floor)):
            return Q, C
    Q, C = tall_qr(X, overwrite)
    if C.shape[0] == C.shape[1] and bool((torch.linalg.svdvals(C) > floor).all()):
        return Q, C
    A, s, Bt = small_svd(C)
    r = int((s > floor).sum())
    return Q @ A[:, :r].to(Q.dtype), s[:r, None] * Bt[:r]


def extend(basis: Tensor, X: Tensor, floor: float, overwrite: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The part of X outside an orthonormal `basis` (m, q): new Q (m, r), H (q, b), C (r, b), X ≈ basis H + Q C.

    Block classical Gram-Schmidt, twice where it is needed.  The second projection acts on the unit columns of the
    first, so that a nearly dependent X does not blow rounding errors up (Barlow & Smoktunowicz 2013).  `overwrite` as
    for `tall_qr`.
    """
    if basis.shape[1] == 0:
        Q, C = range_basis(X, floor, overwrite)
        return Q, C.new_zeros(0, X.shape[1]), C
    if 0 < X.shape[1] <= len(X) - basis.shape[1] and defers(X.device):
        Q, H, C, good = extend_unseen(basis, X, floor)
        if bool(good):
            return Q, H, C
    twice = _on_gpu(basis, X)
    H, outside = _project_out_twice(basis, X) if twice else project_out(basis, X)
    Q, C = range_basis(outside, floor)
    if C.shape[0] == C.shape[1] > 0 and _condition(C) <= INDEPENDENT and (twice or _passes_on(H, C) <= 1):
        return Q, H, C
    H2, outside = project_out(basis, Q)
    # A unit column that loses half of itself here was rounding noise, not a new direction.
    Q, C2 = range_basis(outside, 0.5)
    return Q, H + H2 @ C, C2 @ C


def extend_unseen(basis: Tensor, X: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The part of X (m, b) outside an orthonormal `basis` (m, q): Q (m, b), H (q, b), C (b, b), X = basis H + Q C.

    The last is a flag (): Q is orthonormal and orthogonal to the basis to the rounding of one product, and all of C is
    above `floor`.  Where it is not set only X = basis H + Q C may hold.

    One pass of CholeskyQR, two in float64, between the projections, so that the second acts on unit columns, and one
    after them.
    """
    unit = torch.eye(X.shape[1], dtype=torch.float64, device=X.device)
    H, Q = project_out(basis, X)
    Q, C = _first_passes(Q, unit)
    again, Q = project_out(basis, Q)
    H = H + again @ C
    Q, more, good = _pass_unseen(Q, unit)
    C = more @ C
    return Q, H, C, good & _above(C, floor)


def _qr_unseen(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q (m, b), C (b, b) of X (m, b) with b ≤ m, and a flag (): is Q orthonormal?  X = Q C may hold anyway."""
    unit = torch.eye(X.shape[1], dtype=torch.float64, device=X.device)
    Q, C = _first_passes(X, unit)
    Q, more, good = _pass_unseen(Q, unit)
    return Q, more @ C, good


def _first_passes(X: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """X = Q C with nearly orthonormal columns, for a last pass to begin from.

    In float64, whose Gram matrix has no digits to spare, two passes, the first shifted where the matrix is not definite
    (Fukaya et al. 2020, arXiv 1809.11085).
    """
    Q, C, _ = _pass_unseen(X, unit, X.dtype is torch.float64)
    if X.dtype is torch.float64:
        Q, more, _ = _pass_unseen(Q, unit)
        C = more @ C
    return Q, C


def _pass_unseen(X: Tensor, unit: Tensor, shifts: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """X = Q C by one pass of CholeskyQR, and a flag: was X so near to orthonormal that Q is?

    `shifts`: by the least amount that makes the Gram matrix definite in theory, where it is not in numbers.
    """
    G = gram(X)
    L, failed = torch.linalg.cholesky_ex(G)
    if shifts:
        shifted, failed_again = torch.linalg.cholesky_ex(G + _shift(X, G) * unit)
        L, failed = torch.where(failed == 0, L, shifted), torch.where(failed == 0, failed, failed_again)
    good = (failed == 0) & (torch.linalg.norm(G - unit) <= NEARLY)
    if cuda.takes(X) and X.shape[1] <= cuda.MOST_SOLVED:
        return cuda.solve_triangular(X, L.mT.contiguous()), L.mT, good
    return tall_product(X, torch.linalg.solve_triangular(L.mT, unit, upper=True)), L.mT, good


def _above(C: Tensor, floor: float) -> Tensor:
    """Flag (): all singular values of a triangle are above the floor, by σ_min ≥ 1/‖C⁻¹‖_F; a NaN is not."""
    unit = torch.eye(len(C), dtype=C.dtype, device=C.device)
    return floor * torch.linalg.norm(torch.linalg.solve_triangular(C, unit, upper=True)) < 1


def _shift(X: Tensor, G: Tensor) -> Tensor:
    """Fukaya et al., eq. 4.1, with the unit roundoff of the Gram matrix' own precision."""
    m, b = X.shape
    return 11 * (m * b + b * (b + 1)) * torch.finfo(torch.float64).eps / 2 * G.diagonal().max()


def _passes_on(H: Tensor, C: Tensor) -> float:
    """‖H C⁻¹‖₂, by which one projection multiplies what the basis lacks in orthogonality, for new columns to have.

    Above one, it would grow from block to block.
    """
    ratio = torch.linalg.solve_ex(C.mT, H.mT)[0]
    return float(torch.linalg.matrix_norm(ratio, 2)) if bool(torch.isfinite(ratio).all()) else float("inf")


def project_out(basis: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients H (q, b) in float64 and X − basis H, for an orthonormal basis (m, q)."""
    if _on_gpu(basis, X):
        H = cuda.coefficients(basis.mT, X)
        return H, cuda.subtract(basis.mT, H, X)
    if _lies_by_columns(basis, X.shape[1]) and takes(X) and basis.dtype is X.dtype:
        H = native.coefficients(basis.mT, X)
        return H, native.subtract(basis.mT, H, X)
    H = (basis.mT @ X).double()
    return H, X - basis @ H.to(X.dtype)


def _project_out_twice(basis: Tensor, X: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a second projection, by the compiled kernels: three readings of the basis instead of four."""
    H = cuda.coefficients(basis.mT, X)
    outside, again = cuda.reorthogonalise(basis.mT, H, X)
    return H + again, cuda.subtract(basis.mT, again, outside, out=outside)


def _on_gpu(basis: Tensor, X: Tensor) -> bool:
    """Do the compiled kernels of a GPU take a basis that lies by columns, and the few columns of X?"""
    return (X.shape[1] <= cuda.MOST_SPAN_WIDTH and basis.dtype is X.dtype and cuda.takes(X) and cuda.takes(basis.mT))


def _lies_by_columns(basis: Tensor, columns: int) -> bool:
    """Is a basis one for the kernels that read it once for a few columns?"""
    return columns <= NARROW and native.available()[0] and takes(basis.mT)


def small_svd_cost(size: int) -> int:
    """Operations that weigh as much as `small_svd` of (size, size): LAPACK reaches a small part of a product's rate."""
    return 8 * 22 * size**3


def small_eigh_cost(size: int) -> int:
    """The same for `small_eigh`."""
    return small_svd_cost(size) // 4


def small_svd(T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of a projected matrix in float64; the factors lie on T's device.

    On the CPU up to size 1500, where LAPACK beats a GPU.
    """
    A, s, Bt = torch.linalg.svd(_at_lapack(T), full_matrices=False)
    return A.to(T.device), s.to(T.device), Bt.to(T.device)


def small_eigh(G: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (w, w) and eigenvalues (w,), the largest first, of a symmetric G; where `small_svd` runs."""
    values, vectors = torch.linalg.eigh(_at_lapack(G))
    return vectors.flip(1).to(G.device), values.flip(0).to(G.device)


def leading_eigh(G: Tensor, k: int) -> Tensor:
    """Eigenvectors (…, w, k) of the k largest eigenvalues, the largest first, of symmetric G (…, w, w) in float64."""
    size = G.shape[-1]
    if G.device.type != "cpu" or 6 * k > size or not G.numel():
        return torch.linalg.eigh(G)[1][..., size - k:].flip(-1)
    from scipy.linalg import eigh  # torch's finds all of them, at three times the cost

    found = [torch.from_numpy(eigh(one.numpy(), subset_by_index=[size - k, size - 1], check_finite=False)[1].copy())
             for one in G.reshape(-1, size, size)]
    return torch.stack(found).reshape(*G.shape[:-1], k).flip(-1)


def _at_lapack(T: Tensor) -> Tensor:
    return T.detach().to(T.device if min(T.shape) > 1500 else "cpu", torch.float64)
