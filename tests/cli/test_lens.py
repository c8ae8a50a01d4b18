"""`specxai lens`: files from files, one line for what cannot be."""

from __future__ import annotations

import json

import pytest
import torch

import specxai
from specxai.cli import main
from specxai.lens import Lens, load
from specxai.zoo.gpt import GPT

NET = """
import torch
from specxai.zoo.gpt import GPT

def make():
    torch.manual_seed(0)
    return GPT(vocabulary=128, width=12, heads=2, blocks=3, context=32)

def speaks():
    return make(), lambda text: {"input_ids": list(text.encode())}

def none():
    return 3
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "text.txt").write_text("a lens for a text that is cut into windows, each of them a prompt " * 3)
    (tmp_path / "lines.jsonl").write_text("\n".join([json.dumps("a line that is a prompt by itself"),
                                                     json.dumps({"text": "another line that is an object"})]))
    torch.manual_seed(1)
    torch.save([torch.randint(128, (1, 20)) for _ in range(4)], tmp_path / "ids.pt")
    return tmp_path


def fit(net, *more, model="make", prompts="ids.pt"):
    return main(["lens", "fit", "--model", f"{net}/net.py:{model}", "--prompts", f"{net}/{prompts}", "--out",
                 f"{net}/lens.pt", "--skip-first", "3", "--max-length", "24", *more])


@pytest.mark.parametrize("command", [["lens"], ["lens", "fit"], ["lens", "merge"], ["lens", "spectrum"]])
def test_help_shows_examples(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert f"Examples:\n    specxai {' '.join(command)}" in shown


def test_fit_writes_what_the_library_fits(net, capsys):
    assert fit(net, "--count", "3", "--checkpoint", f"{net}/fit.pt") == 0
    shown = capsys.readouterr().out
    assert "3 blocks at blocks, 2 source layers, 3 prompts of at most 20 tokens" in shown
    assert "memory: weights" in shown
    assert "Lens(layers 0, 1, d 12, 3 prompts)" in shown
    torch.manual_seed(0)
    model = GPT(vocabulary=128, width=12, heads=2, blocks=3, context=32).eval()
    ids = torch.load(net / "ids.pt", weights_only=True)[:3]
    wanted = specxai.lens.fit(model, ids, skip_first=3)
    for layer in (0, 1):
        assert (load(net / "lens.pt").J[layer] - wanted.J[layer]).abs().max() < 1e-3
        assert torch.equal(load(net / "fit.pt").J[layer], wanted.J[layer])


@pytest.mark.parametrize("prompts, count", [("text.txt", 9), ("lines.jsonl", 2)])
def test_text_is_read(net, prompts, count):
    assert fit(net, model="speaks", prompts=prompts) == 0
    assert load(net / "lens.pt").n_prompts == count


def test_rank_layers_and_products(net):
    assert fit(net, "--rank", "2", "--layers", "1") == 0
    assert load(net / "lens.pt").factors[1].S.shape == (2,)
    assert fit(net, "--products", "rough") == 0
    assert 0 < load(net / "lens.pt").metadata["rough_error"] < 0.05


def test_merge_and_spectrum(tmp_path, capsys):
    J = {0: 2 * torch.eye(4), 3: torch.eye(4) + torch.diag(torch.tensor([3.0, -1.0, -1.0, -1.0]))}
    Lens(J, 1, 4).save(tmp_path / "a.pt")
    Lens({layer: 2 * matrix for layer, matrix in J.items()}, 3, 4).save(tmp_path / "b.pt")
    assert main(["lens", "merge", f"{tmp_path}/a.pt", f"{tmp_path}/b.pt", "--out", f"{tmp_path}/c.pt"]) == 0
    merged = load(tmp_path / "c.pt")
    assert merged.n_prompts == 4
    assert torch.allclose(merged.J[0], 3.5 * torch.eye(4))
    capsys.readouterr()
    assert main(["lens", "spectrum", f"{tmp_path}/a.pt", "--values", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["0", "2.0000", "0.0000", "1.0", "0", "0"]
    # a = 1; singular values 3, 1, 1, 1 of J - I
    assert lines[3].split() == ["3", "1.0000", f"{(12 / 16) ** 0.5:.4f}", f"{3.4641:.1f}", "3", "1"]


@pytest.mark.parametrize("options, says", [
    ({"prompts": "none.pt"}, "no prompts file"), ({"prompts": "net.py"}, "must end in .txt, .jsonl or .pt"),
    ({"prompts": "text.txt"}, "returns no tokenizer"), ({"model": "none"}, "returned int"),
    ({"model": "nothing"}, "defines no function 'nothing'"),
])
def test_what_cannot_be_is_one_line(net, capsys, options, says):
    assert fit(net, **options) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
    assert not (net / "lens.pt").exists()


@pytest.mark.parametrize("more, says", [
    (["--count", "0"], "--count 0 is out of range"), (["--layers", "2"], "layer 2 is no source"),
    (["--skip-first", "19"], "no prompt is long enough"), (["--stack", "x"], "no list of two or more blocks 'x'"),
    (["--products", "int8"], "products is 'int8': choose auto, full or rough"),
])
@pytest.mark.filterwarnings("ignore:prompt")
def test_options_out_of_range_are_one_line(net, capsys, more, says):
    assert fit(net, *more) == 2
    shown = capsys.readouterr().err
    assert says in shown
    assert shown.count("\n") == 1
