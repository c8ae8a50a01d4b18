"""The rivals' maps, each against its method's definition computed by another route, and the comparison's run."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F

import specxai
from specxai._vision import import_vision
from specxai.experiments import Progress, Study
from specxai.experiments.shapes.data import SIZE, shapes
from specxai.experiments.shapes.model import LAST_CONV_LAYER, PENULTIMATE_LAYER, load_shapes_net

pytest.importorskip("captum", reason="the rivals are Captum's: pip install 'specxai[paper]'")

from specxai.experiments import compare
from specxai.experiments.compare.lrp import canonised, with_rules
from specxai.experiments.compare.methods import CONTROLS, RIVALS, Case, attribution, heatmap


@pytest.fixture(scope="module")
def net():
    return load_shapes_net()


@pytest.fixture(scope="module")
def case(net):
    data = shapes(1, torch.Generator().manual_seed(21))
    with torch.no_grad():
        target = int(net(data.x).argmax())
    return Case(net, data.x, data.raw[0], target, "features.23", canonised(net), seed=5, lime_samples=40)


@pytest.fixture(scope="module")
def gradient(net, case):
    """Jᵀe of the class, by the library and not by autograd."""
    return specxai.explain(net, case.x, layer=PENULTIMATE_LAYER, target=case.target).gradient.double()


def _close(got, want, tolerance=1e-4):
    got, want = got.detach(), want.detach()
    assert float((got - want).norm() / want.norm()) < tolerance


def test_gradient_and_gradient_times_input_by_the_affine_map(case, gradient):
    _close(heatmap(case, "gradient"), gradient.abs().amax(0))
    _close(heatmap(case, "gradient x input"), (gradient * case.x[0].double()).sum(0))


def test_integrated_gradients_by_a_sum_of_affine_maps(net, case):
    """Midpoints instead of Captum's quadrature; and what is integrated adds up."""
    steps, total = 24, 0
    for step in range(steps):
        x = (case.x * (step + 0.5) / steps).requires_grad_()
        total = total + torch.autograd.grad(net(x)[0, case.target], x)[0] / steps
    expected = (total * case.x)[0].sum(0).double()
    found = heatmap(case, "integrated gradients")
    assert float(torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)) > 0.97
    with torch.no_grad():
        change = float((net(case.x) - net(torch.zeros_like(case.x)))[0, case.target])
    assert float(found.sum()) == pytest.approx(change, rel=0.1)


def test_a_canonised_net_is_the_same_function(net, case):
    x = torch.cat([case.x, torch.randn(2, 3, SIZE, SIZE)])
    with torch.no_grad():
        _close(case.plain(x), net(x))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in case.plain.modules())


def test_lrp_with_the_epsilon_rule_is_gradient_times_input(case, gradient):
    assert case.gamma == 0
    _close(heatmap(case, "LRP"), (gradient * case.x[0].double()).sum(0), 1e-3)


def test_lrp_with_the_gamma_rule_by_hand():
    """Relevance shared out in proportion to a_i (w + γ w⁺), layer by layer, the biases taking their part."""
    conv, linear, gamma = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4 * 36, 3), 0.25
    net = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), linear).eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        a = conv(x).relu()
        z = linear(a.flatten(1))
        above = a * (linear.weight[1] * z[0, 1] / z[0, 1]).reshape(a.shape)
        weight = conv.weight + gamma * conv.weight.clamp(min=0)
        ratio = above / F.conv2d(x, weight, conv.bias)
        expected = x * F.conv_transpose2d(ratio, weight)
    found = attribution(Case(net, x, x[0], 1, "0", net, gamma=gamma), "LRP")
    _close(found, expected, 1e-3)
    assert not hasattr(net[0], "rule")  # the rules are a copy's


def test_a_net_without_lrp_rules_is_refused():
    with pytest.raises(ValueError, match="neither a chain"):
        canonised(torch.nn.Linear(2, 2))


def test_grad_cam_by_hooks(net, case):
    kept = []
    hook = net.get_submodule(case.camera).register_forward_hook(lambda m, i, o: kept.append(o))
    logit = net(case.x.detach())[0, case.target]
    hook.remove()
    slope, = torch.autograd.grad(logit, kept[0])
    coarse = (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu()
    expected = F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")[0, 0].detach().double()
    _close(heatmap(case, "Grad-CAM"), expected)


class OneSquare(torch.nn.Module):
    """Two classes by the mean of one corner, where nothing else matters."""

    def forward(self, x):
        bright = x[:, :, :16, :16].mean((1, 2, 3))
        return torch.stack([bright, -bright], 1) * 5


def test_lime_finds_the_superpixel_that_decides():
    pytest.importorskip("skimage", reason="superpixels are scikit-image's: pip install 'specxai[paper]'")
    pytest.importorskip("sklearn", reason="LIME's regression is scikit-learn's: pip install 'specxai[paper]'")
    raw = torch.zeros(3, 32, 32)
    raw[:, :16, :16], raw[0, 16:], raw[1, :16, 16:] = 1, 0.8, 0.6
    net = OneSquare()
    case = Case(net, raw[None] * 2, raw, 0, "", net, lime_samples=60)
    found = heatmap(case, "LIME")
    corner = found[:14, :14]  # the segmentation smooths the borders
    assert float(corner.std()) == 0  # one superpixel, one weight
    assert float(corner[0, 0]) == float(found.max()) > 3 * float(found[16:].abs().max())
    assert torch.equal(heatmap(case, "LIME"), found)


def test_controls_know_no_network(case):
    grey = case.raw.mean(0).double().numpy()
    expected = np.hypot(scipy.ndimage.sobel(grey, 0, mode="nearest"), scipy.ndimage.sobel(grey, 1, mode="nearest"))
    _close(heatmap(case, "edges"), torch.from_numpy(expected), 1e-5)
    assert torch.equal(heatmap(case, "random"), heatmap(case, "random"))


def test_a_method_that_there_is_not(case):
    with pytest.raises(ValueError, match="choose of gradient"):
        heatmap(case, "SHAP")


def test_the_comparison_writes_figures_and_likeness(case, tmp_path):
    pytest.importorskip("skimage", reason="superpixels are scikit-image's: pip install 'specxai[paper]'")
    study = Study(tmp_path, "compare", quick=True, progress=Progress(False))
    layers = {"penultimate": PENULTIMATE_LAYER, "last convolution": LAST_CONV_LAYER}
    compare._compare(study, "shapes", [case], layers, ["a shape"], ["one"], 6)
    study.finish()
    rows = study.numbers["tables"]["shapes-likeness"]
    assert [row["method"] for row in rows][:len(RIVALS) + 1] == [*RIVALS, CONTROLS[0]]
    assert all(row[row["method"]] == pytest.approx(1) for row in rows)
    assert rows[0][rows[1]["method"]] == pytest.approx(rows[1][rows[0]["method"]])
    for kind in layers:
        assert (tmp_path / f"shapes-{kind.replace(' ', '-')}.png").stat().st_size > 10_000
        assert 0 <= study.numbers["shapes"][kind]["overlap"]["value"] <= 1


def test_efficientnet_is_canonised_with_its_skips():
    try:
        timm = import_vision("timm")
    except ImportError as error:
        pytest.skip(f"the architecture is timm's: {error}")
    net = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # statistics that are not those of a new net
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    plain, x = canonised(net), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _close(plain(x), net(x))
    assert sum(hasattr(module, "rule") for module in with_rules(plain).modules()) > 50
