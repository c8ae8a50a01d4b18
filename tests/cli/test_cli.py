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
from torch import nn

from specxai._vision import import_vision
from specxai.cli import main
from specxai.cli.explain import default_layer
from specxai.cli.output import staged

NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return body, {"size": 8, "labels": ["cat", "dog", "<b>cow"]}

def wrong():
    return 5

def fails():
    return {}["depth"]

def leaves():
    raise SystemExit(3)

def misspelt():
    return nn.ReLU(), {"siz": 8}

def wide():
    return nn.Conv2d(4, 4, 1, groups=2)

def not_finite():
    body, options = make()
    body[0].weight.data[0] = torch.nan
    return body, options

def double():
    body, options = make()
    return body.double(), options
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
    for word in ("specxai", "Python", "torch", "native kernels", "Triton", "CUDA", "torchvision", "timm",
                 "scikit-learn", "backend reference", "backend native"):
        assert word in shown, word


def test_explain_writes_all_files(net, tmp_path, capsys):
    assert main([*net, "--rank", "none", "--layer", "1", "2", "--no-progress"]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "layer-1.png", "layer-1.safetensors", "layer-2.png", "layer-2.safetensors", "report.html", "settings.json"}
    stored = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert stored["layer"] == ["1", "2"]
    assert stored["seed"] == 0
    assert stored["rank"] == "none"
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
    (["--model", "NET:mak"], "defines no function 'mak' that returns the model; did you mean make?"),
    (["--model", "NET:fails"], "line 14 fails with KeyError: 'depth'"),
    (["--model", "NET:leaves"], "fails with SystemExit: 3"),
    (["--model", "NET:misspelt"], "returned the option 'siz'; did you mean size?"),
    (["--model", "NET:wide"], "wants 4 channels; image files give 1 or 3"),
    (["--model", "NET:not_finite"], "parameter 0.weight holds NaN or infinity; load weights that are finite"),
    (["--model", "NET:double"], "the input is torch.float32 but parameter 0.weight is torch.float64; convert one"),
    (["--image", "nothing.png"], "pass --image"),
    (["--image", "NET"], "convert it to PNG"),
    (["--layer", "features.1"], "no layer 'features.1'"),
    (["--target", "9"], "out of range"),
    (["--rank", "0"], "--rank 0 is out of range: give at least 1, or all"),
    (["--rank", "-3"], "--rank -3 is out of range"),
    (["--tol", "1.5"], "give one between 0 and 1"),
    (["--tol", "nan"], "give one between 0 and 1"),
    (["--tol", "0.1", "--rank", "all"], "leave one out"),
    (["--size", "0"], "--size 0 is out of range"),
    (["--target", "1", "--targets", "0", "1"], "leave one out"),
    (["--targets", "0", "9"], "out of range"),
    (["--size", "12"], "on an input of shape (1, 1, 12, 12)"),
    (["--seed", "-1"], "--seed -1 is out of range"),
    (["--weights", "none.pt"], "no weights file"),
    (["--weights", "NET"], "must end in .safetensors"),
    (["--weights", "DEFAULT"], "loads its own, or pass a file"),
    (["--model", "digits", "--image", "100000"], "held-out digits are 0 to"),
    (["--model", "digits", "--size", "8"], "takes 32 pixels only"),
])
def test_errors_name_the_remedy(net, tmp_path, capsys, change, remedy):
    # argparse takes the last of two equal flags.
    change = [part.replace("NET", str(tmp_path / "net.py")) for part in change]
    before = set(tmp_path.rglob("*"))
    assert main([*net, *change]) == 2
    shown = capsys.readouterr().err
    assert remedy in shown
    assert "Traceback" not in shown
    assert shown.count("\n") == 1
    assert {p for p in tmp_path.rglob("*") if "__pycache__" not in p.parts} == before


@pytest.mark.parametrize("argv, cause", [
    (["explain", "--colour", "red"], "Unrecognized options: --colour, red; run specxai --help"),
    (["explain", "--rank", "many"], "Error parsing --rank"),
    (["explain", "--backend", "tpu"], "invalid choice 'tpu' for argument '--backend'"),
    (["explian"], "Available subcommands: explain, lens, info, reproduce, bench"),
    (["reproduce", "circles", "--out", "o"], "Expected one of ('imagenet', 'cars', 'turbines', 'squares', "),
    (["reproduce", "squares"], "--out"),
    ([], "Expected one of {explain, lens, info, reproduce, bench}"),
])
def test_a_command_that_cannot_be_read(capsys, argv, cause):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 2
    shown = capsys.readouterr()
    assert cause in shown.err
    assert shown.err.startswith("specxai: ")
    assert shown.err.count("\n") == 1
    assert not shown.out


@pytest.mark.parametrize("folder", ["p.png", "p.png/deeper", "/proc/nowhere"])
@pytest.mark.parametrize("command", ["explain", "reproduce"])
def test_an_output_folder_that_cannot_be_written_to(net, tmp_path, capsys, command, folder):
    before = set(tmp_path.iterdir())
    # root may write anywhere but here: a file in the way, and a folder that is not a real one.
    start = net if command == "explain" else ["reproduce", "squares"]
    assert main([*start, "--out", str(tmp_path / folder)]) == 2
    shown = capsys.readouterr()
    assert "give another folder with --out" in shown.err
    assert "p.png is a file, not a folder" in shown.err or folder.startswith("/proc")
    assert not shown.out, "found before the work"
    assert set(tmp_path.iterdir()) == before


