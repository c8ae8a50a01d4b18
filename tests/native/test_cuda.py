"""The CUDA kernels' index arithmetic, emulated on the CPU, against sums and lists written out in torch."""

from __future__ import annotations

import pytest
import torch

from cuda_harness import both_orders, on_cpu  # noqa: F401  a fixture
from specxai import native
from specxai.native import cuda
from specxai.svd import orth
from test_stages import i32, random_stage, rows
from tolerances import assert_close

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 255, 256, 4095, 4096, 4097, 40_000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_compact(n, share):
    mask = torch.rand(n) < share
    live = cuda.compact(mask)
    count = int(live.count)
    assert torch.equal(live.at[:count], mask.nonzero().flatten().int())
    assert torch.equal(live.rank, torch.where(mask, mask.cumsum(0) - 1, -1).int())
    both_orders(lambda: (cuda.compact(mask).at[:count], cuda.compact(mask).rank))


@pytest.mark.parametrize("lines, width", [(1, 1), (3, 7), (17, 8), (5, 9), (700, 13), (1, 5000), (4, 0), (0, 3)])
@pytest.mark.parametrize("dead", [0.0, 0.6, 1.0])
def test_live_lists(lines, width, dead):
    table = torch.randint(0, 1000, (lines, width)).int()
    table[torch.rand(lines, width) < dead] = -1
    lists = cuda.live_lists(table)
    line, column = (table >= 0).nonzero(as_tuple=True)
    assert lists.begin.tolist() == [int((line < i).sum()) for i in range(lines + 1)]
    assert torch.equal(lists.row[:len(line)], table[line, column])
    assert torch.equal(lists.column[:len(line)], column.int())


def test_more_tiles_than_a_block_scans_at_once():
    mask = torch.rand(256 * 4096 * 2 + 5) < 0.5
    live = cuda.compact(mask)
    assert torch.equal(live.at[:int(live.count)], mask.nonzero().flatten().int())


@pytest.mark.parametrize("n", [0, 1, 255, 1000])
def test_map_rows(n):
    table = torch.randint(0, 10**6, (50,)).int()
    given = torch.randint(-1, 50, (n,)).int()
    assert torch.equal(both_orders(lambda: cuda.map_rows(given, table)), native.map_rows(given, table))


@pytest.mark.parametrize("inside, outside, taps, groups", [(9, 4, 3, 1), (20, 300, 9, 3), (5, 0, 2, 2), (3, 7, 0, 2)])
def test_neighbours(inside, outside, taps, groups):
    neighbours = torch.randint(-1, inside, (outside, taps)).int()
    cells = torch.rand(inside, groups) < 0.3
    want = torch.zeros(outside, groups, dtype=torch.bool)
    for s, near in enumerate(neighbours.tolist()):
        for q in near:
            want[s] |= cells[q] if q >= 0 else False
    assert torch.equal(both_orders(lambda: cuda.any_neighbour(cells, neighbours)), want)
    table = torch.randint(-1, 99, (inside, groups * 5)).int()
    got = both_orders(lambda: cuda.tap_rows(table, neighbours, groups))
    padded = torch.cat([table, torch.full_like(table[:1], -1)]).reshape(-1, groups, 5)
    assert torch.equal(got, padded[neighbours.long()].transpose(1, 2).reshape(outside, groups, taps, 5))


def test_places_that_a_table_does_not_have_are_none():
    far = torch.tensor([[0, 5, 2**31 - 1, -(2**31)]], dtype=torch.int32)
    assert cuda.map_rows(far, i32([7, 8])).tolist() == [[7, -1, -1, -1]]
    assert cuda.any_neighbour(torch.tensor([[False]]), far).tolist() == [[False]]
    assert cuda.tap_rows(i32([[3]]), far, 1).flatten().tolist() == [3, -1, -1, -1]


SHAPES = {
    "ragged": {"sites": 8, "groups": 3},
    "wide": {"sites": 20, "depth": 70, "made": 150},
    "one unit": {"sites": 3, "depth": 1, "made": 1},
    "7 of 8": {"sites": 2, "depth": 8, "made": 7, "dead": (0.0, 0.0)},
    "9": {"sites": 2, "depth": 9, "made": 9, "dead": (0.0, 0.0)},
    "chunks": {"sites": 2, "depth": 16, "made": 64, "dead": (0.0, 0.0)},
    "no inputs": {"sites": 4, "dead": (1.0, 0.2)},
    "no outputs": {"sites": 4, "dead": (0.2, 1.0)},
}


