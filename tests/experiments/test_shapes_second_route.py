"""The claims' numbers by a second route: dense Jacobians by autograd, NumPy's SVD, SciPy's filters and loops."""

from __future__ import annotations

import importlib
from itertools import pairwise

import numpy as np
import pytest
import scipy.ndimage
import scipy.special
import scipy.stats
import torch

import specxai
from specxai.experiments import Progress, Study
from specxai.experiments.compare.lrp import canonised
from specxai.experiments.shapes import metrics, report, trials
from specxai.experiments.shapes.data import SIZE, shapes
from specxai.experiments.shapes.measure import Settings
from specxai.experiments.shapes.model import PENULTIMATE_LAYER, load_shapes_net
from specxai.zoo.vgg import accuracy

measure = importlib.import_module("specxai.experiments.shapes.measure")  # the package has a function of that name

SETTINGS = Settings(rank=6, steps=4, lime=10, ig=2, draws=1)
LAYERS = {"penultimate": PENULTIMATE_LAYER}


@pytest.fixture(scope="module")
def net():
    return load_shapes_net()


@pytest.fixture(scope="module")
def data():
    return shapes(2, torch.Generator().manual_seed(31))


def hidden(net, x):
    """The layer before the classifier's last."""
    return net.classifier[1](net.classifier[0](net.features(x).flatten(1)))


def decomposed(net, x):
    """(U, S, Vh, x flat) of the map up to the last hidden layer, dense, as arrays."""
    matrix = torch.autograd.functional.jacobian(lambda v: hidden(net, v.reshape(x.shape))[0], x.flatten())
    return (*np.linalg.svd(matrix.detach().numpy(), full_matrices=False), x.flatten().numpy())


def blur(values, sigma):
    return scipy.ndimage.gaussian_filter(np.asarray(values), sigma, mode="nearest", truncate=3.0)


def overlap(maps):
    flat = [blur(np.abs(one), 2.0).ravel() for one in maps]
    return np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(flat) for b in flat[i + 1:]])


def cancelled(alpha):
    """(21): the largest of one sign against the largest of the other, again until one sign is left."""
    left = {k: float(value) for k, value in enumerate(alpha)}
    while min(left.values()) < 0 < max(left.values()):
        up = sorted((k for k in left if left[k] > 0), key=lambda k: -left[k])
        down = sorted((k for k in left if left[k] < 0), key=lambda k: left[k])
        fresh = {k: left[k] for k in up[len(down):] + down[len(up):]}
        for k, other in zip(up, down, strict=False):
            total = left[k] + left[other]
            fresh[k if total > 0 else other] = total
        left = fresh
    return left


def test_the_numbers_of_vectors_by_a_dense_decomposition(net, data):
    twin, x, mask = load_shapes_net().double(), data[:1].x.double(), data.masks[0]
    rank, target = 8, 3
    e = specxai.explain(twin, x, layer=PENULTIMATE_LAYER, target=target, rank=rank)
    found = measure.of_vectors(e, mask, seed=4)
    U, S, Vh, flat = decomposed(twin, x)
    row = twin.classifier[3].weight[target].detach().numpy() @ U
    alpha = row * S * (Vh @ flat)
    signs = np.sign(Vh @ flat)
    maps = [(signs[k] * Vh[k] * flat).reshape(3, SIZE, SIZE).sum(0) for k in range(measure.VECTORS)]
    with torch.no_grad():
        output = float(twin(x)[0, target])
    left = cancelled(alpha[:rank])
    close = {"rel": 1e-6}
    assert found["overlap"] == pytest.approx(overlap(maps), **close)
    assert found["inside, |c|"] == pytest.approx(np.abs(maps[0])[mask.numpy()].sum() / np.abs(maps[0]).sum(), **close)
    assert found["survivors"] == len(left)
    assert found["largest share"] == pytest.approx(max(v / sum(left.values()) for v in left.values()), **close)
    assert found["positive sum"] == float(alpha[:rank].sum() > 0)
    assert found["components"] == rank
    assert found["remainder"] == pytest.approx(abs(alpha[rank:].sum() / output), **close)
    assert found["bias"] == pytest.approx((output - alpha.sum()) / output, **close)
    largest = sorted(left, key=lambda k: -abs(left[k]))[:measure.VECTORS]
    reduced = [(Vh[k] * flat).reshape(3, SIZE, SIZE).sum(0) for k in largest]
    assert found["overlap, reduced"] == pytest.approx(overlap(reduced), **close)
    # The control: five other vectors of the space of the first five, so their overlap is that of some rotation.
    vectors = np.stack([signs[k] * Vh[k] for k in range(measure.VECTORS)])
    turn = metrics.rotated(torch.eye(measure.VECTORS, dtype=torch.float64), torch.Generator().manual_seed(4)).numpy()
    mixed = [(one * flat).reshape(3, SIZE, SIZE).sum(0) for one in turn @ vectors]
    assert found["overlap, rotated"] == pytest.approx(overlap(mixed), rel=1e-4)


