"""The shapes: images whose object's place is right, the net that ships, and every number by a second route."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

import specxai
from specxai.experiments import Progress, Study
from specxai.experiments import shapes as experiment
from specxai.experiments.compare import methods
from specxai.experiments.compare.spectral import READINGS, spectral_maps
from specxai.experiments.shapes import Sizes, metrics, report, trials
from specxai.experiments.shapes.data import CLASSES, SIZE, coverage, shapes
from specxai.experiments.shapes.measure import Settings
from specxai.experiments.shapes.model import (
    CHECKPOINT,
    HELD_OUT_SEED,
    PENULTIMATE_LAYER,
    ShapesNet,
    checkpoint_info,
    load_shapes_net,
)
from specxai.experiments.shapes.train import train
from specxai.experiments.shapes.trials import randomised
from specxai.zoo.vgg import accuracy

measure = importlib.import_module("specxai.experiments.shapes.measure")  # the package has a function of that name


@pytest.fixture(scope="module")
def net():
    return load_shapes_net()


@pytest.fixture(scope="module")
def data():
    return shapes(6, torch.Generator().manual_seed(11))


@pytest.fixture
def values():
    """A signed map with ties and zeros."""
    found = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return torch.where(found.abs() < 0.2, 0.0, (found * 20).round() / 20)


# ---- images

def test_images_are_fixed_by_their_seed_and_differ_otherwise(data):
    again = shapes(6, torch.Generator().manual_seed(11))
    assert torch.equal(again.raw, data.raw)
    assert torch.equal(again.masks, data.masks)
    assert not torch.equal(shapes(6, torch.Generator().manual_seed(12)).raw, data.raw)
    assert data.raw.min() >= 0
    assert data.raw.max() <= 1


def test_every_class_has_its_area():
    """Areas of the unit figures by geometry, in circles of radius 15 pixels."""
    fifth = 2 * math.pi / 5
    lens = _lens(1.0, 0.8, 0.5)
    area = {"disc": math.pi * 0.81, "square": 1.4**2, "triangle": 3 * math.sqrt(3) / 4,
            "star": 10 * 0.5 * 1 * 0.42 * math.sin(fifth / 2), "cross": 2 * 1.9 * 0.6 - 0.6**2,
            "ring": math.pi * (0.97**2 - 0.53**2), "crescent": math.pi - lens, "half-disc": math.pi / 2}
    assert set(area) == set(CLASSES)
    count = len(CLASSES)
    centre = torch.full((count, 2), 31.2)
    for angle in (0.0, 0.7):
        cover = coverage(torch.arange(count), centre, torch.full((count,), 15.0), torch.full((count,), angle))
        found = dict(zip(CLASSES, (cover.double().sum((1, 2)) / 15**2).tolist(), strict=True))
        assert found == pytest.approx(area, rel=0.02)


def _lens(r: float, s: float, d: float) -> float:
    """Area that two circles of radii r and s at distance d have in common."""
    a, b = (d * d + r * r - s * s) / (2 * d * r), (d * d + s * s - r * r) / (2 * d * s)
    root = math.sqrt((-d + r + s) * (d + r - s) * (d - r + s) * (d + r + s))
    return r * r * math.acos(a) + s * s * math.acos(b) - root / 2


def test_the_object_is_where_the_mask_says():
    """Inside the mask the picture is nearly of one colour, outside it is clutter."""
    data = shapes(40, torch.Generator().manual_seed(3))
    inner = [raw[:, torch.from_numpy(scipy.ndimage.binary_erosion(mask.numpy()))].std(1).mean()
             for raw, mask in zip(data.raw, data.masks, strict=True)]
    outer = [raw[:, ~mask].std(1).mean() for raw, mask in zip(data.raw, data.masks, strict=True)]
    assert sum(i < o for i, o in zip(inner, outer, strict=True)) >= 38


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        shapes(0, torch.Generator())


# ---- the net

def test_the_net_that_ships_reads_the_shapes(net):
    held = shapes(300, torch.Generator().manual_seed(HELD_OUT_SEED))
    assert accuracy(net, held) > 0.97
    assert checkpoint_info()["held_out_accuracy"] > 0.97
    assert CHECKPOINT.stat().st_size < 5e6


def test_training_repeats_itself_and_writes_a_checkpoint_that_loads(tmp_path):
    reached = [train(tmp_path / name, images=8, batch=4, seed=4, held_out=8) for name in ("a", "b")]
    one, other = (load_shapes_net(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert reached[0] == reached[1] == checkpoint_info(tmp_path / "a")["held_out_accuracy"]


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file(ShapesNet().state_dict(), tmp_path / "other", metadata={"specxai": '{"classes": ["dog"]}'})
    with pytest.raises(ValueError, match="trained with classes"):
        load_shapes_net(tmp_path / "other")


# ---- each metric by a second route

def test_pointing_and_inside_by_loops(values, data):
    for mask in data.masks:
        best, at, on, whole = -math.inf, None, 0.0, 0.0
        places = {tuple(place) for place in mask.nonzero().tolist()}  # the mask as a set of coordinates
        for row in range(SIZE):
            for column in range(SIZE):
                value = float(values[row, column])
                if value > best:
                    best, at = value, (row, column)
                whole += max(value, 0.0)
                on += max(value, 0.0) if (row, column) in places else 0.0
        assert metrics.pointing(values, mask) == float(at in places)
        assert metrics.inside(values, mask) == pytest.approx(on / whole, rel=1e-12)
    assert metrics.inside(-values.abs(), data.masks[0]) == 0


def test_a_map_that_is_the_mask_is_perfect_and_a_constant_one_is_its_area(data):
    mask = data.masks[0]
    assert metrics.pointing(mask.double(), mask) == metrics.inside(mask.double(), mask) == 1
    assert metrics.inside(torch.ones(SIZE, SIZE), mask) == pytest.approx(float(mask.double().mean()))


def test_extent_by_counting(values):
    ordered = sorted(values.abs().flatten().tolist(), reverse=True)
    total, count = 0.0, 0
    while total < 0.9 * sum(ordered):
        total, count = total + ordered[count], count + 1
    assert metrics.extent(values) == pytest.approx(count / SIZE**2, abs=1.5 / SIZE**2)
    assert metrics.extent(torch.zeros(4, 4)) == 0


def test_overlap_by_scipy(values):
    maps = [values, values.flip(0), values.T * 2, values.roll(7, 1)]
    flat = [scipy.ndimage.gaussian_filter(m.abs().numpy(), 2.0, mode="nearest", truncate=3.0).ravel() for m in maps]
    pairs = [a @ b / np.sqrt((a @ a) * (b @ b)) for i, a in enumerate(flat) for b in flat[i + 1:]]
    assert metrics.overlap(maps) == pytest.approx(np.mean(pairs), rel=1e-9)
    apart = torch.zeros(2, SIZE, SIZE, dtype=torch.float64)
    apart[0, :10], apart[1, -10:] = 1, 1
    assert metrics.overlap(list(apart)) == pytest.approx(0, abs=1e-12)
    assert math.isnan(metrics.overlap([values]))


def test_a_rotated_basis_spans_the_same_space():
    vectors = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64))[0].T
    turned = metrics.rotated(vectors, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned.T @ turned, vectors.T @ vectors)  # one projector
    torch.testing.assert_close(turned @ turned.T, torch.eye(4, dtype=torch.float64))
    assert (turned - vectors).norm() > 0.5


@pytest.mark.parametrize("insertion", [True, False])
def test_curve_by_one_image_at_a_time(net, data, values, insertion):
    x, steps, target = data[:1].x, 5, 3
    found = metrics.curve(net, x, values, target, insertion, seed=1, steps=steps)
    veil = scipy.ndimage.gaussian_filter(x[0].numpy(), (0, metrics.BLUR, metrics.BLUR), mode="nearest", truncate=3.0)
    shuffled = torch.randperm(SIZE**2, generator=torch.Generator().manual_seed(1))
    place = {pixel: n for n, pixel in enumerate(shuffled.tolist())}
    order = sorted(range(SIZE**2), key=lambda pixel: (-float(values.flatten()[pixel]), place[pixel]))
    for step in range(steps + 1):
        count = round(step * SIZE**2 / steps)
        base, other = (veil, x[0].numpy()) if insertion else (x[0].numpy(), veil)
        picture = base.reshape(3, -1).copy()
        picture[:, order[:count]] = other.reshape(3, -1)[:, order[:count]]
        with torch.no_grad():
            logits = net(torch.from_numpy(picture.reshape(1, 3, SIZE, SIZE)))[0].double().numpy()
        assert float(found[step]) == pytest.approx(scipy.special.softmax(logits)[target], rel=1e-3, abs=1e-6)
    midpoints = [(a + b) / 2 for a, b in zip(found[:-1].tolist(), found[1:].tolist(), strict=True)]
    assert metrics.area(found) == pytest.approx(sum(midpoints) / steps, rel=1e-12)


def test_rank_correlation_by_scipy(values):
    other = values.roll(1, 0) + 0.3 * values
    expected = scipy.stats.spearmanr(values.numpy().ravel(), other.numpy().ravel()).statistic
    assert metrics.rank_correlation(values, other) == pytest.approx(expected, abs=1e-12)
    assert metrics.rank_correlation(values, torch.ones_like(values)) == 0


def test_bootstrap_by_the_normal_approximation():
    sample = np.random.default_rng(5).exponential(size=400).tolist()
    mean, low, high = metrics.bootstrap(sample, seed=1)
    half = 1.96 * np.std(sample) / 20
    assert mean == pytest.approx(np.mean(sample))
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.25 * half)
    assert metrics.bootstrap(sample, seed=1) == (mean, low, high)
    assert metrics.bootstrap([0.5, math.nan, 0.5], seed=1) == (0.5, 0.5, 0.5)
    assert all(map(math.isnan, metrics.bootstrap([])))


# ---- our maps

def test_all_components_are_gradient_times_input(net, data):
    x = data[:1].x.requires_grad_()
    net(x).amax().backward()
    expected = (x.grad * x)[0].sum(0).detach().double()
    maps = spectral_maps(specxai.explain(net, x.detach(), layer=PENULTIMATE_LAYER, rank=None))
    assert float((maps["all"] - expected).norm() / expected.norm()) < 1e-4


def test_maps_add_up_to_their_contributions(net, data):
    e = specxai.explain(net, data[:1].x, layer=PENULTIMATE_LAYER, rank=8)
    maps, dominant = spectral_maps(e), e.reduce().dominant
    assert float(maps["strongest"].sum()) == pytest.approx(float(e.projections[0]), rel=1e-4)
    assert float(maps["top reduced"].sum()) == pytest.approx(float(e.alpha[dominant[0]]), rel=1e-4)
    assert float(maps["all"].sum()) == pytest.approx(float(e.alpha.sum()), rel=1e-4, abs=1e-4)


# ---- trials

def test_randomised_weights_go_from_the_output_down(net):
    changed = [{name.rsplit(".", 1)[0] for (name, a), b in zip(net.state_dict().items(),
                randomised(net, count, 0).state_dict().values(), strict=True) if not torch.equal(a, b)}
               for count in (1, 2, 4)]
    assert changed[0] == {"classifier.3"}
    assert changed[1] == {"classifier.3", "classifier.0"}
    assert changed[2] == {"classifier.3", "classifier.0", "features.22", "features.21"}


def test_one_region_one_explanation_by_the_gates_themselves(net, data):
    """Inside the region by the signs of the activations, not by `same_region`; the vectors there, and beyond."""
    x = data[:1].x
    local = specxai.linearize(net, x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    way = float(local.first_flip(direction))
    near, beyond = x + 0.5 * way * direction, x + 1000 * way * direction
    assert all(map(torch.equal, _gates(net, near), _gates(net, x)))
    assert not all(map(torch.equal, _gates(net, beyond), _gates(net, x)))
    assert local.same_region(near)
    assert not local.same_region(beyond)
    here, there = (specxai.explain(net, at, layer=PENULTIMATE_LAYER, target=0, rank=4) for at in (x, near))
    assert float((here.gradient - there.gradient).norm() / here.gradient.norm()) < 1e-5
    cosines = (here.right_vectors * there.right_vectors).sum((1, 2, 3))
    assert float((cosines.abs() - 1).abs().max()) < 1e-4


def _gates(net, x) -> list:
    found, hooks = [], []
    for module in net.modules():
        if isinstance(module, torch.nn.ReLU):
            hooks.append(module.register_forward_hook(lambda m, i, o: found.append(o > 0)))
        elif isinstance(module, torch.nn.MaxPool2d):
            hooks.append(module.register_forward_hook(lambda m, i, o: found.append(
                torch.nn.functional.max_pool2d(i[0], 2, return_indices=True)[1])))
    with torch.no_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    return found


def test_captum_scores_by_loops(net, data):
    pytest.importorskip("captum", reason="the scores are Captum's: pip install 'specxai[paper]'")
    from specxai.experiments.compare.lrp import canonised
    from specxai.experiments.compare.methods import heatmap

    case = measure.case_of(net, canonised(net), data, 0, Settings())

    seen = []

    def explain(at):
        seen.append(heatmap(at, "gradient x input"))
        return seen[-1]

    found = trials.score(case, explain, seed=3, draws=2)
    values = seen[0]
    torch.manual_seed(3)
    squares = trials.painted(trials.PATCHES, (SIZE, SIZE))
    with torch.no_grad():
        whole = float(net(case.x)[0, case.target])
        inside = [float((values * square[0]).sum()) for square in squares]
        lost = [whole - float(net(case.x * (1 - square))[0, case.target]) for square in squares]
    scale = np.mean(np.multiply(inside, lost)) / np.mean(np.square(inside))
    expected = np.mean((scale * np.array(inside) - np.array(lost)) ** 2)
    assert found["infidelity"] == pytest.approx(expected, rel=1e-3)
    assert len(seen) >= 4
    changes = [float((one - values).norm() / values.norm()) for one in seen[1:]]
    assert found["sensitivity"] == pytest.approx(max(changes), rel=1e-3)


SETTINGS = Settings(rank=4, steps=2, lime=10, ig=2, draws=1)
TINY = Sizes(images=2, tried=1, scored=1, shown=1, held_out=50, settings=SETTINGS)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A whole run, tiny and of one layer, twice into one folder and once into another."""
    for package in ("captum", "skimage", "sklearn"):
        pytest.importorskip(package, reason="the rivals' methods: pip install 'specxai[paper]'")
    folder, studies, layers = tmp_path_factory.mktemp("shapes"), [], {"penultimate": PENULTIMATE_LAYER}
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((measure, "LAYERS"), (experiment, "LAYERS"), (trials, "DEEP")):
            patch.setattr(module, name, layers)
        patch.setattr(trials, "CASCADE", {"logits": 1, "everything": None})
        for name in ("a", "a", "b"):
            if len(studies):  # drawn once is enough
                patch.setattr(Study, "figure", lambda *_: None)
            studies.append(Study(folder / name, "shapes", seed=2, progress=Progress(False)))
            experiment.run(studies[-1], TINY)
            studies[-1].finish("summary")
    return studies


