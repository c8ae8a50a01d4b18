"""The explanation belongs to the function, not to how it is written; and it predicts what an ablation does."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import specxai


class Net(nn.Module):
    """Two blocks of convolution, batch norm, ReLU and pooling, and a head; written once, rewritten below."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.mid = nn.Identity()
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = F.max_pool2d(self.relu1(self.bn1(self.conv1(x))), 2)
        return self.head(self.mid(self.relu2(self.bn2(self.conv2(z)))).flatten(1))


def in_place(net: Net) -> nn.Module:
    net.relu1.inplace = net.relu2.inplace = True
    return net


class Functional(Net):
    def forward(self, x: Tensor) -> Tensor:
        z = F.conv2d(F.pad(x, (1, 1, 1, 1)), self.conv1.weight, self.conv1.bias)
        z = F.batch_norm(z, self.bn1.running_mean, self.bn1.running_var, self.bn1.weight, self.bn1.bias)
        z = F.max_pool2d(torch.where(z > 0, z, 0.0), 2)
        z = F.batch_norm(F.conv2d(z, self.conv2.weight, self.conv2.bias), self.bn2.running_mean, self.bn2.running_var,
                         self.bn2.weight, self.bn2.bias)
        z = self.mid((z + z.abs()) / 2)
        return z.reshape(1, -1) @ self.head.weight.T + self.head.bias


def functional(net: Net) -> nn.Module:
    other = Functional().double()
    other.load_state_dict(net.state_dict())
    return other


def reused(net: Net) -> nn.Module:
    net.relu2 = net.relu1
    return net


def folded(net: Net) -> nn.Module:
    for conv, bn in (("conv1", "bn1"), ("conv2", "bn2")):
        setattr(net, conv, fuse_conv_bn_eval(getattr(net, conv), getattr(net, bn)))
        setattr(net, bn, nn.Identity())
    return net


def rescaled(net: Net) -> nn.Module:
    """A positive scale moved through the first ReLU and the pooling: powers of two, so exactly."""
    scale = 2.0 ** torch.arange(-2, 3).to(net.conv1.weight)
    with torch.no_grad():
        net.bn1.weight.mul_(scale)
        net.bn1.bias.mul_(scale)
        net.conv2.weight.div_(scale.reshape(1, -1, 1, 1))
    return net


def split_in_two(net: Net) -> nn.Module:
    """The head as a sum of two halves, one for each half of the features."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.mid = net, net.mid

        def forward(self, x: Tensor) -> Tensor:
            features = []
            net.head = nn.Identity()
            features = net(x)
            left, right = features.split([7, 9], 1)
            return F.linear(left, weight[:, :7], bias) + F.linear(right, weight[:, 7:])

    weight, bias = net.head.weight.detach(), net.head.bias.detach()
    return Halves()


REWRITES = [in_place, functional, reused, folded, rescaled, split_in_two]


@pytest.fixture
def net() -> Net:
    net = Net()
    for bn in (net.bn1, net.bn2):
        bn.running_mean.normal_(0, 0.3)
        bn.running_var.uniform_(0.5, 2)
        nn.init.normal_(bn.bias, 0.3, 0.3)
        nn.init.uniform_(bn.weight, 0.5, 1.5)
    return net.double().eval()


@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.__name__)
def test_rewrites_have_the_same_explanation(net, rewrite):
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    before = specxai.linearize(net, x)
    e = specxai.explain(before, layer="mid", target=1, rank=None)
    other = specxai.linearize(rewrite(copy.deepcopy(net)).eval(), x)
    assert other.generic_nodes == []
    assert (other.jacobian.to_dense() - before.jacobian.to_dense()).norm() <= 1e-13 * before.jacobian.to_dense().norm()
    assert (other.bias - before.bias).norm() <= 1e-13 * before.output.norm()
    name = "net.mid" if rewrite is split_in_two else "mid"
    again = specxai.explain(other, layer=name, target=1, rank=None)
    assert torch.allclose(again.S, e.S, rtol=1e-12, atol=0)
    assert torch.allclose(again.alpha, e.alpha, atol=1e-12)
    assert torch.allclose(again.right_vectors, e.right_vectors, atol=1e-9)
    assert again.bias == pytest.approx(e.bias, abs=1e-12)


def test_a_changed_function_has_another_explanation(net):
    """The invariance test can fail: a net that is not the same function is told apart."""
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    before = specxai.explain(net, x, layer="mid", target=1, rank=None)
    with torch.no_grad():
        net.conv1.weight *= 1.01
    after = specxai.explain(net, x, layer="mid", target=1, rank=None)
    assert not torch.allclose(after.S, before.S, rtol=1e-12, atol=0)


def test_spectral_ablation(net):
    """z − t u_k λ_k(φ_k·x) at the layer changes the real output by −t α_k until the tail's first gate flips."""
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    local = specxai.linearize(net, x)
    e = specxai.explain(local, layer="conv2", target=1, rank=None)
    z = local.split("conv2").value

    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, z):
            return net.head(net.relu2(net.bn2(z)).flatten(1))

    tail = specxai.linearize(Tail().eval(), z)
    assert torch.allclose(tail.output, local.output)
    result = specxai.svd(local.split("conv2").right, method="exact")
    for k in range(5):
        component = (result.U[:, k] * result.S[k] * (result.V[:, k] @ x.flatten())).reshape(z.shape)
        flip = tail.first_flip(-component)
        for t in (0.5 * flip, 0.999 * flip):
            change = (local.run_tail("conv2", z - t * component) - local.output)[0, 1].item()
            assert change == pytest.approx(-t * e.alpha[k].item(), abs=1e-12)
        if flip < 1e3:
            change = (local.run_tail("conv2", z - 10 * flip * component) - local.output)[0, 1].item()
            assert change != pytest.approx(-10 * flip * e.alpha[k].item(), abs=1e-9)
