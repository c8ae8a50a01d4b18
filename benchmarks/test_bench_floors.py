"""The two floors under every time, operations over rate and bytes over bandwidth, and the first kernel against them."""

from __future__ import annotations

import pytest
import torch

from specxai import native

SIDE, PROBES = 4096, 64
LIVE = SIDE // 2


@pytest.fixture(scope="module")
def chain():
    """(W, Z, live rows, live columns): a fully connected stage of which every other unit is alive on both sides."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(SIDE, SIDE, generator=generator) / SIDE**0.5
    return W, torch.randn(LIVE, PROBES, generator=generator), torch.arange(0, SIDE, 2), torch.arange(1, SIDE, 2)


def test_copy(benchmark, record, options):
    benchmark.group = "memory"
    source = torch.ones(1 << 26)  # 256 MB, beyond every cache
    target = torch.empty_like(source)
    benchmark.pedantic(target.copy_, args=(source,), rounds=7, warmup_rounds=1)
    gigabytes = 2 * source.nbytes / 1e9
    record(case="copy", question="floor", text="256 MB copied, read and written", peer="torch copy", error=None,
           gigabytes=gigabytes)  # fmt: skip


def test_square_product(benchmark, record, options):
    benchmark.group = "compute"
    A = torch.randn(SIDE, SIDE)
    benchmark.pedantic(torch.mm, args=(A, A), rounds=5, warmup_rounds=1)
    record(case="mm", question="floor", text=f"{SIDE}³ product", peer="torch.mm", error=None,
           gflop=2 * SIDE**3 / 1e9)  # fmt: skip


@pytest.mark.parametrize("peer", ["torch.mm, dense with masks", "torch.mm, live packed", "specxai.native"])
@pytest.mark.parametrize("transpose", [False, True], ids=["forward", "adjoint"])
def test_gated_stage(benchmark, record, options, chain, peer, transpose):
    W, Z, rows, cols = chain
    into, out = (rows, cols) if transpose else (cols, rows)
    matrix = W.T if transpose else W
    if peer == "specxai.native":
        if not native.available()[0]:
            pytest.skip(native.available()[1])

        def table(live):  # one position: live units take the rows of a block in order
            return torch.full((1, SIDE), -1, dtype=torch.int32).index_copy_(
                1, live, torch.arange(LIVE, dtype=torch.int32)[None])

        stage = native.GatherGemm(inside=table(into), outside=table(out), weight=matrix[:, None].contiguous(),
                                  neighbours=torch.zeros(1, 1, dtype=torch.int32))
        block = torch.empty(LIVE, PROBES)

        def work():
            stage.run(Z, block)
            return block
    elif peer == "torch.mm, live packed":
        packed = matrix[out][:, into].contiguous()

        def work():
            return packed @ Z
    else:
        full = W.new_zeros(SIDE, PROBES).index_copy_(0, into, Z)
        gate = W.new_zeros(SIDE, 1).index_fill_(0, out, 1)

        def work():
            return (matrix @ full).mul_(gate)

    benchmark.group = f"gated stage {'adjoint' if transpose else 'forward'}"
    result = benchmark.pedantic(work, rounds=9, warmup_rounds=2)
    truth = matrix.double()[out][:, into] @ Z.double()
    got = result[out] if len(result) == SIDE else result
    record(case="gated stage", question="floor", peer=peer, gflop=2 * LIVE * LIVE * PROBES / 1e9,
           text=f"{SIDE} × {SIDE} weights, half the units alive on each side, {PROBES} probes; live operations",
           error=float((got - truth).norm() / truth.norm()))  # fmt: skip
