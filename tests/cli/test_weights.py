"""Weight files are loaded as tensors only; anything else is refused in one sentence."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from specxai._weights import load_weights


class Wicked:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_used(net, tmp_path, name, prefix):
    wanted = {prefix + key: torch.full_like(value, 7.0) for key, value in net.state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(wanted, tmp_path / name)
    load_weights(net, tmp_path / name)
    assert all((value == 7).all() for value in net.state_dict().values())


def test_a_checkpoint_that_holds_more_than_weights(net, tmp_path):
    torch.save({"epoch": 3, "state_dict": {k: v * 0 for k, v in net.state_dict().items()}}, tmp_path / "w.pt")
    load_weights(net, tmp_path / "w.pt")
    assert not net[0].weight.any()


@pytest.mark.parametrize("protocol", [None, 2, 5], ids=["torch", "pickle 2", "pickle 5"])
def test_a_pickle_that_wants_to_run_code(net, tmp_path, protocol):
    path, content = tmp_path / "w.pt", {"0.weight": torch.zeros(2, 3), "extra": Wicked(tmp_path / "run")}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(Wicked(tmp_path / "run"), protocol))
    before = net[0].weight.clone()
    with pytest.raises(ValueError, match=r"save (only )?the model.state_dict\(\)") as raised:
        load_weights(net, path)
    assert "\n" not in str(raised.value)
    if protocol is None:
        assert "is refused: it holds a pickled posix.mkdir, and loading that could run code" in str(raised.value)
    assert not (tmp_path / "run").exists()
    assert torch.equal(net[0].weight, before)


def test_a_pickled_module(net, tmp_path):
    torch.save(net, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"is refused: it holds a pickled torch.nn.*; save only the model.state_dict"):
        load_weights(net, tmp_path / "w.pt")


def _cut(path):
    (save_file if path.suffix == ".safetensors" else torch.save)({"0.weight": torch.zeros(200, 3)}, path)
    path.write_bytes(path.read_bytes()[:700])


@pytest.mark.parametrize("name, message", [
    ("w.safetensors", "is not a whole safetensors file"), ("w.pt", "is not a readable checkpoint of tensors"),
])
@pytest.mark.parametrize("damage", [_cut, lambda path: path.write_text("garbage"), lambda path: path.write_bytes(b"")],
                         ids=["cut", "foreign", "empty"])
def test_unreadable(net, tmp_path, name, message, damage):
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=message) as raised:
        load_weights(net, tmp_path / name)
    assert "\n" not in str(raised.value)


def test_no_state_dict(net, tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_weights(net, tmp_path / "w.pt")


def test_weights_of_another_architecture(net, tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"2 weights missing \(such as 0.weight, 0.bias\), 1 unknown \(such as x\)"):
        load_weights(net, tmp_path / "w.safetensors")
    save_file({**net.state_dict(), "0.weight": torch.zeros(2, 9)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"size mismatch for 0\.weight"):
        load_weights(net, tmp_path / "w.safetensors")
