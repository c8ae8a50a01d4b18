"""The shipped digits net: what the file says of itself is true."""

from __future__ import annotations

import builtins

import pytest
import torch

from specxai.zoo import digits
from specxai.zoo.digits import (
    CHECKPOINT,
    LAST_CONV_LAYER,
    PENULTIMATE_LAYER,
    DigitsNet,
    accuracy,
    checkpoint_info,
    digits_data,
    load_digits_net,
)


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn")
    return digits_data()


def test_checkpoint_is_small_and_loads_in_eval_mode():
    assert CHECKPOINT.stat().st_size < 2e6
    net = load_digits_net()
    assert not any(module.training for module in net.modules())
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in net.parameters())


def test_accuracy_is_what_the_checkpoint_claims(data):
    reached = accuracy(load_digits_net(), data[1])
    assert reached > 0.98
    # Another machine's rounding may turn an image that lies on a boundary.
    assert abs(reached - checkpoint_info()["held_out_accuracy"]) <= 1.5 / digits.HELD_OUT


def test_checkpoint_of_another_normalisation_is_refused(monkeypatch):
    monkeypatch.setattr(digits, "MEAN", 0.5)
    with pytest.raises(ValueError, match=r"mean 0\.3056.*expects 0\.5"):
        load_digits_net()


def test_split_is_disjoint_complete_and_fixed(data):
    train, held = data
    assert len(held.y) == digits.HELD_OUT
    assert torch.equal(torch.cat([train.index, held.index]).sort().values, torch.arange(1797))
    again = digits_data()[1]
    assert torch.equal(again.index, held.index)
    assert torch.equal(again.x, held.x)
    # The first rows of the permutation that the checkpoint was trained without: a change of generator shows here.
    assert held.index[:4].tolist() == [362, 1568, 1440, 1761]
    assert checkpoint_info()["split_seed"] == digits.SPLIT_SEED


def test_images_are_normalised_by_the_training_pixels(data):
    train, held = data
    assert train.x.shape[1:] == held.raw.shape[1:] == (1, 32, 32)
    assert train.raw.min() >= 0
    assert train.raw.max() <= 1
    assert abs(train.x.mean().item()) < 2e-3
    assert abs(train.x.std().item() - 1) < 2e-3


def test_layers_are_where_the_constants_say():
    net = DigitsNet().eval()
    modules = dict(net.named_modules())
    assert isinstance(modules[LAST_CONV_LAYER], torch.nn.MaxPool2d)
    assert modules[LAST_CONV_LAYER] is net.features[-1]
    assert isinstance(modules[PENULTIMATE_LAYER], torch.nn.ReLU)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"specxai\[demo\]"):
        digits_data()