@pytest.mark.parametrize("probes", [1, 3, 4, 5, 8, 16, 17, 64, 65, 100])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gather_gemm(dtype, shape, probes):
    arguments, dense = random_stage(dtype=dtype, **shape)
    stage, Z = cuda.GatherGemm(**arguments), torch.randn(dense.shape[1], probes, dtype=dtype)
    written = rows(arguments["outside"])

    def run():
        out = torch.full((len(dense), probes), torch.nan, dtype=dtype)
        stage.run(Z, out)
        return out

    got = both_orders(run)
    left = torch.ones(len(dense), dtype=torch.bool).index_fill_(0, written, False)
    assert got[left].isnan().all(), "rows that are no outputs were written"
    assert_close(got[written], (dense @ Z)[written], factor=4)
    stage.run(Z, got, accumulate=True)
    assert_close(got[written], 2 * (dense @ Z)[written], factor=4)


@pytest.mark.parametrize("pitch", [6, 8])
@pytest.mark.parametrize("shift", [0, 1])
def test_columns_of_a_wider_block(dtype, pitch, shift):
    """Addresses and strides that are multiples of sixteen bytes, and others."""
    arguments, dense = random_stage(6, dtype)
    wide = torch.randn(dense.shape[1], pitch + 2, dtype=dtype)
    out = torch.full((len(dense), pitch + 1), torch.nan, dtype=dtype)
    Z, written = wide[:, shift:shift + 4], rows(arguments["outside"])
    cuda.GatherGemm(**arguments).run(Z, out[:, 1:5])
    assert_close(out[written, 1:5], (dense @ Z)[written], factor=4)
    assert out[:, [0, *range(5, pitch + 1)]].isnan().all()


def test_taps_up_to_the_limit():
    taps, made = cuda.MOST_TAPS, cuda.compiled()
    assert (taps, cuda.MOST_SOLVED, cuda.MOST_SPAN_WIDTH) == (made.most_taps, made.most_solved, made.most_span_width)
    inside = torch.arange(taps * 2, dtype=torch.int32).reshape(taps, 2)
    inside[::3, 0] = -1
    weight = torch.randn(5, taps, 2)
    arguments = {"inside": inside, "outside": i32([[0, 1, 2, 3, 4]]),
                 "neighbours": torch.randperm(taps).int()[None], "weight": weight}
    Z, out = torch.randn(2 * taps, 8), torch.empty(5, 8)
    cuda.GatherGemm(**arguments).run(Z, out)
    near = inside[arguments["neighbours"][0].long()]
    want = (weight.double() * (near >= 0)).flatten(1) @ Z[near.clamp(min=0).flatten().long()].double()
    assert_close(out, want, factor=4)
    with pytest.raises(ValueError, match="1025 taps, more than the 1024"):
        cuda.GatherGemm(**arguments | {"neighbours": torch.zeros(1, 1025, dtype=torch.int32),
                                       "weight": torch.zeros(5, 1025, 2)})


@pytest.mark.parametrize("m, b, c", [(1000, 7, 0), (333, 64, 0), (100, 65, 13), (1, 1, 1), (0, 3, 2), (50, 0, 4),
                                     (20_000, 9, 0), (64, 130, 0)])
def test_gram(dtype, m, b, c):
    X = torch.randn(m, b, dtype=dtype)
    Y = torch.randn(m, c, dtype=dtype) if c else None
    got = both_orders(lambda: cuda.gram(X, Y))
    torch.testing.assert_close(got, X.double().mT @ (X if Y is None else Y).double(), rtol=1e-13, atol=1e-11)
    if Y is None:
        assert torch.equal(got, got.mT)


def test_blocks_that_begin_alike_are_not_one_block():
    memory = torch.randn(30 * 130)
    X, Y = memory.view(30, 130), memory[:30 * 7].view(30, 7)
    for left, right in ((X, Y), (Y, X)):
        torch.testing.assert_close(both_orders(lambda left=left, right=right: cuda.gram(left, right)),
                                   left.double().mT @ right.double(), rtol=1e-13, atol=1e-11)


