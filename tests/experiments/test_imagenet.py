"""Section 2.1 on small stand-ins for the networks: what is kept, drawn and counted, and whose weights a file holds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import specxai
from specxai.experiments import Progress, Study, imagenet
from specxai.experiments.imagenet import networks
from specxai.experiments.imagenet.networks import Network
from specxai.experiments.photographs import photograph


class Small(nn.Module):
    """Convolutions and a classifier, layers named as torchvision names them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 5, 2), nn.ReLU(), nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(3)
        self.classifier = nn.Sequential(nn.Linear(9 * width, 12), nn.ReLU(), nn.Linear(12, 1000))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


@pytest.fixture
def network():
    layers = {"penultimate": "classifier.1", "last convolution": "features.2"}
    return Network("small", Small().eval(), layers, (0.5,) * 3, (0.5,) * 3, trained=True)


@pytest.fixture
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    return [photograph(one, name, 32) for one, name in zip(pixels, ("first", "second"), strict=True)]


def test_a_network_taken_apart_adds_up(network, pictures):
    part = imagenet.taken_apart(network, pictures[0], "features.2", 8, 0)
    with torch.no_grad():
        logits = network.net(pictures[0].x)[0]
    assert part["target"] == int(logits.argmax())
    assert part["output"] == pytest.approx(float(logits.max()), rel=1e-5)
    total = float(part["alpha"].sum()) + part["bias"] + part["bypass"] + part["remainder"]
    assert total == pytest.approx(part["output"], rel=1e-5)
    sums = part["contributing"].sum((1, 2)).double()
    torch.testing.assert_close(sums, part["alpha"][part["dominant"][:len(sums)]], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(part["strongest"].sum((1, 2)).double(), part["projections"], rtol=1e-4, atol=1e-5)


def test_the_averaged_vector_by_a_loop_over_channels(network, pictures):
    part = imagenet.taken_apart(network, pictures[0], "classifier.1", 4, 0)
    e = specxai.explain(network.net, pictures[0].x, layer="classifier.1", rank=4)
    first = e.reduce().dominant[0]
    mean = sum(e.right_vectors[first, channel] for channel in range(3)) / 3
    torch.testing.assert_close(part["averaged"][0], mean * float(torch.sign(e.psi[first])), rtol=1e-4, atol=1e-6)


def test_figures_numbers_and_tables_of_a_network(network, pictures, tmp_path):
    study = Study(tmp_path, "imagenet", quick=True, progress=Progress(False))
    imagenet._explain(study, network, pictures)
    study.finish()
    for name in ("small-penultimate", "small-last-convolution", "small-averaged"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    place = study.numbers["small"]["penultimate"]["second"]
    assert place["exactness"]["value"] < 1e-4
    assert sum(place["shares"]["value"]) <= 1 + 1e-6
    rows = study.numbers["tables"]["small-layers"]
    assert [row["layer"] for row in rows] == ["penultimate", "last convolution"]
    assert all(0 < row["extent, contracted"] <= 1 for row in rows)


@pytest.mark.parametrize("weights, quick, expected", [
    (None, True, {"alexnet": 1}), (None, False, {"alexnet": 1, "vgg11_bn": 1}),
    ("DEFAULT", True, {"alexnet": 2, "vgg11_bn": 2})])
def test_which_networks_a_run_explains(monkeypatch, tmp_path, pictures, weights, quick, expected):
    seen = {}
    monkeypatch.setattr(imagenet, "chosen_images", lambda paths, quick: pictures)
    monkeypatch.setattr(imagenet, "efficientnet", lambda: SimpleNamespace(name="efficientnet"))
    monkeypatch.setattr(imagenet, "torchvision_network", lambda name, weights, seed: SimpleNamespace(name=name))
    monkeypatch.setattr(imagenet, "_explain", lambda study, network, few: seen.update({network.name: len(few)}))
    options = {"weights": weights} if weights else {}
    imagenet.run(Study(tmp_path, "imagenet", quick=quick, options=options, progress=Progress(False)))
    assert seen == {"efficientnet": 2, **expected}


@pytest.fixture
def two_sizes(monkeypatch):
    """torchvision's two networks, small, of different widths."""
    sizes = {"alexnet": 4, "vgg11_bn": 5}
    monkeypatch.setattr(networks, "import_vision", lambda _: SimpleNamespace(
        get_model=lambda name, weights: Small(sizes[name])))
    return sizes


def test_a_file_of_weights_goes_to_the_network_that_it_fits(two_sizes, tmp_path):
    from safetensors.torch import save_file

    trained = Small(two_sizes["vgg11_bn"])
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    path = str(tmp_path / "w.safetensors")
    assert networks.fitting(path) == "vgg11_bn"
    found = networks.torchvision_network("vgg11_bn", path, 0)
    assert found.trained
    assert torch.equal(found.net.state_dict()["classifier.2.bias"], trained.state_dict()["classifier.2.bias"])
    assert found.layers == {"penultimate": "classifier.5", "last convolution": "features.28"}
    save_file(Small(7).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="weights of none of alexnet, vgg11_bn"):
        networks.fitting(str(tmp_path / "other.safetensors"))


def test_random_weights_repeat_with_the_seed_and_are_called_random(two_sizes):
    one, other = (networks.torchvision_network("alexnet", None, 3) for _ in range(2))
    assert not one.trained
    assert torch.equal(one.net.classifier[0].weight, other.net.classifier[0].weight)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def fail(name, weights):
        raise OSError("no network")

    monkeypatch.setattr(networks, "import_vision", lambda _: SimpleNamespace(get_model=fail))
    with pytest.raises(ValueError, match="pass --weights FILE"):
        networks.torchvision_network("alexnet", "DEFAULT", 0)


def test_images_of_the_user(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(1).integers(0, 256, (300, 260, 3), np.uint8)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "cat.png")
    found = networks.images([str(tmp_path / folder / "cat.png") for folder in ("a", "b")], quick=True)
    assert [one.name for one in found] == ["cat-0", "cat-1"]
    assert found[0].raw.shape == (3, 224, 224)
    with pytest.raises(FileNotFoundError, match="no image"):
        networks.images([str(tmp_path / "dog.png")], quick=True)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="not a readable image"):
        networks.images([str(tmp_path / "text.png")], quick=True)
