"""Every drawing takes an axis or makes one, draws the numbers that it was given, and says what red means."""

from __future__ import annotations

import math

import matplotlib.text
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import specxai
from specxai import plots
from specxai.plots import heatmap


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(2)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 20), torch.nn.ReLU(), torch.nn.Linear(20, 14),
                               torch.nn.ReLU(), torch.nn.Linear(14, 4)).eval()


@pytest.fixture(scope="module")
def items(net):
    """One output at two layers, and the map to the first."""
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.4
    first, second = (specxai.explain(net, x, layer=layer, target=2, rank=None) for layer in ("2", "4"))
    return first, second, specxai.decompose(net, x, layer="2", rank=None)


SHAPE = torch.tensor([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 1.5]]), torch.tensor([[0, 1, 2], [0, 1, 3], [0, 2, 3]])
FLAT = {
    "heat map": lambda i, axis: plots.draw_heatmap(i[0], axis),
    "heat map of a decomposition": lambda i, axis: plots.draw_heatmap(i[2], axis),
    "heat map of an array": lambda i, axis: plots.draw_heatmap(np.eye(3) - 0.5, axis),
    "heat map of a line": lambda i, axis: plots.draw_heatmap(np.arange(-3.0, 4), axis),
    "spectrum": lambda i, axis: plots.draw_spectrum(i[0], axis),
    "spectrum of a decomposition": lambda i, axis: plots.draw_spectrum(i[2], axis),
    "reduced": lambda i, axis: plots.draw_reduced(i[0], axis),
    "waterfall": lambda i, axis: plots.draw_waterfall(i[0], axis),
    "biases": lambda i, axis: plots.draw_biases(i[0], axis),
    "similarity": lambda i, axis: plots.draw_similarity([i[0], i[2]], axis),
    "evolution": lambda i, axis: plots.draw_evolution(i[:2], axis, top=2),
    "tokens": lambda i, axis: plots.draw_tokens([1.0, -0.7, 0.2], ["a", "[SEP]", "$x_1$ costs"], axis),
}