def test_the_numbers_of_a_map_by_scipy_and_loops(net, data):
    case = measure.case_of(net, canonised(net), data, 0, SETTINGS, first=9)
    mask = data.masks[0]
    values = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = measure.of_map(case, values, mask, steps=4)
    smooth = blur(values.clamp(min=0), measure.SMOOTHING)
    assert found["pointing, smoothed"] == float(mask.flatten()[int(smooth.argmax())])
    assert found["pointing"] == float(mask.flatten()[int(values.argmax())])
    places = blur(values.abs(), measure.SMOOTHING)
    for name, ranked, insertion in (("insertion", values.numpy(), True), ("deletion", values.numpy(), False),
                                    ("insertion, places", places, True), ("deletion, places", places, False)):
        sharp = case.x[0].numpy()
        veil = scipy.ndimage.gaussian_filter(sharp, (0, metrics.BLUR, metrics.BLUR), mode="nearest", truncate=3.0)
        base, other = (veil, sharp) if insertion else (sharp, veil)
        order, heights = np.argsort(-ranked.ravel(), kind="stable"), []  # no two values are equal
        for step in range(5):
            picture = base.reshape(3, -1).copy()
            some = order[:round(step * SIZE**2 / 4)]
            picture[:, some] = other.reshape(3, -1)[:, some]
            with torch.no_grad():
                logits = net(torch.from_numpy(picture.reshape(1, 3, SIZE, SIZE)))[0].double().numpy()
            heights.append(scipy.special.softmax(logits)[case.target])
        expected = sum((a + b) / 2 for a, b in pairwise(heights)) / 4
        assert found[name] == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def gradient_of(net, x, target):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(net(x)[0, target], x)[0]


@pytest.fixture
def one_layer(monkeypatch):
    """The trials at the layer that a dense Jacobian can be had of in a second."""
    pytest.importorskip("captum", reason="the rivals are Captum's: pip install 'specxai[paper]'")
    monkeypatch.setattr(trials, "DEEP", LAYERS)
    monkeypatch.setattr(trials, "CASCADE", {"logits": 1})


def test_randomisation_by_drawing_the_last_layer_anew(one_layer, net, data):
    found = trials.randomisation(net, data[:1], SETTINGS, seed=6)["logits"]["gradient x input"]["rank correlation"]
    other, x = load_shapes_net(), data[:1].x
    torch.manual_seed(6)
    other.classifier[3].reset_parameters()
    with torch.no_grad():
        target = int(net(x).argmax())
    maps = [(gradient_of(one, x, target) * x)[0].sum(0).abs().double().numpy().ravel() for one in (net, other)]
    assert found == [pytest.approx(scipy.stats.spearmanr(*maps).statistic, abs=1e-3)]


def test_stability_by_dense_decompositions_along_the_way(one_layer, net, data):
    found = trials.stability(net, data[:1], SETTINGS, seed=8)
    x = data[:1].x
    with torch.no_grad():
        target = int(net(x).argmax())
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))
    direction /= direction.norm()
    way = float(specxai.linearize(net, x).first_flip(direction))
    for step, factor in trials.STEPS.items():
        there = x + factor * way * direction
        g, h = (gradient_of(net, at, target).double().flatten() for at in (x, there))
        cosine = float(torch.dot(g, h) / (g.norm() * h.norm()))
        assert found[step]["gradient of the class"]["cosine"] == [pytest.approx(cosine, abs=1e-4)], step
        assert found[step]["region"]["distance"] == [pytest.approx(factor * way / float(x.norm()), rel=1e-5)]
        (_, S, V, _), (_, T, W, _) = decomposed(net, x), decomposed(net, there)
        rank = SETTINGS.rank
        assert found[step]["first vector, penultimate"]["cosine"] == [pytest.approx(abs(V[0] @ W[0]), abs=1e-3)], step
        change = np.abs(T[:rank] - S[:rank]).max() / S[0]
        assert found[step]["singular values, penultimate"]["change"] == [pytest.approx(change, abs=1e-3)], step


def test_accuracy_one_image_at_a_time(net):
    some = shapes(30, torch.Generator().manual_seed(1))
    wrong = torch.where(torch.arange(30) < 4, (some.y + 1) % 8, some.y)  # four labels that it must get wrong
    mistaken = type(some)(some.raw, wrong, some.masks)
    right = [int(net(mistaken.x[i:i + 1]).argmax()) == int(wrong[i]) for i in range(30)]
    assert accuracy(net, mistaken) == pytest.approx(sum(right) / 30)
    assert sum(right) <= 26


def test_paired_differences_by_numpy(tmp_path):
    rng = np.random.default_rng(2)
    found = {name: {metric: rng.random(20).tolist() for metric in report.BETTER}
             for name in ("strongest, penultimate", "gradient x input")}
    study = Study(tmp_path, "shapes", progress=Progress(False))
    report.paired(study, found, ("gradient x input",))
    for metric in report.BETTER:
        entry = study.numbers["differences"]["strongest, penultimate − gradient x input"][metric]
        gaps = np.array(found["strongest, penultimate"][metric]) - np.array(found["gradient x input"][metric])
        assert entry["value"] == pytest.approx(gaps.mean(), rel=1e-5)
        half = 1.96 * gaps.std() / np.sqrt(20)
        assert entry["interval"] == pytest.approx([gaps.mean() - half, gaps.mean() + half], abs=0.3 * half)
