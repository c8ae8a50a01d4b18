"""Numbers moved and scaled, whole values, in the interpreter."""

from __future__ import annotations

import pytest
import torch

from specxai.kernels import route as module
from specxai.kernels.route import route
from tolerances import assert_close


@pytest.mark.parametrize("entries", [1, 2, 8])
@pytest.mark.parametrize(("probes", "read", "units"), [(1, 1, 1), (3, 7, 9), (8, 300, 257), (17, 33, 513)])
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16, torch.float16])
def test_values(probes, read, units, entries, to):
    g = torch.Generator().manual_seed(units)
    at = torch.randint(read, (entries, units), generator=g, dtype=torch.int32)
    scale = torch.randn(entries, units, generator=g).masked_fill_(torch.rand(entries, units, generator=g) < 0.3, 0)
    block = torch.randn(probes, read + 3, generator=g).to(to)[:, :read]  # units of a wider one
    out, again = (torch.full((probes, units), torch.nan, dtype=to) for _ in range(2))
    route(at, scale, block, out)
    route(at, scale, block, again)
    assert torch.equal(out, again)
    want = sum(s * block.double()[:, a.long()] for a, s in zip(at, scale.double(), strict=True))
    if to is torch.float32:
        assert_close(out, want)
    else:  # rounded once
        assert float((out.double() - want).abs().max()) <= torch.finfo(to).eps * float(want.abs().max())


def test_as_many_units_as_a_long_prompt_has(monkeypatch):
    """More tiles than a launch's second axis has programs."""
    grids = []

    class Kernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_, **__: None

    monkeypatch.setattr(module, "route_kernel", Kernel())
    units = 65_536 * module.UNITS
    at, scale, block = torch.zeros(1, units, dtype=torch.int32), torch.ones(1, units), torch.ones(1, 3)
    route(at, scale, block, torch.empty(1, units))
    assert grids == [(65_536,)]


def test_nothing_to_do():
    for probes, units in ((0, 3), (2, 0)):
        route(torch.zeros(1, units, dtype=torch.int32), torch.ones(1, units), torch.ones(probes, 3),
              torch.ones(probes, units))


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("at", lambda t: t.long(), TypeError, "at is torch.int64"),
    ("at", lambda t: t.repeat(9, 1), ValueError, "1 to 8 entries"),
    ("scale", lambda t: t.half(), TypeError, "scale must be float32"),
    ("scale", lambda t: t[:, 1:], ValueError, "scale must be"),
    ("block", lambda t: t.T.contiguous().T, ValueError, "units must be contiguous"),
    ("block", lambda t: t.int(), TypeError, "block must be"),
    ("out", lambda t: t[:, 1:], ValueError, "out must be")])
def test_refuses(name, change, error, message):
    given = {"at": torch.zeros(1, 3, dtype=torch.int32), "scale": torch.ones(1, 3), "block": torch.ones(2, 4),
             "out": torch.ones(2, 3)}
    with pytest.raises(error, match=message):
        route(**given | {name: change(given[name])})
