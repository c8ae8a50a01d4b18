"""Layer names: leaves without a mark are named as marks would name them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.capture import names


class Intricate(nn.Module):
    """In-place modules, repeated and shared ones, identities, a hook that changes an output, and sums in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.skip = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Identity()
        self.relu, self.drop, self.hooked = nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(3, 3, 1)
        self.shared, self.head = self.norm, nn.Linear(4, 2)
        self.hooked.register_forward_hook(lambda module, inputs, output: 2 * output)

    def forward(self, x):
        y = self.relu(self.norm(self.conv(self.skip(x))))
        z = self.relu(self.drop(self.shared(self.conv(2 * y))))
        z = self.hooked(z)
        z += y
        return self.head(self.skip(z)).mean((1, 2))


def test_leaves_without_a_mark_have_the_names_and_places_of_marks(monkeypatch):
    model, x = Intricate().double().eval(), torch.randn(1, 3, 4, 4, dtype=torch.float64)
    plain = specxai.capture(model, x).program
    monkeypatch.setattr(names, "_PLAIN", set())
    all_marked = specxai.capture(model, x).program
    assert list(plain.layers.items()) == list(all_marked.layers.items())
    assert [step.layer for step in plain.steps] == [step.layer for step in all_marked.steps]
    assert {"conv#1", "conv#2", "relu#2", "drop", "hooked"} <= set(plain.layers)
    values = plain.run(x)
    output = nn.functional.conv2d(values[plain.layers["relu#2"]], model.hooked.weight, model.hooked.bias)
    assert torch.allclose(values[plain.layers["hooked"]], 2 * output)


class Frozen(nn.Module):
    """torch forgets the modules inside such regions."""

    def __init__(self, region) -> None:
        super().__init__()
        self.body, self.head, self.region = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), nn.Linear(3, 2), region

    def forward(self, x):
        with self.region():
            y = self.body(x)
        return self.head(y + x)


class View(nn.Module):
    """A module that overwrites a view: what becomes of it is written to the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.head = nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)

    def forward(self, x):
        h = self.first(x)
        self.act(h[:, :2])
        return self.head(h)


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(3, 3)
        self.body = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(3, 2))

    def forward(self, x):
        return self.body[2:](self.body[:2](x))


@pytest.mark.parametrize("make", [lambda: Frozen(torch.no_grad), View, Sliced,
                                  lambda: Frozen(lambda: torch.autocast("cpu", enabled=False)),
                                  lambda: nn.ModuleDict({"c": nn.Linear(3, 3), "c@x": nn.Linear(3, 2)})],
                         ids=["no_grad", "view", "slice", "autocast", "at"])
def test_where_torch_forgets_a_leaf_every_call_is_marked(make, monkeypatch):
    model = make().double().eval()
    if isinstance(model, nn.ModuleDict):
        model.forward = lambda x: model["c@x"](model["c"](x))
    x = torch.randn(1, 3, dtype=torch.float64)
    layers = specxai.capture(model, x).program.layers
    monkeypatch.setattr(names, "_PLAIN", set())
    assert list(layers.items()) == list(specxai.capture(model, x).program.layers.items())
    assert layers
