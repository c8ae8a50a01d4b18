"""What lives is found on a GPU by its compiled kernels, here in emulation and on a device without numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import specxai
from cuda_harness import on_cpu  # noqa: F401  a fixture
from random_nets import random_net
from specxai.native import cuda
from specxai.plan import Planner, tables
from specxai.plan.liveness import ends, live_units, moved
from waits import Waits


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.last = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(10, 8, 3, groups=2), nn.ReLU(), nn.AvgPool2d(2),
                                  nn.Flatten(), nn.Linear(32, 5))

    def forward(self, x):
        return self.last(torch.cat([self.one(x).relu(), self.other(x[..., :12, :]).relu()], 1))


NETS = {
    "joined": (Joined, (1, 3, 12, 12)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), (1, 6, 16)),
    "upsampled": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear"),
                                        nn.ConvTranspose2d(4, 2, 2, 2)), (1, 2, 7, 7)),
}


def graph_of(name: str):
    torch.manual_seed(0)
    make, shape = NETS[name]
    return specxai.linearize(make().eval(), torch.randn(shape), verify=False).graph


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", NETS)
def test_the_device_s_kernels_find_the_same(name, monkeypatch):
    graph = graph_of(name)
    called, real = [], cuda.any_neighbour
    monkeypatch.setattr(cuda, "any_neighbour", lambda *given: called.append(1) or real(*given))
    arguments = [graph.input], [max(graph.nodes)], []
    ours = Planner(graph).plan(*arguments)
    assert called or name == "attention"  # which follows patterns of weights instead
    monkeypatch.setattr(cuda, "_module", None)
    called.clear()
    other = Planner(graph).plan(*arguments)
    assert not called
    for one, two in zip(ours.stages, other.stages, strict=True):
        if hasattr(one, "reads"):
            assert torch.equal(one.reads, two.reads)
            assert torch.equal(one.writes, two.writes)


@pytest.mark.parametrize("name", [*NETS, *range(8)])
def test_all_that_is_asked_lies_on_the_device_and_nothing_waits(name):
    graph = graph_of(name) if name in NETS else specxai.linearize(*random_net(name, torch.float32), verify=False).graph
    planner, sources, targets = Planner(graph), [graph.input], [max(graph.nodes)]
    path = planner._path(sources, targets, [])
    device = torch.device("meta")
    structures = {step: moved(planner._structures[step], device) for step in path}
    at_ends = [ends(graph.shapes, steps, None, device) for steps in (sources, targets)]
    with Waits() as waits:
        live = live_units(graph, structures, path, *at_ends)
    assert waits.found == []
    assert all(mask.device == device and mask.shape == (graph.shapes[step].numel(),) for step, mask in live.items())


def test_places_are_marked_alike_without_a_wait():
    places = torch.randint(-1, 30, (200,), dtype=torch.int32)
    for share in (0.0, 0.05, 1.0):
        chosen = torch.rand(200) < share
        want = [i in {int(p) for p, c in zip(places, chosen, strict=True) if c} for i in range(30)]
        assert tables.marked(places, chosen, 30).tolist() == want
        assert tables._marked(places, chosen, 30).tolist() == want


def test_the_planner_asks_the_device_that_has_kernels(monkeypatch):
    graph = graph_of("joined")
    planner = Planner(graph)
    steps = planner._path([graph.input], [max(graph.nodes)], [])
    assert planner._where(steps) == (torch.device("cpu"), planner._structures)
    monkeypatch.setattr(cuda, "runs_on", lambda device: device.type == "meta")
    planner.graph = replace(graph, device=torch.device("meta"))
    device, structures = planner._where(steps)
    assert device.type == "meta"
    sites = next(found for s in structures.values() for found in s.maps if hasattr(found, "reads"))
    assert sites.reads.device.type == "meta"
    assert planner._where(steps)[1] is structures