@pytest.mark.parametrize("m, b", [(1, 1), (100, 7), (65, 8), (64, 9), (200, 64), (33, 128), (0, 4), (5, 0)])
def test_solve_triangular(dtype, m, b):
    Q = torch.randn(m, b, dtype=torch.float64)
    R = torch.randn(b, b, dtype=torch.float64).triu(1) / max(b, 1) ** 0.5 + 2 * torch.eye(b, dtype=torch.float64)
    X = (Q @ R).to(dtype)
    R += torch.full_like(R, torch.nan).tril(-1).nan_to_num(nan=5.0)  # what lies below the diagonal is not read
    got = both_orders(lambda: cuda.solve_triangular(X, R))
    # Backward error, row by row: what a substitution in this precision may leave.
    bound = 4 * (b + 1) * torch.finfo(dtype).eps * (got.double().abs() @ R.triu().abs() + X.double().abs())
    assert ((got.double() @ R.triu() - X.double()).abs() <= bound).all()
    assert cuda.solve_triangular(X, R, out=X) is X
    assert torch.equal(X, got)


def test_cholesky_qr_twice(dtype):
    X = torch.randn(3000, 64, dtype=dtype) @ torch.diag(torch.logspace(0, -3, 64)).to(dtype)
    Q = X
    for _ in range(2):
        R = torch.linalg.cholesky(cuda.gram(Q)).mT.contiguous()
        Q = cuda.solve_triangular(Q, R)
    G = Q.double().mT @ Q.double()
    assert (G - torch.eye(64)).abs().max() < 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("m, q, b", [(5000, 13, 4), (2077, 40, 1), (333, 5, 16), (70, 33, 9), (129, 64, 32), (3, 1, 2),
                                     (64, 32, 8), (0, 4, 2), (50, 0, 4), (50, 3, 0), (20_000, 3, 3)])
def test_span(dtype, m, q, b):
    basis, X = torch.randn(q, m, dtype=dtype), torch.randn(m, b, dtype=dtype)
    H = both_orders(lambda: cuda.coefficients(basis, X))
    size = basis.double().abs() @ X.double().abs() + 1
    assert ((H - basis.double() @ X.double()).abs() <= 1e-13 * size).all(), "sums are in float64"
    left = both_orders(lambda: cuda.subtract(basis, H, X))
    want = X.double() - basis.double().mT @ H
    size = X.double().abs() + basis.double().abs().mT @ H.abs()
    bound = torch.finfo(dtype).eps * want.abs() + (q + 2) * torch.finfo(torch.float64).eps * size
    assert ((left - want).abs() <= bound).all(), "sums are in float64 and rounded once"
    again, H2 = both_orders(lambda: cuda.reorthogonalise(basis, H, X))
    assert torch.equal(again, left)
    assert torch.equal(H2, cuda.coefficients(basis, left))
    assert cuda.subtract(basis, H, X, out=X) is X
    assert torch.equal(X, left)


def test_twice_is_enough():
    """Classical Gram-Schmidt in three readings of the basis leaves what rounding leaves."""
    basis = torch.linalg.qr(torch.randn(4000, 50, dtype=torch.float64))[0].mT.float().contiguous()
    X = (basis.mT @ torch.randn(50, 4) + 1e-4 * torch.randn(4000, 4)).contiguous()  # mostly within the span
    H = cuda.coefficients(basis, X)
    Z, H2 = cuda.reorthogonalise(basis, H, X)
    Z = cuda.subtract(basis, H2, Z)
    assert (basis.double() @ Z.double()).norm() <= 1e-6 * Z.double().norm()


