"""Cars and turbines: the generators, the formulas by a second route, the decomposition, a tiny run to the page."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch

from specxai.experiments import Progress, Study, load
from specxai.experiments.surfaces import analysis, car_set, page, turbine_set
from specxai.experiments.surfaces import car_shapes as cars
from specxai.experiments.surfaces import turbine_shapes as turbines
from specxai.experiments.surfaces.mesh import areas, rounded, spline_weights, volume
from specxai.experiments.surfaces.nets import AutoEncoder, Composed, regressor
from specxai.experiments.surfaces.render import camera, still
from specxai.experiments.surfaces.train import (
    Preconditioner,
    Settings,
    bootstrap_r_squared,
    dataset,
    predict,
    r_squared,
    train,
)
from tolerances import RELATIVE

SETS = {"car": car_set(), "turbine": turbine_set()}
TINY = {"train": 120, "test": 12, "epochs": 2, "head_epochs": 2}


def rows(shapes, count=4, seed=0):
    return shapes.draw(count, torch.Generator().manual_seed(seed))


def changed(shapes, name, value):
    """Rows of one shape twice, the second with another value of a parameter."""
    pair = rows(shapes, 1).repeat(2, 1)
    pair[1, [p.name for p in shapes.parameters].index(name)] = value
    return pair


# ---- generators

@pytest.mark.parametrize("name", SETS)
def test_shapes_correspond(name):
    shapes = SETS[name]
    vertices = shapes.build(rows(shapes, 6))
    assert vertices.shape == (6, 3, shapes.vertices)
    assert 800 <= shapes.vertices <= 2500
    assert torch.isfinite(vertices).all()
    assert shapes.faces.unique().tolist() == list(range(shapes.vertices))  # no vertex without a face
    assert torch.equal(sum(mask.int() for mask in shapes.parts.values()), torch.ones(shapes.vertices).int())
    # The same vertex stays at the same place of the shape: far from every other part, relative to the shape's size.
    spread = (vertices - vertices.mean(0)).norm(dim=1).max() / (vertices.amax(2) - vertices.amin(2)).norm(dim=1).min()
    assert spread < 0.35


@pytest.mark.parametrize("name", SETS)
def test_faces_look_outward_and_share_edges_both_ways(name):
    shapes = SETS[name]
    vertices = shapes.build(rows(shapes))
    for mask in shapes.parts.values():
        faces = shapes.faces[mask[shapes.faces].all(1)]
        assert (volume(vertices - vertices[:, :, mask].mean(2, keepdim=True), faces) > 0).all()
    f = shapes.faces
    directed = torch.cat([f[:, [0, 1]], f[:, [1, 2]], f[:, [2, 0]]])
    assert len(directed.unique(dim=0)) == len(directed)  # neighbours run along their common edge in opposite ways


def test_a_car_is_its_mirror_image_to_the_last_digit():
    shapes = SETS["car"]
    vertices = shapes.build(rows(shapes, 5))
    assert torch.equal(shapes.reflect(vertices), vertices)
    assert torch.equal(shapes.mirror[shapes.mirror], torch.arange(shapes.vertices))
    assert (shapes.mirror != torch.arange(shapes.vertices)).double().mean() > 0.9


def test_a_car_s_body_is_closed():
    shapes = SETS["car"]
    vertices = shapes.build(rows(shapes))
    faces = shapes.faces[shapes.parts["body"][shapes.faces].all(1)]
    assert areas(vertices, faces).sum(1).abs().max() < 1e-12  # area vectors of a closed surface cancel


def test_cars_have_the_sizes_that_they_were_asked_for():
    shapes = SETS["car"]
    asked = rows(shapes, 50)
    vertices = shapes.build(asked)
    body = vertices[:, :, shapes.parts["body"]]
    extent = body.amax(2) - body.amin(2)
    torch.testing.assert_close(extent[:, 0], shapes.column(asked, "length"), rtol=0.01, atol=0)
    torch.testing.assert_close(extent[:, 1], shapes.column(asked, "width"), rtol=0.02, atol=0)
    torch.testing.assert_close(body[:, 2].amax(1), shapes.column(asked, "height"), rtol=0.02, atol=0)
    torch.testing.assert_close(body[:, 2].amin(1), shapes.column(asked, "clearance"), rtol=0.02, atol=0)
    wheels = vertices[:, 2][:, shapes.parts["wheels"]]
    torch.testing.assert_close(wheels.amax(1), 2 * shapes.column(asked, "wheel"))
    torch.testing.assert_close(wheels.amin(1), torch.zeros(50).double(), rtol=0, atol=1e-12)


def test_slants_of_the_mesh_are_the_parameters():
    shapes = SETS["car"]
    asked = rows(shapes, 20)
    line = shapes.build(asked).unflatten(2, (-1,))[:, :, :cars.STATIONS * cars.RING]
    roof = line.reshape(20, 3, cars.STATIONS, cars.RING)[..., cars.HALF - 1]  # along the middle of the top
    slope = torch.rad2deg(torch.atan2(roof[:, 2].diff(dim=1), roof[:, 0].diff(dim=1)))
    for name, sign in (("windscreen", 1), ("rear slant", -1)):
        nearest = (sign * slope - shapes.column(asked, name)[:, None]).abs().amin(1)
        assert nearest.max() < 1.5, name


def test_blades_are_copies_turned_by_a_third():
    shapes = SETS["turbine"]
    asked = rows(shapes)
    vertices = shapes.build(asked)
    hub = torch.stack([vertices[:, 0, shapes.parts["blade 1"]].mean(1), torch.zeros(4),
                       shapes.column(asked, "tower")], 1)[:, :, None]
    first, *others = (vertices[:, :, shapes.parts[f"blade {k}"]] - hub for k in (1, 2, 3))
    for k, other in enumerate(others, 1):
        angle = 2 * math.pi * k / 3
        turn = torch.tensor([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
        torch.testing.assert_close(turn.double() @ first, other, atol=1e-6, rtol=0)


def test_the_twist_breaks_the_mirror():
    shapes = SETS["turbine"]
    twisted = shapes.build(changed(shapes, "twist", 0.0))
    apart = (twisted - shapes.reflect(twisted)).norm(dim=1).amax(1)
    assert apart[0] > 2 * apart[1]  # leading and trailing edges differ, too


def test_rows_are_drawn_by_the_seed_within_their_ranges_and_valid():
    for shapes in SETS.values():
        found = rows(shapes, 200, seed=3)
        assert torch.equal(found, rows(shapes, 200, seed=3))
        assert not torch.equal(found, rows(shapes, 200, seed=4))
        for i, parameter in enumerate(shapes.parameters):
            assert found[:, i].min() >= parameter.low
            assert found[:, i].max() <= parameter.high
    assert cars.valid(rows(SETS["car"], 200)).all()
    with pytest.raises(ValueError, match="0 shapes"):
        SETS["car"].draw(0, torch.Generator())
    with pytest.raises(ValueError, match="13 columns are needed: length, width"):
        cars.build(torch.zeros(2, 5))


def test_spline_weights_reproduce_lines_and_ends():
    weights = spline_weights(9, 6)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(9).double())
    controls = rounded(torch.tensor([[[0.0, 0.0], [3.0, 6.0]]]).double(), 0.25)
    points = spline_weights(9, controls.shape[1]) @ controls
    torch.testing.assert_close(points[..., 1], 2 * points[..., 0])
    assert torch.equal(points[0, [0, -1]], controls[0, [0, -1]])


# ---- formulas by a second route

def test_drag_is_ahmed_s_measurement_at_his_angles():
    shapes = SETS["car"]
    for angle, measured in cars.AHMED:
        pair = changed(shapes, "rear slant", angle)
        rear = cars.drag_parts(pair)["rear"][1]
        assert float(rear) + cars.AHMED_REST == pytest.approx(measured, abs=1e-12)


def test_drag_rises_with_what_the_books_say():
    shapes = SETS["car"]
    for name, low, high in (("rear slant", 16.0, 29.0), ("windscreen", 26.0, 40.0), ("clearance", 0.14, 0.21)):
        pair = changed(shapes, name, high)
        pair[0, [p.name for p in shapes.parameters].index(name)] = low
        less, more = cars.drag(pair)
        assert less < more, name


def test_areas_of_the_formula_are_the_mesh_s():
    shapes = SETS["car"]
    asked = rows(shapes, 6)
    vertices = shapes.build(asked)
    named = {p.name: asked[:, i] for i, p in enumerate(shapes.parameters)}
    body = shapes.faces[shapes.parts["body"][shapes.faces].all(1)]
    skin = areas(vertices, body).norm(dim=2).sum(1)
    torch.testing.assert_close(cars.wetted(named), skin, rtol=0.1, atol=0)
    for v, row in zip(vertices, asked, strict=True):  # the silhouette from the front, counted in pixels
        picture = still(v.numpy(), shapes.faces.numpy(), np.ones((shapes.vertices, 3)), (-1.0, 0, 0), 200, 160,
                        frame=(np.array([0, 0, 0.8]), 1.25))
        area = picture[..., 3].sum() * (2.5 / 200) ** 2
        assert area == pytest.approx(cars.FRONTAL * float(row[1] * row[2]), rel=0.1)


def test_stress_is_that_of_loads_added_up_on_strips():
    shapes = SETS["turbine"]
    asked = rows(shapes, 5)
    blade, chord, taper, twist, hub, tower, _ = asked.T
    strips = 4000
    share = (torch.arange(strips) + 0.5) / strips
    r, tip = hub[:, None] + share * blade[:, None], hub + blade
    wind = 12.0 * (tower / 50.0) ** 0.2
    load = 0.5 * 1.225 * wind[:, None] ** 2 * (8 / 9) * (2 * math.pi * r / 3) * (blade[:, None] / strips)  # newtons
    place = 0.37
    at = hub + place * blade
    moment = (load * (r - at[:, None]).clamp(min=0)).sum(1)
    c = chord * blade * (1 + (taper - 1) * place)
    angle = torch.deg2rad(twist * (1 - place))
    # The section's second moment and highest point, from its outline.
    turn = torch.linspace(0, 2 * math.pi, 20001)[:-1].double()
    inertia, height = torch.zeros(5).double(), torch.zeros(5).double()
    for i in range(5):
        y, x = c[i] / 2 * turn.cos(), 0.125 * c[i] * turn.sin()
        across = x * angle[i].cos() - y * angle[i].sin()
        along = x * angle[i].sin() + y * angle[i].cos()
        step = across.roll(-1) - across, along.roll(-1) - along
        cross = along * step[0] - across * step[1]  # twice the area of a sector
        inertia[i] = (cross * (across**2 + across * across.roll(-1) + across.roll(-1) ** 2) / 12).sum().abs()
        height[i] = across.max()
    expected = moment * height / (inertia * (1 - 0.96**4)) / 1e6
    places, found = turbines.stress_along(asked)
    nearest = (places - at[:, None]).abs().argmin(1, keepdim=True)
    torch.testing.assert_close(found.gather(1, nearest)[:, 0], expected, rtol=2e-3, atol=0)
    assert tip.min() > 0
    assert (turbines.stress(asked) >= found[:, 0]).all()


def test_stress_does_not_read_the_tower_s_radius():
    pair = changed(SETS["turbine"], "tower radius", 2.0)
    assert len(turbines.stress(pair).unique()) == 1
    assert len(turbines.stress(changed(SETS["turbine"], "tower", 41.0)).unique()) == 2


# ---- nets

def test_the_preconditioner_folds_into_the_same_net():
    data = dataset(SETS["turbine"], Settings(**TINY))
    x = data.x[:data.train]
    space, net = Preconditioner.of(x), AutoEncoder(x.shape[2])
    first, last = net.encoder[1], net.decoder[-2]
    with torch.no_grad():
        before = space.output(net(space.forward(x[:5])), last.bias)
        space.fold(first, last)
        scale = float(before.abs().max())
        torch.testing.assert_close(net(x[:5]), before, rtol=0, atol=scale * 2e-3)  # float32, gains of a thousand
    whitened = (x.flatten(1) - space.mean) @ space.directions.T / space.spread
    assert whitened.square().mean() == pytest.approx(1, abs=0.01)


def test_training_is_fixed_by_its_seed_and_learns():
    chosen = Settings(train=300, test=60, epochs=14, head_epochs=60)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = dataset(SETS["turbine"], chosen)
        one, other = (train(data, chosen) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one.composed.state_dict().values(),
                                                 other.composed.state_dict().values(), strict=True))
    assert one.losses[-1] < 0.1 * one.losses[0]
    predicted = predict(one.composed, data.x[data.test])[:, 0]
    score = r_squared(data.y[data.test], predicted)
    low, high = bootstrap_r_squared(data.y[data.test], predicted, torch.Generator().manual_seed(0))
    assert low < score < high
    assert score > 0.5  # few shapes and epochs; the experiment itself reports its own


def test_settings_say_what_is_too_small():
    with pytest.raises(ValueError, match="at least 100 shapes"):
        Settings(train=20)


def test_r_squared_is_numpy_s():
    target = torch.randn(50, generator=torch.Generator().manual_seed(0)).double()
    predicted = torch.zeros(50)
    assert r_squared(target, target) == 1
    expected = 1 - float((target**2).sum() / ((target - target.mean()) ** 2).sum())
    assert r_squared(target, predicted) == pytest.approx(expected)


# ---- analysis

def random_net(vertices):
    torch.manual_seed(0)
    return Composed(AutoEncoder(vertices, (24, 20), 12).encoder, regressor(12, (16, 12))).eval().double()


@pytest.mark.parametrize("layer", analysis.LAYERS.values())
def test_contributions_add_up_to_the_output(layer):
    x = torch.randn(3, 30, generator=torch.Generator().manual_seed(1)).double()
    net = random_net(30)
    v = analysis.view(net, x, layer)
    close = {"rtol": RELATIVE[torch.float64] * 100, "atol": 1e-12}
    with torch.no_grad():
        output = net(x[None])[0, 0]
    torch.testing.assert_close(v.alpha.sum() + v.bias, output, **close)
    torch.testing.assert_close((v.gradient * x).sum() + v.bias, output, **close)
    own = torch.stack([w * (f * x).sum() for w, f in zip(v.weights, v.vectors, strict=True)])
    torch.testing.assert_close(own, v.coefficients, **close)
    assert v.coefficients.abs().tolist() == sorted(v.alpha.abs().tolist(), reverse=True)[:3]
    # Another route: the layer's Jacobian by autograd and NumPy's SVD.
    chain = torch.nn.Sequential(*net.encoder, *net.head)
    stop = {"encoder.2": 3, "encoder.5": 6, "head.3": 10}[layer]
    matrix = torch.autograd.functional.jacobian(chain[:stop], x[None])[0].reshape(-1, 90)
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(v.values, values[:len(v.values)], rtol=1e-9, atol=1e-12 * values[0])


def test_bias_contributions_add_up_to_the_reconstruction():
    torch.manual_seed(0)
    net = AutoEncoder(30, (24, 20), 12).eval().double()
    x = torch.randn(3, 30, generator=torch.Generator().manual_seed(1)).double()
    found = analysis.biases(net, x)
    with torch.no_grad():
        whole = found["linear"] + sum(found["layers"].values())
        torch.testing.assert_close(whole, net(x[None])[0])
    shares = [analysis.share(part, found["output"]) for part in (found["linear"], *found["layers"].values())]
    assert sum(shares) == pytest.approx(1)


def test_measures_at_fields_whose_answer_is_known():
    shapes = SETS["car"]
    x, y, z = shapes.build(rows(shapes, 1))[0]
    assert analysis.asymmetry(z, shapes.mirror) == 0
    assert analysis.asymmetry(y, shapes.mirror) == pytest.approx(1)
    noise = torch.randn(shapes.vertices, generator=torch.Generator().manual_seed(0))
    assert analysis.asymmetry(noise, shapes.mirror) == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert analysis.vector_asymmetry(torch.stack([x, y, z]), shapes) == 0
    assert analysis.coherence(x, shapes.edges) > 0.9
    assert abs(analysis.coherence(noise, shapes.edges)) < 0.05
    assert analysis.roughness(torch.randn(3, shapes.vertices), shapes.edges) == pytest.approx(math.sqrt(2), abs=0.05)
    assert analysis.roughness(torch.stack([x, y, z]), shapes.edges) < 0.2
    assert analysis.participation(torch.tensor([2.0, -2, 0, 0])) == pytest.approx(2)
    assert analysis.close(torch.tensor([3.0, 1.05, 1.0, 0.95, 0.5]), 2) == [1, 2, 3]


def test_spaces_of_close_values_are_compared_as_spaces():
    basis = torch.linalg.qr(torch.randn(60, 4, generator=torch.Generator().manual_seed(0))).Q.T
    turned = torch.stack([basis[0] + basis[1], basis[0] - basis[1]]) / math.sqrt(2)
    vectors = torch.stack([basis[0], turned[0]]).reshape(2, 3, 20)
    groups = [basis[:2].reshape(2, 3, 20), turned.reshape(2, 3, 20)]
    assert float(analysis.similarity(vectors)[0, 1]) == pytest.approx(math.sqrt(0.5), abs=1e-6)
    assert float(analysis.subspace_similarity(vectors, groups)[0, 1]) == pytest.approx(1, abs=1e-6)


# ---- pictures

def test_a_still_shows_the_nearer_face():
    square = np.array([[0.0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    vertices = np.concatenate([square, square + np.array([[0], [1], [0]])], 1)  # the second lies behind
    faces = np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    colours = np.array([[1.0, 0, 0]] * 4 + [[0, 0, 1.0]] * 4)
    picture = still(vertices, faces, colours, (0.0, -1.0, 0.0), 40, 40, frame=(np.array([0.5, 0, 0.5]), 1.0))
    middle = picture[20, 20]
    assert middle[3] == 1
    assert middle[0] > 0.5
    assert middle[2] == 0
    assert picture[0, 0, 3] == 0
    assert still(vertices, faces, colours, (0.0, 1.0, 0.0), 40, 40)[..., 3].max() == 0  # all faces look away
    np.testing.assert_allclose(camera((-1, 0.8, 0.5)) @ camera((-1, 0.8, 0.5)).T, np.eye(3), atol=1e-12)
    with pytest.raises(ValueError, match="straight down"):
        camera((0, 0, 1))


def scene(shapes):
    vertices = shapes.build(rows(shapes, 1))[0]
    return page.viewer(shapes, [("one </script><script>alert(1)</script>", vertices, [("<b>", vertices[2])])])


def test_the_page_holds_the_mesh_and_nothing_of_the_names_runs():
    html = scene(SETS["car"])
    assert html.count("<script>") == html.count("</script>") == 1
    assert "alert(1)</script>" not in html
    data = json.loads(re.search(r'getElementById\("[\w-]+"\), (\{.*\})\);\n', html)[1])
    faces = np.frombuffer(base64.b64decode(data["faces"]), "<u2").reshape(-1, 3)
    np.testing.assert_array_equal(faces, SETS["car"].faces.numpy())
    assert data["shapes"][0]["name"].startswith("one </script>")
    assert not re.search(r"https?:|import", html)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_the_page_draws_what_the_still_draws(tmp_path):
    shapes = SETS["turbine"]
    vertices = shapes.build(rows(shapes, 1))[0]
    script = page.viewer(shapes, [("one", vertices, [("z", vertices[2])])])
    data = re.search(r'getElementById\("[\w-]+"\), (\{.*\})\);\n', script)[1]
    code = re.search(r"\(\(\) => \{\n(.*)\nspecxaiViewer\(document", script, re.DOTALL)[1]
    (tmp_path / "run.js").write_text(code + f"""
