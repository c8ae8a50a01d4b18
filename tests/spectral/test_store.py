"""Files: round trips, and errors that name what is wrong with a file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specxai.spectral import Decomposition, Explanation, decompose, explain, load, store


def same(a, b):
    assert len(a.to_dict()) == len(b.to_dict())
    for name, value in a.to_dict().items():
        other = getattr(b, name)
        if isinstance(value, torch.Tensor):
            assert value.dtype == other.dtype, name
            assert torch.equal(value, other), name
        else:
            assert value == other, name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rank", [None, 3])
def test_round_trip(tmp_path, dtype, rank, dense_net):
    e = explain(dense_net(dtype=dtype), layer="relu", target=1, rank=rank)
    e.save(tmp_path / "e.safetensors")
    same(e, Explanation.load(tmp_path / "e.safetensors"))
    assert [f.name for f in tmp_path.iterdir()] == ["e.safetensors"], "no temporary file is left"


def test_everything_works_after_loading(tmp_path, exact):
    path = tmp_path / "e.safetensors"
    exact[:6].save(path)
    e = load(str(path))
    assert e.completeness == exact[:6].completeness
    assert repr(e) == repr(exact[:6])
    assert e.symbolic(reduced=True).evaluate(e.x) == pytest.approx(e.output)
    s = e.surgery(drop=0)
    assert s.output is None
    assert s.delta is None
    assert s.delta_linear == pytest.approx(-float(e.alpha[0]))
    assert "no model" in repr(s)
    assert e[1:3].contract().shape == (2, 4, 5)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no explanation"):
        load(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"not a file of ours", b"\xff" * 100])
def test_foreign_bytes(tmp_path, content):
    path = tmp_path / "e.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(path)


def test_foreign_safetensors(tmp_path):
    path = tmp_path / "e.safetensors"
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not a saved explanation"):
        load(path)


def test_cut_short_and_flipped(tmp_path, exact):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="cut short"):
        load(path)
    path.write_bytes(whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:])
    with pytest.raises(ValueError, match="checksum"):
        load(path)


def rewritten(path, change, tensors=None, sign=True):
    """`path` with its header changed, its checksum made good again."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[store.FORMAT])
    tensors = {**load_file(path), **(tensors or {})}
    change(header)
    text = json.dumps(header)
    save_file(tensors, path, metadata={store.FORMAT: text, "sha256": store._digest(text, tensors)})


@pytest.mark.parametrize(("change", "words"), [
    (lambda h: h.update(version=99), "version 99"),
    (lambda h: h.pop("version"), r"header .* damaged"),
    (lambda h: h.pop("seed"), r"missing \['seed'\]"),
])
def test_header(tmp_path, exact, change, words):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    rewritten(path, change)
    with pytest.raises(ValueError, match=words):
        load(path)


@pytest.mark.parametrize(("name", "tensor"), [("alpha", torch.ones(3)), ("gradient", torch.ones(2, 2)),
                                              ("left_vectors", torch.ones(1, 2)), ("extra", torch.ones(1))])
def test_shapes(tmp_path, exact, name, tensor):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    rewritten(path, lambda h: None, {name: tensor})
    with pytest.raises(ValueError, match=r"do not fit together|unknown"):
        load(path)


def test_failed_save_leaves_the_old_file(tmp_path, exact):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    before = path.read_bytes()
    exact.settings["odd"] = object()
    with pytest.raises(TypeError, match="JSON"):
        exact.save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_npz_export(tmp_path, exact):
    path = tmp_path / "e.npz"
    exact.save(path)
    with np.load(path, allow_pickle=False) as file:
        assert np.array_equal(file["alpha"], exact.alpha.numpy())
        assert json.loads(str(file["header"]))["layer"] == "relu"
    with pytest.raises(ValueError, match="NumPy export"):
        load(path)
