"""The command line: help with examples, errors that name the remedy, files where they were asked for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from specxai.cli import main
from specxai.cli.explain import default_layer
from specxai.cli.images import Transform, read_image

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return body, {"size": 8, "labels": ["cat", "dog", "<b>cow"]}

def wrong():
    return 5
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "p.png")
    return ["explain", "--model", f"{tmp_path}/net.py:make", "--image", str(tmp_path / "p.png"),
            "--out", str(tmp_path / "out")]


@pytest.mark.parametrize("command", [[], ["explain"], ["info"], ["reproduce"]])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert "Examples:" in shown
    assert f"specxai {' '.join(command)}" in shown


def test_help_does_not_load_torch():
    code = ("import sys; from specxai.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
            "assert not {'torch', 'matplotlib', 'scipy'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_info(capsys):
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for word in ("specxai", "Python", "torch", "native kernels", "Triton", "CUDA", "backend reference",
                 "backend native"):
        assert word in shown, word


def test_explain_writes_all_files(net, tmp_path, capsys):
    assert main([*net, "--rank", "none", "--layer", "1", "2", "--no-progress"]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "layer-1.png", "layer-1.safetensors", "layer-2.png", "layer-2.safetensors", "report.html", "settings.json"}
    stored = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert stored["layer"] == ["1", "2"]
    assert stored["seed"] == 0
    assert str(tmp_path / "out" / "report.html") in capsys.readouterr().out
    assert "<b>cow" not in (tmp_path / "out" / "report.html").read_text("utf-8")

    from specxai import Explanation

    assert Explanation.load(tmp_path / "out" / "layer-2.safetensors").completeness < 1e-5


def test_default_layer_and_list(net, tmp_path, capsys):
    assert main([*net, "--layer", "list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1", "2", "3", "4"]
    assert not (tmp_path / "out").exists()
    assert main(net) == 0
    assert (tmp_path / "out" / "layer-2.png").exists()


def test_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert main(["explain", "--image", "12", "--rank", "5", "--target", "3", "--out", str(tmp_path)]) == 0
    assert "output[3] is '3'" in capsys.readouterr().out
    assert (tmp_path / "layer-features.18.png").exists()


@pytest.mark.parametrize("change, remedy", [
    (["--model", "resnet"], "torchvision:NAME"),
    (["--model", "missing.py:make"], "runs a file of yours"),
    (["--model", "NET:wrong"], "not a torch.nn.Module"),
    (["--model", "NET:absent"], "defines no function 'absent'"),
    (["--image", "nothing.png"], "pass --image"),
    (["--image", "NET"], "convert it to PNG"),
    (["--layer", "features.1"], "no layer 'features.1'"),
    (["--target", "9"], "out of range"),
    (["--rank", "-3"], "non-negative"),
    (["--weights", "none.pt"], "no weights file"),
    (["--weights", "NET"], "must end in .safetensors"),
    (["--model", "digits", "--image", "100000"], "held-out digits are 0 to"),
])
def test_errors_name_the_remedy(net, tmp_path, capsys, change, remedy):
    # argparse takes the last of two equal flags.
    change = [part.replace("NET", str(tmp_path / "net.py")) for part in change]
    assert main([*net, *change]) == 2
    shown = capsys.readouterr().err
    assert remedy in shown
    assert "Traceback" not in shown
    assert shown.count("\n") == 1


def test_torchvision_names_near_misses(net, capsys):
    if importlib.util.find_spec("torchvision") is None:  # importing it is what the library has to get right
        pytest.skip("torchvision is not installed")
    assert main([*net, "--model", "torchvision:vgg11bn"]) == 2
    assert "did you mean vgg11_bn" in capsys.readouterr().err


def test_debug_shows_where(net):
    with pytest.raises(ValueError, match="torchvision:NAME"):
        main([*net, "--model", "resnet", "--debug"])


def test_a_flag_that_does_not_exist(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["explain", "--colour", "red"])
    assert exit_.value.code == 2


def _weights(shift=0.0):
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return {name: value + shift for name, value in body.state_dict().items()}


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_are_used(net, tmp_path, capsys, name):
    outputs = []
    for shift in (0.0, 0.5):
        (save_file if name.endswith("safetensors") else torch.save)(_weights(shift), tmp_path / name)
        assert main([*net, "--weights", str(tmp_path / name), "--target", "0"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] != outputs[1]


def test_weights_that_do_not_fit(net, tmp_path, capsys):
    save_file({"x": torch.zeros(2)}, tmp_path / "w.safetensors")
    assert main([*net, "--weights", str(tmp_path / "w.safetensors")]) == 2
    assert "another architecture" in capsys.readouterr().err
    save_file({**_weights(), "4.weight": torch.zeros(3, 7)}, tmp_path / "w.safetensors")
    assert main([*net, "--weights", str(tmp_path / "w.safetensors")]) == 2
    assert "4.weight" in capsys.readouterr().err


def test_a_pickled_module_is_refused(net, tmp_path, capsys):
    torch.save(nn.Linear(2, 2), tmp_path / "w.pt")
    assert main([*net, "--weights", str(tmp_path / "w.pt")]) == 2
    assert "save its state_dict()" in capsys.readouterr().err


def test_images_are_resized_and_cropped(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the centre square is white
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = read_image(tmp_path / "a.png", Transform(size=16, resize=20))
    assert out.shape == (16, 16, 3)
    assert out.min() == 1.0
    x = Transform(size=16).normalise(out)
    assert x.shape == (1, 3, 16, 16)
    assert x[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(2, 2)

    def forward(self, x):
        y = self.relu(self.stem(x))
        return self.fc(self.pool(self.relu(y + self.conv(y))).flatten(1))


def test_default_layer_is_the_end_of_the_last_stage():
    import specxai

    net = _Residual().eval()
    assert default_layer(specxai.linearize(net, torch.randn(1, 1, 6, 6)), net) == "relu#2"
    flat = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with pytest.raises(ValueError, match="--layer list"):
        default_layer(specxai.linearize(flat, torch.randn(1, 4)), flat)
