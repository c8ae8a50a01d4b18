"""Cars and turbines: the decomposition and its measures, the pictures, a tiny run from nothing to the page."""

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
from specxai.experiments.surfaces.nets import AutoEncoder, Composed, regressor
from specxai.experiments.surfaces.render import camera, still
from tolerances import RELATIVE

SETS = {"car": car_set(), "turbine": turbine_set()}
TINY = {"train": 120, "validation": 12, "test": 12, "epochs": 2, "head_epochs": 2}


def rows(shapes, count=4, seed=0):
    return shapes.draw(count, torch.Generator().manual_seed(seed))


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
    assert again.seconds["train-0.01"] < study.seconds["train-0.01"]
    assert again.numbers == study.numbers