const scene = {data}, w = 150, h = 200, pixels = new Uint8ClampedArray(4 * w * h), shape = scene.shapes[0];
specxaiDraw(pixels, w, h, specxaiDecode(shape.points, Float32Array), specxaiDecode(scene.faces, Uint16Array),
  specxaiColours(specxaiDecode(shape.maps[0].values, Int8Array), specxaiDecode(scene.shades, Uint8Array)), scene.turn);
process.stdout.write(Buffer.from(pixels).toString("base64"));
""")
    done = subprocess.run(["node", str(tmp_path / "run.js")], capture_output=True, check=True, timeout=60)
    pixels = np.frombuffer(base64.b64decode(done.stdout), np.uint8).reshape(200, 150, 4)
    low, high = vertices.amin(1), vertices.amax(1)
    half = float((high - low).norm()) / 1.15 / 2  # of the picture's width, its smaller side
    centre = ((low + high) / 2).numpy()
    other = still(vertices.numpy(), shapes.faces.numpy(), np.ones((shapes.vertices, 3)), shapes.eye, 150, 200,
                  frame=(centre, half))
    assert ((pixels[..., 3] > 0) != (other[..., 3] > 0.5)).sum() < 0.06 * (other[..., 3] > 0).sum() + 40
    shown = np.argwhere(pixels[..., 3] > 0)
    top, bottom = pixels[tuple(shown[0])].astype(int), pixels[tuple(shown[-1])].astype(int)
    assert top[0] > top[2]  # z is red above and
    assert bottom[2] == pytest.approx(bottom[0], abs=60)


# ---- from nothing to the page

@pytest.mark.parametrize("name", ["cars", "turbines"])
def test_experiment_from_nothing_to_the_page(tmp_path, name):
    study = Study(tmp_path, name, quick=True, progress=Progress(False))
    load(name).run(study, count=4, **TINY)
    study.finish(load(name).SUMMARY)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    low, high = numbers["test"]["r2"]["interval"]
    assert low <= numbers["test"]["r2"]["value"] <= high
    assert numbers["completeness"]["value"] < 1e-9
    assert numbers["exactness"]["value"] < 1e-9
    assert {f"{figure}.png" for figure in ("set", "vectors", "similarity", "evolution-1", "contraction", "biases")} <= {
        path.name for path in tmp_path.iterdir()}
    assert "specxaiViewer" in (tmp_path / "index.html").read_text()
    assert ("blades" in numbers) == (name == "turbines")
    again = Study(tmp_path, name, quick=True, progress=Progress(False))
    load(name).run(again, count=4, **TINY)  # from the steps on disk
    assert again.seconds["train"] < study.seconds["train"]
    assert again.numbers == study.numbers
