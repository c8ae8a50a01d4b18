"""Figures show every term, at one signed scale a row, and print that scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.colors import CenteredNorm
from PIL import Image

from specxai.plots import heatmap, plot_explanation
from specxai.plots.spectrum import signed, waterfall_steps
from specxai.spectral import Decomposition


def texts(figure) -> str:
    """All text on the figure, colour bars and twin axes included."""
    import matplotlib.text

    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def images(figure, cmap):
    return [im for axes in figure.get_axes() for im in axes.get_images() if im.get_cmap().name == cmap]


def test_writes_a_picture_and_leaves_no_draft(explanation, tmp_path):
    plot_explanation(explanation(), tmp_path / "deep" / "e.png")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["e.png"]
    pixels = np.asarray(Image.open(tmp_path / "deep" / "e.png").convert("L"))
    assert pixels.shape[0] > 1000
    assert pixels.std() > 10


def test_pyplot_is_left_alone(explanation):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    plot_explanation(explanation())
    assert plt.get_fignums() == before


def test_every_term_is_on_the_figure(explanation):
    e = explanation()
    shown = texts(plot_explanation(e))
    for word in ("bias 0.25", "bypass 0.5", "remainder 0.125", "exactness 1e-07", "output[1]", "features.3", "red > 0",
                 "full spectrum: 6 components", "reduced spectrum", "from zero to the output"):
        assert word in shown, word


@pytest.mark.parametrize("agreement, words", [(3.2e-8, "agreement 3e-08"), (None, "agreement not checked")])
def test_agreement_stands_beside_exactness(explanation, agreement, words):
    assert words in texts(plot_explanation(explanation(agreement=agreement)))


def test_names_are_drawn_on_one_line(explanation):
    shown = texts(plot_explanation(explanation(layer="a\nb\x1b[2J")))
    assert "at layer a\\nb\\x1b[2J" in shown


@pytest.mark.parametrize("k", [0, 1, 6])
def test_a_decomposition_is_drawn_with_its_residuals(tmp_path, k):
    v = torch.eye(8, dtype=torch.float64)[:, :k]
    s = torch.linspace(3, 0.5, k, dtype=torch.float64)
    d = Decomposition(
        layer="relu", U=v, S=s, V=v, residuals=torch.full((k,), 1e-7, dtype=torch.float64), projections=s,
        indices=torch.arange(k), x=torch.ones(2, 4), layer_shape=(8,), image=torch.ones(8), error=0.1, method="exact",
        products=9, seed=0, gates="tangent", backend="native", exactness=1e-8)
    figure = d.plot(tmp_path / "d.png")
    assert [p.name for p in tmp_path.iterdir()] == ["d.png"]
    shown, (axes,) = texts(figure), figure.axes
    assert f"{k} components of the map to layer relu" in shown
    if not k:
        assert "no components" in shown
        return
    values, residuals, bound = axes.get_lines()
    assert values.get_ydata().tolist() == s.tolist()
    assert residuals.get_ydata().tolist() == [1e-7] * k
    assert set(bound.get_ydata()) == {0.1}


def test_maps_are_signed_centred_and_share_a_scale(explanation):
    e = explanation()
    figure = plot_explanation(e)
    drawn = images(figure, heatmap.PALETTE)
    assert len(drawn) == 7  # three vectors, the total, three contributions
    assert all(isinstance(im.norm, CenteredNorm) and im.norm.vcenter == 0 for im in drawn)
    first, second = {im.norm.halfrange for im in drawn[:3]}, {im.norm.halfrange for im in drawn[3:]}
    assert len(first) == len(second) == 1
    assert any((im.get_array() < 0).any() for im in drawn)
    c = e[e.top(3)].contract().numpy()
    half = np.percentile(np.abs(c), 98)
    assert first.pop() == pytest.approx(half, rel=1e-6)
    assert f"±{half:.3g}, the 98th percentile" in texts(figure)


def test_contribution_maps_add_up_to_their_alpha(explanation):
    e = explanation()
    drawn = images(plot_explanation(e), heatmap.PALETTE)[3:]
    wanted = [float(e.alpha.sum()), *(float(e.alpha[k]) for k in e.top(3, by="reduced"))]
    assert [float(im.get_array().sum()) for im in drawn[: len(wanted)]] == pytest.approx(wanted, abs=1e-5)


def test_the_input_is_shown_before_normalisation(explanation):
    e = explanation(shape=(3, 8, 6))
    raw = np.random.default_rng(0).random((8, 6, 3))
    assert np.allclose(plot_explanation(e, image=raw).get_axes()[0].get_images()[0].get_array(), raw)
    undone = plot_explanation(e, mean=[0.5] * 3, std=[0.1] * 3).get_axes()[0].get_images()[0].get_array()
    assert np.allclose(undone, (e.x.numpy() * 0.1 + 0.5).clip(0, 1).transpose(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize("shape, k, top", [((7,), 4, 3), ((2, 50), 3, 3), ((1, 5, 5), 1, 3), ((4, 5, 5), 0, 3),
                                           ((3, 6, 6), 6, 5)])
def test_any_input_of_up_to_three_axes(explanation, tmp_path, shape, k, top):
    e = explanation(shape=shape, k=k)
    plot_explanation(e, tmp_path / "e.png", top=top)
    assert (tmp_path / "e.png").stat().st_size > 10_000


def test_more_axes_need_dim(explanation):
    e = explanation(shape=(2, 3, 4, 4), k=2)
    with pytest.raises(ValueError, match="pass dim="):
        plot_explanation(e)
    plot_explanation(e, dim=(0, 1))


def test_bars_of_a_row_share_their_limits(explanation):
    axes = [a for a in plot_explanation(explanation(shape=(9,))).get_axes() if a.get_title().startswith("λ")]
    assert len({a.get_ylim() for a in axes}) == 1
    assert len(axes) == 3


def test_dollar_signs_in_a_title_are_text(explanation, tmp_path):
    plot_explanation(explanation(), tmp_path / "e.png", title="costs $5 or $\\bad{ <b>")


@pytest.mark.parametrize("top", [0, 2, 50])
def test_the_waterfall_ends_at_the_output(explanation, top):
    e = explanation()
    steps = waterfall_steps(e, top)
    assert sum(amount for _, amount in steps) == pytest.approx(e.output)
    assert [name for name, _ in steps][-3:] == ["bias", "bypass", "remainder"]


def test_half_range_survives_zeros_and_outliers():
    assert heatmap.half_range([np.zeros((4, 4))]) == 1.0
    assert heatmap.half_range([]) == 1.0
    spike = np.zeros(1000)
    spike[0] = 5.0
    assert heatmap.half_range([spike]) == 5.0
    assert heatmap.half_range([np.concatenate([np.ones(999), [100.0]])]) == 1.0


def test_signs_are_true_minuses_and_zero_has_none():
    assert [signed(v) for v in (-1.5, 2.0, 0.0, -1e-7)] == ["−1.5", "+2", "0", "−1e-07"]


def test_both_zeros_of_the_spectrum_are_at_one_height(explanation):
    figure = plot_explanation(explanation())
    by_label = {axes.get_ylabel(): axes for axes in figure.get_axes()}
    low, high = next(a for label, a in by_label.items() if "bars" in label).get_ylim()
    bottom, top = next(a for label, a in by_label.items() if "grey" in label).get_ylim()
    assert low / high == pytest.approx(bottom / top)


def test_survivors_are_named_by_their_place_in_the_spectrum(explanation):
    e = explanation()
    axes = next(a for a in plot_explanation(e).get_axes() if a.get_title().startswith("reduced"))
    wanted = [str(int(e.indices[k])) for k in e.reduce().dominant]
    assert [t.get_text() for t in axes.get_xticklabels()] == wanted


@pytest.mark.parametrize("name", ["file/e.png", "e.xyz"])
def test_a_picture_that_cannot_be_written_leaves_nothing(explanation, tmp_path, name):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((OSError, ValueError), match=r"file is a file, not a folder|Format 'xyz'"):
        plot_explanation(explanation(), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