def test_orthonormal_bases_stand_on_them(dtype, monkeypatch):
    """The solvers' orthonormalisation on a GPU, with its kernels emulated."""
    called = []

    def counted(name: str):
        real = getattr(cuda, name)
        return lambda *arguments, **named: (called.append(name), real(*arguments, **named))[1]

    for name in ("gram", "solve_triangular", "reorthogonalise"):
        monkeypatch.setattr(cuda, name, counted(name))
    eps = torch.finfo(dtype).eps
    basis = orth.tall_qr(torch.randn(3000, 40, dtype=dtype))[0]
    assert set(called) == {"gram", "solve_triangular"}
    by_columns = basis.mT.contiguous().mT
    for X in (torch.randn(3000, 8, dtype=dtype),
              (basis @ torch.randn(40, 4, dtype=dtype) + 1e-3 * torch.randn(3000, 4, dtype=dtype)),
              torch.randn(3000, 1, dtype=dtype) + 1e-3 * torch.randn(3000, 4, dtype=dtype)):
        Q, H, C = orth.extend(by_columns, X.contiguous(), 0.0)
        assert (Q.double().mT @ Q.double() - torch.eye(Q.shape[1])).abs().max() <= 64 * eps
        assert (basis.double().mT @ Q.double()).abs().max() <= 64 * eps
        assert_close((basis.double() @ H + Q.double() @ C).to(dtype), X)
    assert called.count("reorthogonalise") == 3
    for columns in (4, 40):  # few, by the projection's own kernels; many, by two products
        X = torch.randn(3000, columns, dtype=dtype) + basis @ torch.randn(40, columns, dtype=dtype)
        Q, H, C, good = orth.extend_unseen(by_columns, X, 1e-3)
        assert bool(good)
        assert (Q.double().mT @ Q.double() - torch.eye(columns)).abs().max() <= 64 * eps
        assert (basis.double().mT @ Q.double()).abs().max() <= 64 * eps
        assert_close((basis.double() @ H + Q.double() @ C).to(dtype), X)


@pytest.mark.parametrize("call, error, message", [
    (lambda: cuda.compact(torch.zeros(3)), TypeError, "mask must be torch.bool, got torch.float32"),
    (lambda: cuda.compact([True]), TypeError, "mask must be a torch.Tensor, got list"),
    (lambda: cuda.compact(torch.zeros(4, dtype=torch.bool)[::2]), ValueError, "mask must be contiguous"),
    (lambda: cuda.compact(torch.zeros(4, dtype=torch.bool, device="meta")), ValueError, "mask must be on a cpu device"),
    (lambda: cuda.live_lists(i32([1, 2])), ValueError, "table must have 2 dimension"),
    (lambda: cuda.tap_rows(i32([[1, 2, 3]]), i32([[0]]), 2), ValueError, "3 columns of inside do not divide into 2"),
    (lambda: cuda.gram(torch.zeros(2, 2).half()), TypeError, "take float32 and float64"),
    (lambda: cuda.gram(torch.zeros(2, 2), torch.zeros(3, 2)), ValueError, "one number of rows is needed"),
    (lambda: cuda.solve_triangular(torch.zeros(2, 2), torch.eye(3).double()), ValueError, r"R must be \(2, 2\)"),
    (lambda: cuda.solve_triangular(torch.zeros(2, 200), torch.eye(200).double()), ValueError, "use torch.linalg"),
    (lambda: cuda.coefficients(torch.zeros(2, 3), torch.zeros(4, 1)), ValueError, "have 3 numbers, X has 4 rows"),
    (lambda: cuda.coefficients(torch.zeros(2, 4), torch.zeros(4, 33)), ValueError, "33 columns, more than 32"),
    (lambda: cuda.subtract(torch.zeros(2, 4), torch.zeros(2, 2), torch.zeros(4, 2)), TypeError, "H must be .*float64"),
])
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("inside", lambda t: t.long(), TypeError, "inside must be torch.int32"),
    ("inside", lambda t: t[:, :-1].contiguous(), ValueError, "but inside is"),
    ("outside", lambda t: t * 0, ValueError, "outside holds a row twice"),
    ("outside", lambda t: t[1:], ValueError, "neighbours must be"),
    ("neighbours", lambda t: t + 9, ValueError, "names position 1[0-9] of 9"),
    ("weight", lambda t: t.half(), TypeError, "float16"),
])
def test_stages_that_do_not_fit(name, change, error, message):
    arguments, _ = random_stage(4, torch.float32)
    with pytest.raises(error, match=message):
        cuda.GatherGemm(**arguments | {name: change(arguments[name])})


def test_blocks_that_do_not_fit():
    arguments, dense = random_stage(4, torch.float32)
    stage, Z, out = cuda.GatherGemm(**arguments), torch.zeros(dense.shape[1], 4), torch.zeros(len(dense), 4)
    assert stage.bytes > 0
    for block, to, error, message in ((Z[:3], out, ValueError, "block must have at least"),
                                      (Z, out[:, :3], ValueError, "block holds 4 probes a row, out 3"),
                                      (Z.double(), out, TypeError, "block must be torch.float32"),
                                      (Z.T.contiguous().T, out, ValueError, "contiguous probes")):
        with pytest.raises(error, match=message):
            stage.run(block, to)
