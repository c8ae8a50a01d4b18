"""Several inputs in one block: J is block-diagonal, on every engine, and a model that mixes its inputs is found out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from random_nets import Apply, random_net
from specxai import native
from specxai.affine.batch import Batch, MixedBatch
from specxai.plan import Opaque, Planner
from tolerances import RELATIVE

ENGINES = ("reference", "torch", *(["native"] if native.available()[0] else []))
COUNT = 3


def batch_of(x: torch.Tensor, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([x, torch.randn(COUNT - 1, *x.shape[1:], generator=generator, dtype=torch.float64).to(x.dtype)])


@pytest.mark.parametrize("seed", range(40))
def test_blocks_of_a_batch_are_the_jacobians_of_its_inputs(seed):
    net, x = random_net(seed, torch.float64)
    X = batch_of(x, seed)
    own = torch.block_diag(*(torch.autograd.functional.jacobian(lambda z: net(z).flatten(), one[None]).flatten(1)
                             for one in X))
    for engine in ENGINES:
        J = Batch(net, X, backend=engine, verify=False).local.jacobian
        m, n = J.shape
        eye = {size: torch.eye(size, dtype=torch.float64) for size in (m, n)}
        for found in (J.matmat(eye[n]), J.rmatmat(eye[m]).T):
            assert (found - own).abs().max() <= 1e3 * RELATIVE[torch.float64] * own.abs().max(), engine


@pytest.mark.parametrize("seed", range(0, 40, 3))
def test_a_batch_has_the_stages_of_one_input(seed):
    net, x = random_net(seed, torch.float32)

    def kinds(graph, program):
        plan = Planner(graph).plan([program.input], [program.output], [])
        return [type(stage) for stage in plan.stages if not isinstance(stage, Opaque)], sum(
            isinstance(stage, Opaque) for stage in plan.stages)

    one = specxai.linearize(net, x, backend="reference", verify=False)
    several = Batch(net, x.repeat(COUNT, *(1,) * (x.ndim - 1)), backend="reference", verify=False).local
    assert kinds(several.graph, several.captured.program)[1] <= kinds(one.graph, one.captured.program)[1]


GEOMETRIES = {
    "few channels": (nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, dilation=2), (4, 8, 8)),
    "depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 5)),
    "one dimension": (nn.Conv1d(2, 6, 4, stride=3), (2, 17)),
    "three": (nn.Conv3d(2, 3, 2), (2, 4, 4, 3)),
    "transposed": (nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), (3, 4, 5)),
    "one by one": (nn.Conv2d(3, 7, 1), (3, 4, 4)),
    "pooled": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.AvgPool2d(2)), (3, 9, 9)),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_of_several_images(name, engine):
    torch.manual_seed(1)
    layer, shape = GEOMETRIES[name]
    net = nn.Sequential(layer, nn.ReLU(), nn.Flatten()).double().eval()
    X = torch.randn(COUNT, *shape, dtype=torch.float64)
    J = Batch(net, X, backend=engine, verify=False).local.jacobian
    own = torch.autograd.functional.jacobian(lambda z: net(z).flatten(), X).flatten(1)
    for columns in (1, 40):
        for A, want in ((J, own), (J.T, own.T)):
            block = torch.randn(A.shape[1], columns, dtype=torch.float64)
            assert (A @ block - want @ block).abs().max() <= 1e-12 * (want @ block).abs().max()


class Mixes(nn.Module):
    """Every input less the mean of the batch."""

    def forward(self, x):
        return torch.relu(x - x.mean(0))


@pytest.mark.parametrize("net", [
    Mixes().eval(),
    Apply(lambda x: x.cumsum(0)).eval(),
    nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).eval(),  # (T, B, d): attention along what is our batch
], ids=["mean", "cumsum", "sequence first"])
def test_inputs_that_are_mixed_are_refused(net):
    X = torch.randn(COUNT, 5, 4)
    batch = Batch(net, X, verify=False)
    with pytest.raises(MixedBatch, match="mixes the inputs"):
        batch.pulled(batch.local.jacobian, torch.randn(COUNT, batch.local.output[0].numel()))


def test_an_output_without_a_batch_axis_is_refused():
    with pytest.raises(MixedBatch, match="first axis is not theirs"):
        Batch(Apply(lambda x: x.flatten().square()).eval(), torch.randn(COUNT, 4), verify=False)


def test_bias_contributions_and_exactness_are_those_of_each_input():
    net, x = random_net(4, torch.float64)
    X = batch_of(x, 4)
    batch = Batch(net, X)
    w = torch.randn(COUNT, batch.local.output[0].numel(), dtype=torch.float64)
    found, exactness = batch.bias_contributions(w), batch.local.exactness_of(COUNT)
    for i in range(COUNT):
        alone = specxai.linearize(net, X[i:i + 1])
        assert {name: pytest.approx(float(part[i]), abs=1e-12) for name, part in found.items()
                } == alone.bias_contributions(target=w[i])
        assert float(exactness[i]) < 1e-12