def words(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


@pytest.mark.parametrize("name", FLAT)
def test_an_axis_is_drawn_on_and_returned_or_made(items, name):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    given = Figure().subplots()
    assert FLAT[name](items, given) is given
    made = FLAT[name](items, None)
    assert made.figure is not given.figure
    assert plt.get_fignums() == before
    for axis in (given, made):
        assert "red" in words(axis.figure)


@pytest.mark.parametrize("name", [*FLAT, "shape"])
def test_colour_is_on_the_picture(items, name):
    axis = (plots.draw_contributions_3d(np.array([1.0, 1, -1, 0.2]), *SHAPE) if name == "shape"
            else FLAT[name](items, None))
    picture = pixels(axis.figure)
    red, green, blue = picture.reshape(-1, 3).T
    assert ((abs(red - blue) > 60) & (np.maximum(red, blue) - green > 30)).sum() > 500
    assert picture.std() > 10


# ---- heat maps


@pytest.mark.parametrize("of, total", [("projection", "projections"), ("contribution", "alpha")])
def test_a_map_adds_up_to_the_number_of_its_component(items, of, total):
    e = items[0]
    for k in (0, 2, -1):
        assert plots.component_map(e, k, of=of).sum() == pytest.approx(float(getattr(e, total)[k]), abs=1e-5)
    drawn = plots.draw_heatmap(e, k=2, of=of).get_images()[0].get_array()
    np.testing.assert_allclose(drawn, plots.component_map(e, 2, of=of))


def test_all_maps_together_add_up_to_everything(items):
    e = items[0]
    parts = sum(plots.component_map(e, k, of="contribution") for k in range(len(e)))
    np.testing.assert_allclose(plots.component_map(e, None, of="contribution"), parts, atol=1e-6)


def test_an_average_is_that_of_the_vector_over_channels(items):
    e, _, d = items
    np.testing.assert_allclose(plots.component_map(e, 1, of="average"), e.right_vectors[1].mean(0), atol=1e-6)
    np.testing.assert_allclose(np.abs(plots.component_map(d, 1, of="average")),
                               np.abs(plots.component_map(e, 1, of="average")), atol=1e-4)


def test_what_red_means_depends_on_what_is_drawn(items):
    e, _, d = items
    assert "red: adds to the output" in words(plots.draw_heatmap(e).figure)
    assert "red: φ·x > 0 here" in words(plots.draw_heatmap(d).figure)
    assert "red: φ > 0" in words(plots.draw_heatmap(d, of="average").figure)
    assert "red" not in words(plots.draw_heatmap(d, legend=False).figure)


def test_the_title_says_what_was_done_to_the_map(items):
    plain = plots.draw_heatmap(items[0])
    shown = plots.draw_heatmap(items[0], smooth=1, threshold=0.25, title="A $ name")
    assert plain.get_title().startswith("α₀ = ")
    assert "smoothed" not in words(plain.figure)
    assert shown.get_title() == "A $ name\nsmoothed, σ = 1 pixels; below 25% of the largest: not drawn"
    drawn = np.abs(shown.get_images()[0].get_array())
    assert (drawn[drawn > 0] >= 0.25 * drawn.max()).all()
    assert (drawn == 0).any()
    pixels(shown.figure)  # the $ is text


def test_the_scale_is_the_percentile_or_the_caller_s(items):
    own, given = plots.draw_heatmap(items[0]), plots.draw_heatmap(items[0], half=2.0)
    half = heatmap.half_range([plots.component_map(items[0], 0, of="contribution")])
    assert own.get_images()[0].norm.halfrange == pytest.approx(half)
    assert f"±{half:.3g}, the 98th percentile" in words(own.figure)
    assert given.get_images()[0].norm.halfrange == 2
    assert "percentile" not in words(given.figure)


@pytest.mark.parametrize("options, cause", [
    ({"of": "colour"}, "choose 'projection'"), ({"k": 50}, "k=50 is out of range"),
    ({"k": None, "of": "average"}, "k=None"),
    ({"dim": ()}, "pass dim="), ({"dim": (0, 1, 2)}, "no map"), ({"smooth": -1}, "smooth=-1"),
    ({"threshold": 1}, "threshold=1"),
])
def test_maps_that_cannot_be_drawn(items, options, cause):
    with pytest.raises(ValueError, match=cause):
        plots.draw_heatmap(items[0], **options)


def test_a_decomposition_contributes_to_nothing(items):
    with pytest.raises(ValueError, match="knows no output"):
        plots.draw_heatmap(items[2], of="contribution")


# ---- biases


def test_bias_bars_are_the_layers_in_order_and_their_sum(items):
    e = items[0]
    axis = plots.draw_biases(e)
    assert [t.get_text() for t in axis.get_yticklabels()] == [*e.bias_contributions, "sum"]
    widths = [bar.get_width() for bar in axis.patches]
    assert widths == pytest.approx([*e.bias_contributions.values(), e.bias], abs=1e-5)
    low, high = axis.get_xlim()
    assert low < min(widths)
    assert max(widths) < high


@pytest.mark.parametrize("top, labels", [(0, ["3 other layers", "sum"]), (1, ["c", "2 other layers", "sum"])])
def test_small_biases_share_a_bar(top, labels):
    axis = plots.draw_biases({"a": 1.0, "b": -0.5, "c": -4.0}, top=top)
    assert [t.get_text() for t in axis.get_yticklabels()] == labels
    assert sum(bar.get_width() for bar in axis.patches[:-1]) == pytest.approx(-3.5)
    assert axis.patches[-1].get_width() == pytest.approx(-3.5)


# ---- similarity


def test_similarity_is_the_absolute_cosine_of_the_vectors(net, items):
    e, _, d = items
    other = specxai.decompose(net, torch.ones(1, 3, 4, 4), layer="2", rank=None)
    found = plots.similarity([e, d, other], k=1)
    wanted = torch.nn.functional.cosine_similarity(e.right_vectors[1].flatten(), other.V[:, 1], dim=0).abs()
    assert found[0, 2] == pytest.approx(float(wanted), abs=1e-5)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-6)
    assert found[0, 1] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(found, found.T)


def test_a_matrix_is_drawn_as_it_is_with_its_labels():
    matrix = np.array([[1, 0.25], [0.25, 1]])
    axis = plots.draw_similarity(matrix, labels=["a", "b\n"], title="t", meaning="cosine")
    (image,) = axis.get_images()
    np.testing.assert_array_equal(image.get_array(), matrix)
    assert image.get_clim() == (0, 1)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["a", "b\\n"]
    assert sorted(t.get_text() for t in axis.texts) == ["0.25", "0.25", "1.00", "1.00"]
    assert "cosine\nred: 1, the same" in words(axis.figure)
    assert not plots.draw_similarity(np.eye(40)).texts


@pytest.mark.parametrize("source, options, cause", [
    (np.ones((2, 3)), {}, "square"), (-np.eye(2), {}, r"lie in \[0, 1\], got -1"),
    (np.eye(2) * math.nan, {}, "got nan"), (np.eye(2), {"labels": ["a"]}, "1 labels for 2 rows"),
    ([], {}, "nothing to compare"),
])
def test_matrices_that_cannot_be_drawn(source, options, cause):
    with pytest.raises(ValueError, match=cause):
        plots.draw_similarity(source, **options)


