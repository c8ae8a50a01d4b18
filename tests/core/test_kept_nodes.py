"""Nodes that are the same at every x are made once, and are never those of other weights or side inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.affine import nodes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(3, 2)

    def forward(self, x, shift=None):
        h = self.first(x).reshape(1, 2, 3).transpose(1, 2)
        h = h if shift is None else h * shift
        a, b = h.unbind(2)
        return self.last(torch.cat([a, b])[:1].relu() - b)


def make():
    torch.manual_seed(0)
    return Net().double().eval(), torch.randn(5, 1, 4, dtype=torch.float64).unbind(0)


def right(local, model, x, *args):
    wanted = torch.autograd.functional.jacobian(lambda x: model(x, *args), x).reshape(local.jacobian.shape)
    for backend in (local, specxai.linearize(local.captured, x, backend="torch", verify=False)):
        torch.testing.assert_close(backend.jacobian.to_dense(), wanted)


def test_they_are_made_once(monkeypatch):
    model, xs = make()
    captured = specxai.capture(model, xs[0], verify=False)
    made, rule = [], nodes.linear_node
    monkeypatch.setattr(nodes, "linear_node", lambda call: (made.append(str(call.step.target)), rule(call))[1])
    counts = []
    for x in xs:
        local = captured.linearize(x, verify=False)
        counts.append(len(made))
        right(local, model, x)
        made.clear()
    assert counts[0] == len(local.graph.nodes)
    assert counts[1:] == [1] * 4  # the relu


def halved(model):
    with torch.no_grad():
        model.first.weight.mul_(0.5)


def written_past_torch(model):
    model.first.weight.detach().numpy()[:] *= 0.5
    model.last.bias.data.add_(1)


def other_memory(model):
    model.first.weight.data = model.first.weight.data * 0.5
    model.last.bias.data = model.last.bias.data + 1


def other_strides(model):
    model.last.weight.data = model.last.weight.data.T.contiguous().T.clone(memory_format=torch.preserve_format)


def other_parameter(model):
    model.first.weight = nn.Parameter(-model.first.weight.detach())


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("change", [halved, written_past_torch, other_memory, other_strides, other_parameter])
def test_after_an_update(change, verify):
    model, xs = make()
    captured = specxai.capture(model, xs[0])
    for x in xs[:2]:
        right(specxai.linearize(model, x, verify=verify), model, x)
        right(captured.linearize(x, verify=verify), model, x)
    change(model)
    right(specxai.linearize(model, xs[2], verify=verify), model, xs[2])
    if change is not other_parameter:  # a captured model has the tensors of then
        local = captured.linearize(xs[2], verify=verify)
        right(local, model, xs[2])
        torch.testing.assert_close(local.bias.flatten() + local.jacobian @ xs[2].flatten(), model(xs[2]).flatten())


def test_other_side_inputs():
    model, xs = make()
    captured = specxai.capture(model, xs[0], args=(torch.ones(1, 3, 2, dtype=torch.float64),))
    for x in xs:
        shift = torch.randn(1, 3, 2, dtype=torch.float64)
        right(captured.linearize(x, args=(shift,)), model, x, shift)
        right(specxai.linearize(model, x, args=(shift,), verify=False), model, x, shift)


def test_policies_and_dtypes_do_not_mix():
    model, xs = make()
    captured = specxai.capture(model, xs[0])
    for gates in ("tangent", "frozen", "tangent"):
        right(captured.linearize(xs[1], gates=gates), model, xs[1])
