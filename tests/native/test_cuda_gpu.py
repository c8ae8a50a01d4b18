"""The CUDA kernels on a card: values, the same bits twice, other streams, and within a CUDA graph."""

from __future__ import annotations

import os

import pytest
import torch

from specxai.native import cuda
from test_stages import random_stage, rows
from tolerances import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
              pytest.mark.skipif(not cuda.available()[0], reason=cuda.available()[1])]


def twice(run, *arguments):
    """What `run` returns for them: with the same bits on another stream, and from a graph that is captured and
    replayed, which fails where anything waits for the device."""
    found = run(*arguments)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        again = run(*arguments)
    stream.synchronize()
    assert torch.equal(found, again)
    if os.environ.get("SPECXAI_TEST_GRAPHS") != "0":  # as under compute-sanitizer
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = run(*arguments)
        captured.zero_()
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(found, captured)
    return found.cpu()


@pytest.mark.parametrize("n", [0, 1, 9, 4097, 3_000_000])
def test_compact_small(n):
    mask = torch.rand(n) < 0.4
    live = cuda.compact(mask.cuda())
    count = int(live.count)
    assert torch.equal(live.at[:count].cpu(), mask.nonzero().flatten().int())
    assert torch.equal(twice(lambda given: cuda.compact(given).rank, mask.cuda()),
                       torch.where(mask, mask.cumsum(0) - 1, -1).int())


def test_tables_small():
    table = torch.randint(-1, 99, (50, 3 * 5)).int()
    neighbours = torch.randint(-1, 50, (300, 9)).int()
    lists = cuda.live_lists(table.cuda())
    line, column = (table >= 0).nonzero(as_tuple=True)
    assert torch.equal(lists.row[:len(line)].cpu(), table[line, column])
    assert torch.equal(lists.column[:len(line)].cpu(), column.int())
    padded = torch.cat([table, torch.full_like(table[:1], -1)]).reshape(-1, 3, 5)
    got = twice(cuda.tap_rows, table.cuda(), neighbours.cuda(), 3)
    assert torch.equal(got, padded[neighbours.long()].transpose(1, 2).reshape(300, 3, 9, 5))
    cells = torch.rand(50, 3) < 0.3
    want = torch.cat([cells, torch.zeros_like(cells[:1])])[neighbours.long()].any(1)
    assert torch.equal(twice(cuda.any_neighbour, cells.cuda(), neighbours.cuda()), want)
    given = torch.randint(-1, 50, (1000,)).int()
    places = torch.randperm(50).int()
    want = torch.where(given < 0, given, places[given.long()])
    assert torch.equal(twice(cuda.map_rows, given.cuda(), places.cuda()), want)


@pytest.mark.parametrize("probes", [1, 4, 9, 16, 52, 64, 100])
@pytest.mark.parametrize("shape", [{"sites": 8, "groups": 3}, {"sites": 40, "depth": 70, "made": 150}],
                         ids=["small", "wide"])
def test_gather_gemm(dtype, shape, probes):
    arguments, dense = random_stage(dtype=dtype, **shape)
    tables = {name: t.cuda() if isinstance(t, torch.Tensor) else t for name, t in arguments.items()}
    stage, Z = cuda.GatherGemm(**tables), torch.randn(dense.shape[1], probes, dtype=dtype)
    written, there = rows(arguments["outside"]), Z.cuda()

    def run():
        out = torch.zeros(len(dense), probes, dtype=dtype, device="cuda")
        stage.run(there, out)
        return out

    assert_close(twice(run)[written], (dense @ Z)[written], factor=4)


@pytest.mark.parametrize("m, b", [(1000, 7), (150_528, 64), (100, 130)], ids=["small", "tall", "wide"])
def test_gram(dtype, m, b):
    X = torch.randn(m, b, dtype=dtype)
    got = twice(cuda.gram, X.cuda())
    torch.testing.assert_close(got, X.double().mT @ X.double(), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("m, b", [(65, 9), (20_000, 64), (33, 128)], ids=["small", "tall", "wide"])
def test_solve_triangular(dtype, m, b):
    X = torch.randn(m, b, dtype=dtype)
    R = (torch.randn(b, b).triu(1) / b**0.5 + 2 * torch.eye(b)).double()
    Q = twice(cuda.solve_triangular, X.cuda(), R.cuda()).double()
    bound = 4 * (b + 1) * torch.finfo(dtype).eps * (Q.abs() @ R.abs() + X.double().abs())
    assert ((Q @ R - X.double()).abs() <= bound).all()


@pytest.mark.parametrize("m, q, b", [(333, 5, 4), (20_000, 300, 4), (129, 64, 32)], ids=["small", "tall", "wide"])
def test_span(dtype, m, q, b):
    basis, X = torch.randn(q, m, dtype=dtype), torch.randn(m, b, dtype=dtype)
    there, block = basis.cuda(), X.cuda()
    H = cuda.coefficients(there, block)
    size = basis.double().abs() @ X.double().abs()
    assert ((H.cpu() - basis.double() @ X.double()).abs() <= 1e-12 * size).all()
    Z = twice(lambda: cuda.reorthogonalise(there, H, block)[0])
    assert torch.equal(Z.cuda(), cuda.subtract(there, H, block))
    H2 = twice(lambda: cuda.reorthogonalise(there, H, block)[1])
    size = basis.double().abs() @ Z.double().abs()
    assert ((H2 - basis.double() @ Z.double()).abs() <= 1e-12 * size).all()


def test_errors_name_the_kernel_and_the_code_small():
    """A launch of more blocks than there are is refused before it reaches the card."""
    given = torch.zeros(1, 1, dtype=torch.int32, device="cuda")
    block = torch.zeros(1, 64 * (1 << 16) + 4, device="cuda")
    stage = cuda.GatherGemm(inside=given, outside=given, neighbours=given, weight=torch.ones(1, 1, 1, device="cuda"))
    with pytest.raises(ValueError, match="kernel gather_gemm would take 1 x 65537 x 1 blocks"):
        stage.run(block, block.clone())
