"""Cars and turbines: the generators, the formulas by a second route, the nets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from specxai.experiments.surfaces import car_set, turbine_set
from specxai.experiments.surfaces import car_shapes as cars
from specxai.experiments.surfaces import turbine_shapes as turbines
from specxai.experiments.surfaces.mesh import areas, rounded, spline_weights, volume
from specxai.experiments.surfaces.nets import AutoEncoder
from specxai.experiments.surfaces.render import still
from specxai.experiments.surfaces.train import (
    Preconditioner,
    Settings,
    bootstrap_r_squared,
    dataset,
    predict,
    r_squared,
    train,
)

SETS = {"car": car_set(), "turbine": turbine_set()}
TINY = {"train": 120, "validation": 12, "test": 12, "epochs": 2, "head_epochs": 2}


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
    # Second moments of the section by its outline; where it is not bent about a main axis, the curvatures of both.
    turn = torch.linspace(0, 2 * math.pi, 20001)[:-1].double()
    expected = torch.zeros(5).double()
    for i in range(5):
        y, x = c[i] / 2 * turn.cos(), 0.125 * c[i] * turn.sin()
        across = x * angle[i].cos() - y * angle[i].sin()  # along the wind
        along = x * angle[i].sin() + y * angle[i].cos()  # in the rotor's plane
        cross = along * across.roll(-1) - across * along.roll(-1)  # twice the area of a sector

        def second(u, v, cross=cross):
            u1, v1 = u.roll(-1), v.roll(-1)
            return (cross * (2 * u * v + u * v1 + u1 * v + 2 * u1 * v1)).sum() / 24 * torch.sign(cross.sum())

        tensor = torch.stack([torch.stack([second(across, across), second(across, along)]),
                              torch.stack([second(along, across), second(along, along)])]) * (1 - 0.96**4)
        curvature = torch.linalg.solve(tensor, torch.stack([moment[i], 0 * moment[i]]))  # the moment is along the wind
        expected[i] = (curvature[0] * across + curvature[1] * along).max() / 1e6
    places, found = turbines.stress_along(asked)
    nearest = (places - at[:, None]).abs().argmin(1, keepdim=True)
    torch.testing.assert_close(found.gather(1, nearest)[:, 0], expected, rtol=2e-3, atol=0)
    upright = moment / (math.pi / 4 * (c / 2) * (0.125 * c) ** 2 * (1 - 0.96**4)) / 1e6
    assert (expected < upright).all()  # a twisted section is stiffer against the wind
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
    chosen = Settings(train=300, validation=20, test=60, epochs=14, head_epochs=60)
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