def test_a_folder_in_the_place_of_a_file(net, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "report.html").mkdir(parents=True)
    assert main([*net, "--out", str(out)]) == 2
    assert "report.html: a folder has that name; remove it" in capsys.readouterr().err
    assert [p.name for p in out.iterdir()] == ["report.html"]


def test_a_run_that_fails_late_leaves_nothing(net, tmp_path, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr("specxai.plots.report.write_report", broken)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("stays")
    assert main([*net, "--layer", "1"]) == 2
    assert "No space left" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_no_folders(tmp_path):
    def work():
        with staged(tmp_path / "a" / "b") as folder:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert not list(tmp_path.iterdir())


def test_a_reader_that_stops_early_is_no_error(net):
    code = "import sys; from specxai.cli import entry; entry()"
    command = subprocess.Popen([sys.executable, "-c", code, "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.close()
    assert command.stderr.read() == b""
    command.wait()
    command.stderr.close()


def test_torchvision_names_near_misses(net, capsys):
    if importlib.util.find_spec("torchvision") is None:  # importing it is what the library has to get right
        pytest.skip("torchvision is not installed")
    assert main([*net, "--model", "torchvision:vgg11bn"]) == 2
    assert "did you mean vgg11_bn" in capsys.readouterr().err


def test_a_failed_download_names_the_way_round(net, tmp_path, capsys, monkeypatch):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    models = import_vision("torchvision.models")

    def offline(name, weights):
        raise ConnectionError("no network")

    monkeypatch.setattr(models, "get_model", offline)
    assert main([*net, "--model", "torchvision:resnet18", "--weights", "DEFAULT"]) == 2
    assert "cannot be downloaded (no network): get the file another way and pass --weights" in capsys.readouterr().err


def test_a_missing_package_names_its_extra(net, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert main([*net, "--model", "timm:resnet18"]) == 2
    assert "timm is not installed: pip install 'specxai[models]'" in capsys.readouterr().err


def test_debug_shows_where(net):
    with pytest.raises(ValueError, match="torchvision:NAME"):
        main([*net, "--model", "resnet", "--debug"])


@pytest.mark.parametrize("flags, rank, targets, output", [
    ([], 50, [None], None), (["--rank", "7", "--target", "3"], 7, [3], None), (["--rank", "all"], None, [None], None),
    (["--tol", "0.1"], None, [None], None),
    (["--tol", "0.1", "--rank", "7", "--target", "0", "2"], 7, [(0, 2)], None),
    (["--targets", "3", "0", "3"], 50, [3, 0], None), (["--output", "logits"], 50, [None], "logits"),
    (["--output", "1"], 50, [None], 1), (["--output", "heads.0.logits"], 50, [None], ("heads", 0, "logits")),
])
def test_what_the_flags_mean(flags, rank, targets, output, monkeypatch):
    seen = []
    monkeypatch.setattr("specxai.cli._run", seen.append)
    assert main(["explain", *flags]) == 0
    assert (seen[0].triplets, seen[0].wanted, seen[0].selector) == (rank, targets, output)


def test_several_targets_decompose_a_layer_once(net, tmp_path, capsys, monkeypatch):
    import specxai

    module, runs = importlib.import_module("specxai.spectral.decompose"), []
    solve = module.svd
    monkeypatch.setattr(module, "svd", lambda *a, **kw: runs.append(1) or solve(*a, **kw))
    assert main([*net, "--layer", "1", "2", "--targets", "0", "2", "--rank", "3"]) == 0
    assert len(runs) == 2
    shown = capsys.readouterr().out
    assert shown.count("Explanation of output[0]") == shown.count("Explanation of output[2]") == 2
    assert "agreement" in shown
    saved = {p.stem: specxai.Explanation.load(p) for p in (tmp_path / "out").glob("*.safetensors")}
    assert {stem: e.target_label for stem, e in saved.items()} == {
        f"layer-{layer}-target-{target}": f"output[{target}]" for layer in (1, 2) for target in (0, 2)}


def test_the_output_is_chosen_where_the_model_is_linearised(net, monkeypatch):
    asked = []

    def linearize(model, x, **options):
        asked.append(options)
        raise ValueError("stop here")

    monkeypatch.setattr("specxai.linearize", linearize, raising=False)
    assert main([*net, "--output", "heads.0"]) == 2
    assert main(net) == 2
    assert [options.get("output", "left out") for options in asked] == [("heads", 0), "left out"]


def test_names_with_control_characters_are_printed_as_escapes(net, tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET.replace('"cat"', '"c\\x1b[2Jat\\n"'))
    assert main([*net, "--layer", "1", "--target", "0"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "c\\x1b[2Jat\\n" in shown.replace("\\\\", "\\")


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.relu = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
        self.pool, self.drop, self.fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Linear(2, 2)

    def forward(self, x):
        y = self.relu(self.stem(x))
        return self.fc(self.drop(self.relu(y + self.conv(y)).mean((2, 3))))


def test_default_layer_is_the_end_of_the_last_stage():
    import specxai

    net = _Residual().eval()
    assert default_layer(specxai.linearize(net, torch.randn(1, 1, 6, 6)), net) == "relu#2"
    flat = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    with pytest.raises(ValueError, match="--layer list"):
        default_layer(specxai.linearize(flat, torch.randn(1, 4)), flat)
