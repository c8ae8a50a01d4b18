"""The rotated squares: the data, the nets, and a tiny run from nothing to figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from specxai.experiments import Progress, Study
from specxai.experiments.squares import run
from specxai.experiments.squares.analysis import analyse, data_spectrum
from specxai.experiments.squares.data import rotated_squares, split, squares
from specxai.experiments.squares.experiment import _first_open, _measure
from specxai.experiments.squares.measures import Zones, angular, energy, of_image
from specxai.experiments.squares.model import SquaresNet
from specxai.experiments.squares.train import Settings
from tolerances import RELATIVE

TINY = {"train": 64, "test": 5, "batch": 16, "size": 16, "side": 8, "widths": (24, 16, 8)}


def test_squares_have_their_area_at_every_angle():
    images = squares(torch.linspace(0, math.pi / 2, 50))
    assert images.shape == (50, 64, 64)
    assert images.min() == 0
    assert images.max() == 1
    torch.testing.assert_close(images.sum((1, 2)), torch.full((50,), 32.0**2), rtol=2e-3, atol=0)


def test_square_turns_about_the_centre():
    images = rotated_squares(30, torch.Generator().manual_seed(1))
    at = torch.arange(64.0) - 31.5
    distance = (at[:, None] ** 2 + at**2).sqrt()
    assert (images[:, distance < 15] == 1).all()  # inside the inscribed circle
    assert (images[:, distance > 16 * math.sqrt(2) + 1] == 0).all()  # outside the circumscribed one
    torch.testing.assert_close(images, images.flip(1, 2))  # half a turn changes nothing


def test_quarter_turn_repeats_and_other_angles_do_not():
    same, other = squares(torch.tensor([0.3, 0.3 + math.pi / 2])), squares(torch.tensor([0.3, 0.8]))
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=1e-4)
    assert (other[0] - other[1]).norm() > 5


def test_square_that_cannot_turn_is_refused():
    with pytest.raises(ValueError, match="side 60"):
        squares(torch.zeros(1), 64, 60)


def test_split_is_fixed_by_its_seed():
    train, test = split(8, 3, seed=5, size=16, side=8)
    assert (len(train), len(test)) == (8, 3)
    assert torch.equal(split(8, 3, seed=5, size=16, side=8)[1], test)
    assert not torch.equal(split(8, 3, seed=6, size=16, side=8)[1], test)


@pytest.mark.parametrize("bias", [False, True])
def test_analysis_sums_to_the_output(bias):
    net = SquaresNet(bias, 16, TINY["widths"]).eval()
    x = squares(torch.tensor([0.4]), 16, 8)[0]
    a = analyse(net, x)
    close = {"rtol": 20 * RELATIVE[torch.float32], "atol": 1e-5}
    rebuilt = (a.spectrum.coefficients[:, None, None] * a.spectrum.left).sum(0)
    torch.testing.assert_close(rebuilt, a.linear, **close)
    whole = a.linear + sum(a.layers.values(), torch.zeros(16, 16))
    torch.testing.assert_close(whole, net(x[None])[0].detach(), **close)
    assert len(a.layers) == (len(TINY["widths"]) * 2 if bias else 0)
    assert (a.spectrum.coefficients >= 0).all()
    assert len(a.spectrum.values) <= TINY["widths"][-1]
    torch.testing.assert_close(a.spectrum.contraction.sum((1, 2)) * a.spectrum.values, a.spectrum.coefficients, **close)


def test_a_dead_bottleneck_is_named():
    net = SquaresNet(True, 16, TINY["widths"]).eval()
    with torch.no_grad():
        net.encoder[-2].bias.fill_(-100)
    with pytest.raises(ValueError, match="no unit of the bottleneck is open"):
        analyse(net, squares(torch.tensor([0.4]), 16, 8)[0])


def test_data_spectrum_is_the_matrix_s_own():
    images, test = split(20, 1, seed=0, size=16, side=8)
    spectrum = data_spectrum(images, test[0])
    expected = torch.linalg.svdvals(images.flatten(1).double())
    torch.testing.assert_close(spectrum.values[:8].double(), expected[:8], rtol=1e-5, atol=1e-5)


def test_the_analysis_is_that_of_the_dense_jacobian():
    """A second route: torch's own Jacobian, NumPy's SVD, the bias as f(x) − J x."""
    net, x = SquaresNet(True, 16, TINY["widths"]).eval(), squares(torch.tensor([0.4]), 16, 8)[0]
    a, zones = analyse(net, x), Zones.of(16, 8)
    data = data_spectrum(split(20, 1, seed=0, size=16, side=8)[0], x)
    found = of_image(a, zones, data)
    with torch.no_grad():
        J = torch.autograd.functional.jacobian(lambda v: net(v.reshape(1, 16, 16)).flatten(), x.flatten()).double()
        output = net(x[None])[0].flatten().double()
    U, S, Vh = np.linalg.svd(J.numpy())
    c = S * np.abs(Vh @ x.flatten().double().numpy())[: len(S)]
    linear = J @ x.flatten().double()
    bias = output - linear
    assert [found[f"c{k}"] for k in range(4)] == pytest.approx(c[:4].tolist(), rel=1e-3, abs=1e-5)
    assert found["dominant"] == int(c.argmax())
    assert found["dominant_share"] == pytest.approx((c.max() ** 2 / (linear @ linear)).item(), rel=1e-3)
    assert found["bias_share"] == pytest.approx(((bias @ output) / (output @ output)).item(), rel=1e-3)
    assert found["bias_share"] + found["linear_share"] == pytest.approx(1, abs=1e-4)
    last = net.decoder[-1].bias.detach().double()
    assert found["last_share"] == pytest.approx(((last @ output) / (output @ output)).item(), rel=1e-3)
    left = torch.from_numpy(U[:, c.argmax()])
    alone = c.max() * left * torch.sign(torch.from_numpy(Vh[c.argmax()]) @ x.flatten().double())
    assert found["error_of_dominant"] == pytest.approx(((alone - x.flatten()).norm() / x.norm()).item(), rel=1e-3)
    assert found["left_input"] == pytest.approx(abs(float(left @ x.flatten().double() / x.norm())), rel=1e-3)
    top = np.linalg.svd(split(20, 1, seed=0, size=16, side=8)[0].flatten(1).double().numpy())[2][0]
    assert found["last_data"] == pytest.approx(abs(float(last.numpy() @ top) / float(last.norm())), rel=1e-3)


def test_zones_part_the_image_by_what_squares_reach():
    zones, images = Zones.of(64, 32), squares(torch.linspace(0, math.pi / 2, 90))
    assert (zones.bulk.int() + zones.edge.int() + zones.outside.int() == 1).all()
    assert (images[:, zones.bulk] == 1).all()
    assert (images[:, zones.outside] == 0).all()
    spread = images.amax(0) - images.amin(0)
    assert (spread[zones.edge] > 0).float().mean() > 0.9  # the edge is what differs
    part = torch.rand(64, 64)
    assert sum(energy(part, z) for z in (zones.bulk, zones.edge, zones.outside)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("frequency", [0, 3, 4, 8])
def test_angular_frequencies_are_found(frequency):
    at = torch.arange(64) - 31.5
    radius, angle = (at[:, None] ** 2 + at**2).sqrt(), torch.atan2(at[:, None], at[None, :])
    shares = angular(torch.cos(frequency * angle + 0.3) * torch.exp(-((radius - 18) / 3) ** 2))
    assert shares.argmax() == frequency
    assert shares.max() > 0.98
    assert shares.sum() == pytest.approx(1, abs=1e-5)


def test_a_square_has_only_multiples_of_four():
    shares = angular(squares(torch.tensor([0.2]))[0])
    assert shares[[0, 4, 8, 12]].sum() > 0.98
    assert shares[[0, 4, 8, 12]].tolist() == sorted(shares[[0, 4, 8, 12]].tolist(), reverse=True)


def study(out, **changed) -> Study:
    return Study(out, "squares", **{"options": {"epochs": 3}, "progress": Progress(False), "quick": True, **changed})


def test_tiny_run_writes_everything_and_resumes(tmp_path, monkeypatch):
    s = study(tmp_path, seed=1)
    run(s, **TINY)
    s.finish()
    assert {p.name for p in tmp_path.iterdir()} == {
        "index.html", "numbers.json", "run.json", "steps", "figure8.png", "figure8.svg", "figure9.png", "figure9.svg",
        "figure9-fast-bias.png", "figure9-fast-bias.svg"}
    assert (tmp_path / "figure8.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "numbers.json").read_bytes()
    numbers = json.loads(text)
    assert set(numbers) == {"without-bias", "with-bias", "fast-bias", "data", "operator", "tables"}
    assert len(numbers["with-bias"]["losses"]["value"]) == 3
    assert numbers["fast-bias"]["last_data"]["paper"].startswith("3.1: the bias of the last decoder layer aligns")
    low, high = numbers["operator"]["c0"]["interval"]
    assert low <= numbers["operator"]["c0"]["value"] <= high
    layers = numbers["tables"]["with-bias-by-layer"]
    assert [row["layer"] for row in layers][-1] == "decoder.4"
    monkeypatch.setattr("specxai.experiments.squares.experiment.train", None)  # nothing is trained again
    again = study(tmp_path, seed=1)
    run(again, **TINY)
    again.finish()
    assert (tmp_path / "numbers.json").read_bytes() == text


def test_the_full_run_trains_from_several_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr("specxai.experiments.squares.experiment.SEEDS", 2)
    s = study(tmp_path, quick=False, options={"epochs": 2})
    run(s, **{**TINY, "train": 32})
    rows = s.numbers["tables"]["seeds-with-bias"]
    assert [row["seed"] for row in rows] == [0, 1]
    assert rows[0]["relative error"] != rows[1]["relative error"]


@pytest.mark.parametrize("settings, message", [({"size": 0}, "size is 0"), ({"batch": 100}, "batch of 100")])
def test_settings_out_of_range_are_refused_before_anything_is_trained(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(study(tmp_path), **{**TINY, **settings})
    assert list(tmp_path.iterdir()) == []


def test_images_with_a_closed_bottleneck_are_counted_and_left_out():
    net, images = SquaresNet(True, 16, TINY["widths"]).eval(), squares(torch.tensor([0.1, 0.6, 1.2]), 16, 8).double()
    net = net.double()
    with torch.no_grad():  # at the first image every unit of the bottleneck is just closed
        net.encoder[-2].bias -= net.encoder[:-1](images[:1].flatten(1))[0] + 1e-6
    assert bool((net.encoder(images.flatten(1)).sum(1) > 0).tolist() == [False, True, True])
    data = data_spectrum(split(20, 1, seed=0, size=16, side=8)[0].double(), images[0])
    chosen = Settings(size=16, side=8)
    found = _measure(net, images, data, chosen)
    assert found["closed"] == 1
    assert len(found["error"]) == 2
    assert torch.equal(_first_open(net, images).x, images[1])
    with pytest.raises(ValueError, match="no unit of the bottleneck is open"):
        _measure(net, images[:1], data, chosen)
