"""Layer names: whatever modules are called, do and return, each tensor they return has a name and a value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import LayerError


def outputs(model: nn.Module, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """What each module returns when the model runs, call by call, as copies: a module may overwrite what came."""
    seen: dict[str, list[torch.Tensor]] = {}
    handles = [module.register_forward_hook(lambda m, i, out, path=path: seen.setdefault(path, []).append(
        out.detach().clone())) for path, module in model.named_modules() if path]
    model(x.clone())
    for handle in handles:
        handle.remove()
    return seen


def check(model: nn.Module, x: torch.Tensor) -> specxai.Local:
    """Are the layers the calls of all modules, and their values what those returned?"""
    seen, local = outputs(model, x), specxai.linearize(model, x)
    names = {f"{path}#{i + 1}" if len(found) > 1 else path for path, found in seen.items() for i in range(len(found))}
    assert set(local.layers) == names
    for layer in local.layers:
        path, _, call = layer.rpartition("#") if layer not in seen else (layer, "", "")
        assert torch.equal(local.split(layer).value, seen[path][int(call or 1) - 1]), layer
    return local


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


def test_names_and_values_of_an_intricate_model():
    local = check(Intricate().double().eval(), torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert {"conv#1", "conv#2", "relu#2", "drop", "hooked"} <= set(local.layers)
    owners = {step.layer for step in local.captured.program.steps if step.kind == "call"}
    assert owners <= {*local.layers, "mul", "mean", "add"}


class Region(nn.Module):
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


class Keys(nn.Module):
    """Names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({key: nn.Linear(3, 3) for key in (
            "it's", 'the "first"', "two\nlines", "class", "a#1", "b@2", " ", "ünï", "x[0]")})

    def forward(self, x):
        for part in self.parts.values():
            x = x + part(x).relu()
        return x


@pytest.mark.parametrize("make", [
    lambda: Region(torch.no_grad), lambda: Region(torch.inference_mode), View, Sliced, Keys,
    lambda: Region(lambda: torch.autocast("cpu", enabled=False))],
    ids=["no_grad", "inference_mode", "view", "slice", "keys", "autocast"])
def test_every_call_has_its_name_and_value(make):
    if make is Sliced:  # one of its modules has a second name
        layers = specxai.linearize(make().eval(), torch.randn(1, 3)).layers
        assert layers == ["body.0#1", "body.1", "body.0#2", "body.3"]
        return
    check(make().double().eval(), torch.randn(1, 3, dtype=torch.float64))


def test_a_path_that_reads_like_a_call_keeps_its_own_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("a", nn.Linear(3, 3))
            self.add_module("a#1", nn.Linear(3, 3))

        def forward(self, x):
            first, second = self._modules.values()
            return first(second(first(x)))

    assert specxai.linearize(Twice().eval(), torch.randn(1, 3)).layers == ["a#1", "a#1'", "a#2"]


class Several(nn.Module):
    """Modules that return tuples, dictionaries and nests of them."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.block, self.head = nn.LSTM(4, 5, batch_first=True), Block(), nn.Linear(5, 2)

    def forward(self, x):
        sequence, (hidden, _) = self.lstm(x)
        found = self.block(sequence)
        return self.head(found["hidden"] + found["scaled"][0] + hidden)


class Block(nn.Module):
    def forward(self, z):
        return {"hidden": z.relu(), "scaled": (2 * z, z.argmax(-1)), "text": "none"}


def test_layers_that_return_several_tensors():
    model, x = Several().double().eval(), torch.randn(1, 3, 4, dtype=torch.float64)
    local = specxai.linearize(model, x)
    assert local.layers == ["lstm[0]", "lstm[1][0]", "block[hidden]", "block[scaled][0]", "head"]
    sequence, (hidden, _) = model.lstm(x)
    wanted = {"lstm[0]": sequence, "lstm[1][0]": hidden, "block[hidden]": sequence.relu(),
              "block[scaled][0]": 2 * sequence}
    for layer, value in wanted.items():
        split = local.split(layer)
        assert torch.allclose(split.value, value, atol=1e-12)
        total = split.left @ split.right + split.bypass
        assert torch.allclose(total.to_dense(), local.jacobian.to_dense(), atol=1e-12)
    for layer in ("lstm", model.lstm):
        with pytest.raises(LayerError, match=r"'lstm' returns several tensors; name one of lstm\[0\], lstm\[1\]\[0\]"):
            local.split(layer)


def test_a_call_that_its_caller_gave_up():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.fails, self.works = nn.Sequential(nn.Linear(4, 3)), nn.Linear(3, 2)

        def forward(self, x):
            try:
                x = self.fails(x)
            except RuntimeError:
                x = x.relu()
            return self.works(x)

    local = specxai.linearize(Careful().eval(), torch.randn(1, 3))
    assert local.layers == ["works"]
    assert [step.layer for step in local.captured.program.steps if step.kind == "call"] == ["relu", "works", "works"]
