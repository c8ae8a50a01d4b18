"""The kernels on a card: every precision within its error of float64, and the same bits twice."""

from __future__ import annotations

import pytest
import torch

from attention_reference import assert_right, drawn
from rounding import assert_rounded
from test_stages import random_stage, rows
from tolerances import RELATIVE

pytest.importorskip("triton")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

# Of Σ |w| |z|: rounding of one factor and the other, or of float32's sums.
ERRORS = {"fp32": RELATIVE[torch.float32], "tf32": 2.0**-10, "tf32x3": RELATIVE[torch.float32], "bf16": 2.0**-7,
          "bf16x3": 2.0**-15, "bf16x6": RELATIVE[torch.float32], "fp64": RELATIVE[torch.float64]}


def assert_within(got, matrix, block, precision: str) -> None:
    """Entry by entry, against float64."""
    matrix, block = matrix.double().cuda(), block.double()
    bound = ERRORS[precision] * (matrix.abs() @ block.abs())
    error = (got.double() - matrix @ block).abs()
    assert bool((error <= bound).all()), f"{precision} off by {(error / bound).nan_to_num().max():.2f} of its error"


def twice(run, like):
    found = [torch.full_like(like, torch.nan) for _ in range(2)]
    for out in found:
        run(out)
    return found


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("probes", [1, 8, 52, 64, 100])
@pytest.mark.parametrize("flow", ["inputs", "outputs", "sites"])
@pytest.mark.parametrize("shape", [{"sites": 8, "groups": 3}, {"sites": 40, "depth": 70, "made": 150}],
                         ids=["small", "wide"])
def test_gather_gemm(shape, flow, probes, precision):
    from specxai.kernels.gather_gemm import gather_gemm, gathering

    dtype = torch.float64 if precision == "fp64" else torch.float32
    arguments, dense = random_stage(dtype=dtype, **shape)
    tables, written = gathering(**arguments, device="cuda", prefer=flow), rows(arguments["outside"]).cuda()
    Z = torch.randn(dense.shape[1], probes, dtype=dtype, device="cuda")
    like = torch.empty(len(dense), probes, dtype=dtype, device="cuda")
    got, again = twice(lambda out: gather_gemm(tables, Z, out, precision=precision), like)
    assert torch.equal(got[written], again[written])
    assert int(got.isfinite().all(1).sum()) == len(written), "rows that are no outputs were written"
    assert_within(got[written], dense[written.cpu()], Z, precision)


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("probes", [4, 64])
def test_packed_gemm_small(probes, parts, precision):
    from specxai.kernels.packed_gemm import packed, packed_gemm

    dtype = torch.float64 if precision == "fp64" else torch.float32
    W = torch.randn(150, 200, dtype=dtype, device="cuda")
    source, to = torch.randperm(210)[:200].int(), torch.randperm(160)[:150].int()
    layer = packed(W, source, to)
    for way, matrix, read, made in ((layer, W, source, to), (layer.adjoint(source), W.T, to, source)):
        Z = torch.randn(len(read) + 10, probes, dtype=dtype, device="cuda")
        like = torch.empty(len(made) + 10, probes, dtype=dtype, device="cuda")
        got, again = twice(lambda out, way=way, Z=Z: packed_gemm(way, Z, out, precision=precision, parts=parts), like)
        at = made.long().cuda()
        assert torch.equal(got[at], again[at])
        assert_within(got[at], matrix, Z[read.long().cuda()], precision)


@pytest.mark.parametrize("probes", [4, 64])
def test_depthwise_small(dtype, probes):
    from specxai.kernels.depthwise import depthwise, depthwise_tables

    arguments, dense = random_stage(30, dtype, groups=21, depth=1, made=1)
    del arguments["groups"]
    tables = depthwise_tables(**arguments | {"weight": arguments["weight"].squeeze(2)}, device="cuda")
    Z = torch.randn(dense.shape[1], probes, dtype=dtype, device="cuda")
    written = rows(arguments["outside"]).cuda()
    got, again = twice(lambda out: depthwise(tables, Z, out), Z.new_empty(len(dense), probes))
    assert torch.equal(got[written], again[written])
    assert_within(got[written], dense[written.cpu()], Z, "fp64" if dtype is torch.float64 else "fp32")


@pytest.mark.parametrize("block", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("probes", "groups", "size"), [(1, 1, 24), (9, 3, 768), (3, 2, 8203)])
def test_group_rows(probes, groups, size, block):
    """A softmax's form into bfloat16 or the block's dtype, and a norm's onto a stream, in place."""
    from specxai.kernels.group_rows import group_rows

    real = torch.float64 if block is torch.float64 else torch.float32
    Z = torch.randn(2 * probes, groups, size, device="cuda").to(block)[::2]
    diagonal, stream = torch.randn(groups, size, dtype=real), torch.randn(probes, groups, size, dtype=real)
    left, right = torch.randn(2, 2, groups, size, dtype=real)
    z = Z.cpu().double()
    for rank, onto in ((1, None), (2, stream)):
        sums = torch.einsum("rgj,pgj->rpg", right[:rank].double(), z)
        want = diagonal.double() * z + torch.einsum("rgi,rpg->pgi", left[:rank].double(), sums)
        want = want if onto is None else onto.double() + want
        found = []
        for _ in range(2):
            out = torch.full_like(Z, torch.nan) if onto is None else onto.to("cuda", copy=True)
            tables = (t.cuda() for t in (diagonal, left[:rank], right[:rank]))
            group_rows(Z, *tables, out=out, onto=None if onto is None else out)
            found.append(out.cpu())
        assert torch.equal(*found)
        assert_rounded(found[0], want, real)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("parts", "positions", "h", "n"), [(1, 1, 1, 40), (3, 35, 10, 300)])
def test_scaled_weights(parts, positions, h, n, stored):
    from specxai.kernels.scaled_weights import scaled_weights

    weights, factors = torch.randn(parts, h, n).to(stored), torch.randn(parts, positions, h)
    want = torch.einsum("iph,ihn->phn", factors.double(), weights.double())
    for made in (stored, torch.bfloat16):
        got, again = twice(lambda out: scaled_weights(list(weights.cuda()), factors.cuda(), out),
                           torch.empty(want.shape, dtype=made, device="cuda"))
        assert torch.equal(got, again)
        assert_rounded(got.cpu(), want, torch.float32)


@pytest.mark.parametrize(("length", "width", "causal"), [(128, 64, True), (100, 128, False), (300, 40, True)])
@pytest.mark.parametrize("kind", ["bfloat16", "float16", "fp32", "tf32x3"])
def test_attention(kind, length, width, causal):
    from specxai.kernels.attention import attention_adjoint

    dtype = getattr(torch, kind, torch.float32)
    dO, held, made, right = drawn(20, 3, length, length, width, width, dtype, causal=causal, device="cuda")
    again = [torch.full_like(t, torch.nan) for t in made]
    for out in (made, again):
        attention_adjoint(dO, *held, *out, scale=right.scale, causal=causal,
                          precision=kind if dtype is torch.float32 else "tf32x3")
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert_right(right, dO, made)
