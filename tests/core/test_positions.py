"""Index tables of convolutions, single positions and merged cells, against the one equation that they stand for."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import specxai
from specxai import native
from specxai.backends.native.gather import GATHERING, SCATTERING
from specxai.plan import Planner
from specxai.plan.positions import Geometry, cells, gathering, scattering
from tolerances import assert_close


@st.composite
def geometries(draw):
    axes = draw(st.integers(1, 2))
    kernel, stride = (tuple(draw(st.integers(1, most)) for _ in range(axes)) for most in (5, 5))
    padding, dilation = (tuple(draw(st.integers(least, least + 2)) for _ in range(axes)) for least in (0, 1))
    fine = tuple(draw(st.integers(1, 9)) for _ in range(axes))
    coarse = tuple(max(1, (n + 2 * p - d * (k - 1) - 1) // s + 1)
                   for n, k, s, p, d in zip(fine, kernel, stride, padding, dilation, strict=True))
    return Geometry(fine, coarse, kernel, stride, padding, dilation)


def meetings(geometry: Geometry) -> set[tuple[int, int, int]]:
    """(coarse position, tap, fine position) by the definition."""
    found = []
    for n, m, k, s, p, d in geometry.axes():
        found.append([(o, t, o * s - p + t * d) for o in range(m) for t in range(k) if 0 <= o * s - p + t * d < n])
    sizes = (geometry.coarse, geometry.kernel, geometry.fine)

    def flat(each: tuple[int, ...], shape: tuple[int, ...]) -> int:
        at = 0
        for i, n in zip(each, shape, strict=True):
            at = at * n + i
        return at

    return {tuple(flat(each, shape) for each, shape in zip(zip(*axes, strict=True), sizes, strict=True))
            for axes in itertools.product(*found)}


@settings(max_examples=150, deadline=None)
@given(geometries())
def test_tables_say_who_meets(geometry):
    want = meetings(geometry)
    gathered, scattered = gathering(geometry), scattering(geometry)
    assert {(o, t, int(gathered[o, t])) for o, t in (gathered >= 0).nonzero().tolist()} == want
    assert {(int(scattered[i, t]), t, i) for i, t in (scattered >= 0).nonzero().tolist()} == want


@settings(max_examples=150, deadline=None)
@given(geometries())
def test_cells_meet_as_their_members_do(geometry):
    want, merged = meetings(geometry), cells(geometry)
    by_cell = {(o, t, int(merged.gathering[o, t])) for o, t in (merged.gathering >= 0).nonzero().tolist()}
    assert by_cell == {(int(merged.scattering[q, t]), t, q) for q, t in (merged.scattering >= 0).nonzero().tolist()}
    found = [(o, int(merged.taps[m, t]), int(merged.members[q, m])) for o, t, q in by_cell
             for m in range(len(merged.taps)) if merged.taps[m, t] >= 0 and merged.members[q, m] >= 0]
    assert len(found) == len(set(found))
    assert set(found) == want
    assert sorted(merged.members[merged.members >= 0].tolist()) == list(range(len(scattering(geometry))))
    pairs = len(by_cell) * len(merged.taps)
    assert merged.cost == pytest.approx(pairs / max(1, len(want)))


def test_weights_follow_their_taps():
    geometry = Geometry((5,), (3,), (3,), (2,), (1,), (1,))
    merged = cells(geometry)
    weight = torch.arange(1.0, 13.0).view(2, 3, 2)
    fine_out, fine_in = merged.of_outputs(weight), merged.of_inputs(weight)
    members, taps = merged.taps.shape
    assert fine_out.shape == (members * 2, taps, 2)
    assert fine_in.shape == (2, taps, members * 2)
    for m, t in itertools.product(range(members), range(taps)):
        tap = int(merged.taps[m, t])
        want = weight[:, tap] if tap >= 0 else torch.zeros(2, 2)
        assert torch.equal(fine_out.view(members, 2, taps, 2)[m, :, t], want)
        assert torch.equal(fine_in.view(2, taps, members, 2)[:, t, m], want)


@pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
@pytest.mark.parametrize(("kernel", "stride", "padding", "form"), [
    (4, 2, 1, "both"), (8, 4, 2, "both"), (3, 1, 1, "scattering"), (1, 1, 0, "neither")])
@pytest.mark.parametrize("transposed", [False, True])
def test_stages_of_cells(kernel, stride, padding, form, transposed, dtype):
    torch.manual_seed(0)
    Conv = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    conv = Conv(*((9, 3) if transposed else (3, 9)), kernel, stride, padding)
    model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten()).eval().to(dtype)
    x = torch.randn(1, conv.in_channels, 13, 17, dtype=dtype)
    local = specxai.linearize(model, x, backend="native")
    ours, want = local.jacobian, specxai.linearize(model, x, backend="reference").jacobian
    sites = Planner(local.graph).plan([local.graph.input], [max(local.graph.nodes)], []).stages[0].sites
    assert (sites.cells.cost <= GATHERING) == (form == "both")
    assert (sites.cells.cost <= SCATTERING) == (form != "neither")
    for probes in (1, 4, 16, 50, 64):
        X, Y = torch.randn(ours.shape[1], probes, dtype=dtype), torch.randn(ours.shape[0], probes, dtype=dtype)
        assert_close(ours @ X, want @ X)
        assert_close(ours.T @ Y, want.T @ Y)
    # Operations are those of live units that meet, not of the zeros between them.
    live = (model[:2](x)[0] > 0).flatten(1).sum(0)
    reads = (sites.reads >= 0).sum(1) * conv.in_channels
    assert ours._products.flops == 2 * int((live * reads).sum())