def test_a_run_resumes_and_repeats_itself(measured):
    first, resumed, again = measured
    assert sum(resumed.seconds.values()) < 0.2 * sum(first.seconds.values())
    numbers = [(study.out / "numbers.json").read_text() for study in (first, resumed, again)]
    assert numbers[0] == numbers[1] == numbers[2]
    for name in ("examples", "measured", "separation", "cascade"):
        assert (first.out / f"{name}.png").stat().st_size > 10_000


def test_what_is_reported_is_what_the_maps_say(measured, net):
    """`inside` of two methods, from maps that are made again and a loop over the mask."""
    data = shapes(2, torch.Generator().manual_seed(2 + 1_000_003))
    shares = {"gradient": [], "strongest, penultimate": []}
    for row in range(2):
        x = data[row:row + 1].x.requires_grad_()
        net(x).amax().backward()
        e = specxai.explain(net, x.detach(), layer=PENULTIMATE_LAYER, rank=4)
        maps = x.grad[0].abs().amax(0), (e.right_vectors[0] * e.x).sum(0)
        for name, values in zip(shares, maps, strict=True):
            on = sum(max(float(values[i, j]), 0) for i, j in data.masks[row].nonzero().tolist())
            shares[name].append(on / float(values.clamp(min=0).sum()))
    for name, expected in shares.items():
        found = measured[0].numbers["maps"][name]["inside"]
        assert found["value"] == pytest.approx(np.mean(expected), rel=1e-2)
        assert found["interval"][0] == pytest.approx(min(expected), rel=1e-2)  # of two images


def test_every_method_is_measured_by_everything(measured):
    numbers = measured[0].numbers
    for name in (*methods.RIVALS, *methods.CONTROLS, *(f"{reading}, penultimate" for reading in READINGS)):
        assert set(numbers["maps"][name]) == set(report.BETTER)
    assert numbers["regions"]["0.5 of the way"]["same"]["value"] == 1
    assert numbers["stable"]["first vector, penultimate"]["0.5 of the way"]["value"] == pytest.approx(1, abs=1e-4)
    assert numbers["vectors"]["penultimate"]["completeness"]["value"] < 1e-5
    assert numbers["randomised"]["edges"]["everything"]["value"] == 1


# ---- the report

def test_standings_say_who_is_ahead():
    better = {metric: [0.9, 0.8, 0.85] for metric in report.BETTER}
    worse = {metric: [0.2, 0.3, 0.1] for metric in report.BETTER}
    lines = report.standings({"strongest, middle": better, "gradient": worse}, seed=0)
    assert ["SpecXAI is ahead" in line for line in lines] == list(report.BETTER.values())
    assert ["the rival is ahead" in line for line in lines] == [not more for more in report.BETTER.values()]
