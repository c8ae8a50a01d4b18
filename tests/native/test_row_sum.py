"""Sparse sums of rows against torch: any number of probes, depthwise convolutions, rows without entries, threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specxai import native
from tolerances import assert_close

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
LEVELS = native.supported_levels() if native.available()[0] else []


def i32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 80), st.integers(0, 140), st.booleans(), st.booleans(), st.booleans(),
       st.integers(0, 2**31))
def test_every_level_is_index_add(rows, entries, probes, scaled, accumulate, double, seed):
    g = torch.Generator().manual_seed(seed)
    dtype = torch.float64 if double else torch.float32
    to = torch.randint(rows, (entries,), generator=g)
    source = torch.randint(9, (entries,), generator=g)
    scale = torch.randn(entries, generator=g, dtype=dtype) if scaled else None
    empty = torch.randint(rows, (3,), generator=g)
    stage = native.RowSum(to=i32(to), source=i32(source), dtype=dtype, scale=scale, empty=i32(empty))
    X = torch.randn(9, probes + 5, generator=g, dtype=dtype)[:, 2 : 2 + probes]  # columns of a wider block
    before = torch.randn(rows, probes + 3, generator=g, dtype=dtype)
    want, written = before.double(), torch.cat([to, empty]).unique()
    want = want.clone()
    if not accumulate:
        want[written, :probes] = 0
    want[:, :probes] = want[:, :probes].index_add(
        0, to, X[source].double() * (1 if scale is None else scale.double()[:, None]))
    want[written, probes:] = 0
    for level in LEVELS:
        got = before.clone()
        stage.run(X, got, probes, accumulate=accumulate, level=level)
        assert_close(got, want)


def depthwise(channels: int, side: int, taps: int, live: float, dtype: torch.dtype):
    """A padded convolution's (stage, weight (channels, taps, taps), live inputs and outputs (positions, channels))."""
    weight = torch.randn(channels, taps, taps, dtype=dtype)
    alive = torch.rand(2, side * side, channels) < live
    rows = torch.full(alive.shape, -1)
    for mask, number in zip(alive, rows, strict=True):
        number[mask] = torch.arange(int(mask.sum()))
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    found = []
    for tap in range(taps * taps):
        dy, dx = tap // taps - taps // 2, tap % taps - taps // 2
        inside = (y + dy).clamp(0, side - 1) * side + (x + dx).clamp(0, side - 1)
        exists = (y + dy >= 0) & (y + dy < side) & (x + dx >= 0) & (x + dx < side)
        entry = exists[:, None] & alive[0][inside] & alive[1]
        scale = weight.flatten(1)[:, tap].expand(side * side, channels)
        found.append((rows[1][entry], rows[0][inside][entry], scale[entry]))
    to, source, scale = (torch.cat(parts) for parts in zip(*found, strict=True))
    stage = native.RowSum(to=i32(to), source=i32(source), scale=scale, dtype=dtype,
                          empty=i32(torch.arange(int(alive[1].sum()))))
    return stage, weight, *alive


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("taps, probes, live", [(3, 16, 0.5), (5, 64, 0.5), (3, 9, 0.1)])
def test_depthwise_convolution(dtype, level, taps, probes, live):
    stage, weight, inside, outside = depthwise(6, 9, taps, live, dtype)
    X = torch.randn(int(inside.sum()), probes, dtype=dtype)
    got = torch.full((int(outside.sum()), probes), torch.nan, dtype=dtype)
    stage.run(X, got, probes, level=level)
    dense = torch.zeros(9 * 9, 6, probes, dtype=dtype)
    dense[inside] = X
    image = dense.reshape(9, 9, 6, probes).permute(3, 2, 0, 1)
    want = torch.conv2d(image, weight[:, None], padding=taps // 2, groups=6).permute(2, 3, 1, 0).flatten(0, 1)
    assert_close(got, want[outside])


@pytest.mark.parametrize("probes", [1, 16, 23, 64])
def test_threads_do_not_change_a_bit(dtype, probes):
    stage, _, inside, outside = depthwise(24, 40, 3, 0.5, dtype)
    X, found = torch.randn(int(inside.sum()), probes, dtype=dtype), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(torch.zeros(int(outside.sum()), probes, dtype=dtype))
        stage.run(X, found[-1], probes)
    assert found[0].any()
    assert torch.equal(*found)


def test_rows_without_entries():
    stage = native.RowSum(to=i32([1]), source=i32([0]), dtype=torch.float32, empty=i32([3, 1, 3]))
    out = torch.ones(5, 4)
    stage.run(torch.full((1, 2), 7.0), out, 2)
    assert out.tolist() == [[1.0] * 4, [7.0, 7.0, 0.0, 0.0], [1.0] * 4, [0.0] * 4, [1.0] * 4]
    with pytest.raises(ValueError, match="the output has 3 rows, the stage writes 4"):
        stage.run(torch.ones(1, 2), out[:3], 2)
    with pytest.raises(ValueError, match="empty spans -1 to 0"):
        native.RowSum(to=i32([1]), source=i32([0]), dtype=torch.float32, empty=i32([-1, 0]))
    with pytest.raises(RuntimeError, match="expected one of scalar, avx2, avx512"):
        stage.run(torch.ones(1, 2), out, 2, level="sse9")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depthwise_is_the_convolution(dtype):
    """Against torch's own, with dead units on both sides and missing neighbours."""
    torch.manual_seed(0)
    channels, size, probes = 5, 7, 9
    conv = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False).to(dtype)
    alive_in, alive_out = (torch.rand(channels, size, size) < 0.6 for _ in range(2))
    block = torch.randn(probes, channels, size, size, dtype=dtype) * alive_in
    want = (conv(block) * alive_out).detach()

    def rows(alive):  # (positions, channels)
        flat = alive.flatten(1).T
        return torch.where(flat, torch.arange(flat.numel()).view(flat.shape), -1).int().contiguous()

    at = torch.arange(size)[:, None] + torch.arange(-1, 2)
    inner = (at >= 0) & (at < size)
    near = (at[:, None, :, None] * size + at[None, :, None, :]).masked_fill(
        ~(inner[:, None, :, None] & inner[None, :, None, :]), -1).reshape(size * size, 9).int()
    stage = native.RowSum.depthwise(inside=rows(alive_in), outside=rows(alive_out), neighbours=near,
                                    weight=conv.weight.detach().flatten(1))
    source = block.flatten(2).permute(2, 1, 0).reshape(-1, probes).contiguous()
    for accumulate in (False, True):
        found = torch.full_like(source, 3.0)
        stage.run(source, found, probes, accumulate)
        wanted = want.flatten(2).permute(2, 1, 0).reshape(-1, probes) + (3.0 if accumulate else 0.0)
        live = alive_out.flatten(1).T.flatten()
        assert_close(found[live], wanted[live])
        assert bool((found[~live] == 3.0).all()), "dead outputs are not written"
    pairs = (near >= 0)[:, :, None] & (rows(alive_in) >= 0)[near.clamp_min(0).long()] & (rows(alive_out) >= 0)[:, None]
    assert stage.entries == int(pairs.sum())


@pytest.mark.parametrize(("name", "change", "message"), [
    ("inside", lambda t: t - 2, "inside spans"), ("outside", lambda t: t * 0, "holds row 0 twice"),
    ("neighbours", lambda t: t + 9, "neighbours spans"),
    ("weight", lambda t: t[:1].contiguous(), "weight has 3 elements, not 6"),
    ("inside", lambda t: t.long(), "inside must be")])
def test_depthwise_tables_that_do_not_fit(name, change, message):
    tables = {"inside": torch.tensor([[0, 1]] * 3).add(torch.arange(3)[:, None] * 2).int(),
              "outside": torch.tensor([[0, 1]]).int(), "neighbours": torch.tensor([[0, 1, 2]]).int(),
              "weight": torch.ones(2, 3)}
    tables[name] = change(tables[name])
    with pytest.raises(ValueError, match=message):
        native.RowSum.depthwise(**tables)
