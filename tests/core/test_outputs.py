"""Which tensor of what a model returns is explained."""

from __future__ import annotations

import dataclasses
import types
from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import CaptureError


class Out(NamedTuple):
    text: str
    hidden: torch.Tensor
    logits: torch.Tensor


@dataclasses.dataclass
class Record:
    logits: torch.Tensor
    states: tuple


class Answers(OrderedDict):
    """As transformers' ModelOutput: keys, fields and positions."""

    logits = property(lambda self: self["logits"])


class Returns(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.first, self.second, self.make = nn.Linear(3, 4), nn.Linear(4, 2), make

    def forward(self, x):
        h = self.first(x).relu()
        return self.make(h, self.second(h))


RETURNS = {
    "tuple": (lambda h, y: (h.argmax(), h, y), 2),
    "nested": (lambda h, y: {"a": [h, {"b": y}]}, ("a", 1, "b")),
    "named tuple": (lambda h, y: Out("t", h, y), "logits"),
    "dataclass": (lambda h, y: Record(y, (h, h)), "logits"),
    "dataclass inside": (lambda h, y: Record(h, (h, y)), ("states", 1)),
    "mapping": (lambda h, y: Answers(loss=None, hidden=h, logits=y), "logits"),
    "mapping by position": (lambda h, y: Answers(loss=None, hidden=h, logits=y), 2),
    "function": (lambda h, y: types.SimpleNamespace(h=h, y=y), lambda out: out.y),
    "attribute": (lambda h, y: types.SimpleNamespace(h=h, y=y), "y"),
    "alone": (lambda h, y: y, None),
    "first": (lambda h, y: (h.argmax(), torch.ones(3), y, h), None),
}


@pytest.mark.parametrize("name", RETURNS)
def test_the_output_that_is_asked_for(name):
    make, selector = RETURNS[name]
    model, x = Returns(make).double().eval(), torch.randn(1, 3, dtype=torch.float64)
    wanted = model.second(model.first(x).relu())
    for captured in (specxai.capture(model, x, output=selector),
                     *(specxai.linearize(model, x, output=selector).captured for _ in range(2))):
        assert torch.equal(captured.run_model(x), wanted)
        local = captured.linearize(x)
        assert torch.allclose(local.output, wanted)
        assert local.layers == ["first", "second"]


def test_outputs_that_are_not_there():
    model, x = Returns(lambda h, y: {"h": h, "n": h.argmax(), "k": torch.ones(1), "y": (y,)}).eval(), torch.randn(1, 3)
    for selector, message in (("z", r"has no 'z'; it holds \[h\], \[k\], \[y\]\[0\]"), (("y", 1), r"has no 1"),
                              ("n", "is a tensor of torch.int64, not a floating"), ("y", "is tuple, not a floating"),
                              ("k", "output='k' does not depend on the model's input")):
        with pytest.raises(CaptureError, match=message):
            specxai.capture(model, x, output=selector)
    with pytest.raises(TypeError, match=r"output= belongs to specxai\.capture"):
        specxai.linearize(specxai.capture(model, x), x, output="h")


def test_two_outputs_of_one_model_are_two_captures():
    model, x = Returns(lambda h, y: (h, y)).eval(), torch.randn(1, 3)
    assert [specxai.linearize(model, x, output=i).output.numel() for i in (0, 1, 0, 1)] == [4, 2, 4, 2]
