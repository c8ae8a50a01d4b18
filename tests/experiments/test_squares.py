"""The rotated squares: the data, the nets, and a tiny run from nothing to figures."""

from __future__ import annotations

import math

import pytest
import torch

from specxai.experiments import Progress, Study
from specxai.experiments.squares import run
from specxai.experiments.squares.analysis import analyse, data_spectrum
from specxai.experiments.squares.data import rotated_squares, split, squares
from specxai.experiments.squares.model import SquaresNet
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


def study(out, **changed) -> Study:
    return Study(out, "squares", options={"epochs": 3}, progress=Progress(False), **changed)


def test_tiny_run_writes_everything(tmp_path):
    s = study(tmp_path, seed=1)
    run(s, **TINY)
    s.finish()
    assert {p.name for p in tmp_path.iterdir()} == {
        "index.html", "numbers.json", "run.json", "steps", "figure8.png", "figure8.svg", "figure9.png", "figure9.svg"}
    assert (tmp_path / "figure8.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("settings, message", [({"size": 0}, "size is 0"), ({"batch": 100}, "batch of 100")])
def test_settings_out_of_range_are_refused_before_anything_is_trained(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        run(study(tmp_path), **{**TINY, **settings})
    assert list(tmp_path.iterdir()) == []
