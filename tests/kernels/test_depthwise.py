"""Depthwise convolution in the interpreter: the gather-GEMM's dense matrix, with one input and output a group."""

from __future__ import annotations

import pytest
import torch

from specxai.kernels.depthwise import depthwise, depthwise_tables
from test_stages import random_stage, rows
from tolerances import assert_close


def case(dtype: torch.dtype, sites: int, channels: int):
    arguments, dense = random_stage(sites, dtype, groups=channels, depth=1, made=1)
    del arguments["groups"]
    return arguments | {"weight": arguments["weight"].squeeze(2)}, dense


@pytest.mark.parametrize("channels", [1, 8, 21])
@pytest.mark.parametrize("probes", [1, 7, 8, 9, 64, 100])
def test_depthwise(dtype, probes, channels):
    arguments, dense = case(dtype, 11, channels)
    tables = depthwise_tables(**arguments, device="cpu")
    Z = torch.randn(dense.shape[1], probes + 3, dtype=dtype)[:, :probes]  # columns of a wider one
    written, want = rows(arguments["outside"]), dense @ Z
    got = torch.full((len(dense), probes), torch.nan, dtype=dtype)
    again = got.clone()
    depthwise(tables, Z, got)
    depthwise(tables, Z, again)
    left = torch.ones(len(dense), dtype=torch.bool).index_fill_(0, written, False)
    assert got[left].isnan().all()
    assert torch.equal(got[written], again[written])
    assert_close(got[written], want[written], factor=4)
    depthwise(tables, Z, got, accumulate=True)
    assert_close(got[written], 2 * want[written], factor=4)
    assert tables.entries >= int((dense != 0).sum())


def test_nothing_lives():
    arguments, dense = case(torch.float32, 5, 4)
    for name in ("outside", "inside"):
        tables = depthwise_tables(**arguments | {name: torch.full_like(arguments[name], -1)}, device="cpu")
        got = torch.full((len(dense), 8), torch.nan)
        depthwise(tables, torch.randn(dense.shape[1], 8), got)
        assert got.isfinite().any() == (name == "inside"), "outputs without inputs are zero"
        assert not got.nan_to_num().any()
        assert tables.entries == 0


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("inside", lambda t: t.long(), TypeError, "inside is torch.int64"),
    ("outside", lambda t: t * 0, ValueError, "outside holds a row twice"),
    ("outside", lambda t: t[1:], ValueError, "there are 4 sites"),
    ("neighbours", lambda t: t + 9, ValueError, "names 1[0-9] positions"),
    ("weight", lambda t: t[:, :2], ValueError, "neighbours must have 2 columns"),
    ("weight", lambda t: t.half(), TypeError, "of torch.float16"),
])
def test_tables_that_do_not_fit(name, change, error, message):
    arguments, _ = case(torch.float32, 5, 4)
    with pytest.raises(error, match=message):
        depthwise_tables(**arguments | {name: change(arguments[name])}, device="cpu")