def test_vectors_that_cannot_be_compared(items):
    net = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU()).eval()
    with pytest.raises(ValueError, match="different sizes, \\[5, 48\\]"):
        plots.similarity([items[0], specxai.decompose(net, torch.ones(1, 5), layer="1", rank=None)])
    with pytest.raises(ValueError, match="k=6 is out of range: item 1 has"):
        plots.similarity(items[:2], k=6)


# ---- evolution


def test_the_strip_has_a_column_a_layer_and_rows_for_vectors_and_spectrum(items):
    first, second, _ = items
    axis = plots.draw_evolution([first, second], top=2, by="alpha")
    panels = axis.child_axes
    assert len(panels) == 6
    for row in range(2):
        for column, e in enumerate((first, second)):
            k = e.top(2, "alpha")[row]
            np.testing.assert_allclose(panels[2 * row + column].get_images()[0].get_array(),
                                       plots.component_map(e, k, of="contribution"))
    assert panels[0].get_title().startswith("2\nα")
    grey, bars = panels[5].patches[:len(second)], panels[5].patches[len(second):]
    assert grey[0].get_height() == 1
    alpha = second.alpha / second.alpha.abs().max()
    assert [bar.get_height() for bar in bars] == pytest.approx(alpha.tolist())


def test_the_strip_calls_what_draws_and_says_where_vectors_end(items):
    e, calls = items[1][:1], []
    axis = plots.draw_evolution([e], top=2, by="lambda", labels=["deep"], projection="3d",
                                draw=lambda panel, one, k: calls.append((panel.name, one is e, k)))
    assert calls == [("3d", True, 0)]
    assert "none left" in words(axis.figure)
    assert axis.child_axes[0].get_title().startswith("deep\n")
    for wrong in ({"explanations": []}, {"explanations": [e], "top": 0}, {"explanations": [e], "labels": ["a", "b"]}):
        with pytest.raises(ValueError, match=r"give (at least )?one"):
            plots.draw_evolution(**wrong)


# ---- shapes


def test_a_face_has_the_colour_of_its_corners_mean():
    axis = plots.draw_contributions_3d(np.array([1.0, 1, 1, -3]), *SHAPE, half=1.0)
    (surface,) = axis.collections
    colours = surface.get_facecolor()  # in the order of depth
    assert sorted(c[0] > c[2] for c in colours) == [False, False, True]  # means −1/3, −1/3: blue, 1: red
    assert axis.get_title() == "±1"
    size = [high - low for low, high in (axis.get_xlim(), axis.get_ylim(), axis.get_zlim())]
    aspect = np.asarray(axis._box_aspect)
    np.testing.assert_allclose(np.asarray(size) / size[0], aspect / aspect[0])  # a metre is a metre along each axis


@pytest.mark.parametrize("shape, dim", [((4, 3), 1), ((3, 4), 0)])
def test_an_explanation_of_coordinates_is_contracted_to_its_vertices(shape, dim):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    x = torch.rand(1, *shape)
    e = specxai.explain(net.eval(), x, layer="2", target=0, rank=None)
    vertices = x[0] if dim == 1 else x[0].T
    axis = plots.draw_contributions_3d(e, vertices, k=1)
    values = (e.psi[1] * e.S[1]).item() * (e.right_vectors[1] * e.x).sum(dim)
    (points,) = axis.collections
    pixels(axis.figure)  # colours are in the order of depth, which is known after drawing
    red = points.get_facecolor()[:, 0] > points.get_facecolor()[:, 2]
    assert len(red) == 4
    assert int(red.sum()) == int((values > 0).sum())
    assert "red: adds to the output" in words(axis.figure)


@pytest.mark.parametrize("values, vertices, faces, cause", [
    (np.ones(3), SHAPE[0], SHAPE[1], r"\(3,\) values for 4 vertices"), (np.ones(4), np.ones((4, 2)), None, r"\(n, 3\)"),
    (np.ones(4), SHAPE[0], [[0, 1, 4]], "faces name vertices 0 to 4, and there are 4"),
    (np.ones(4), SHAPE[0], [[0.0, 1, 2]], "faces must be whole numbers"),
])
def test_shapes_that_do_not_fit_together(values, vertices, faces, cause):
    with pytest.raises(ValueError, match=cause):
        plots.draw_contributions_3d(values, vertices, faces)


def test_a_flat_axis_is_refused():
    with pytest.raises(ValueError, match="projection='3d'"):
        plots.draw_contributions_3d(np.ones(4), *SHAPE, Figure().subplots())


def test_every_public_name_is_there_and_documented():
    for name in plots.__all__:
        assert getattr(plots, name).__doc__
