"""Files: round trips, and errors that name what is wrong with a file."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from specxai.errors import FileError
from specxai.spectral import Decomposition, Explanation, decompose, explain, load, store

DATA = Path(__file__).parent / "data"


def same(a, b):
    for name, value in vars(a).items():
        other = getattr(b, name)
        if name == "local":
            continue
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


def rewritten(path, change=lambda h: None, tensors=None, text=None):
    """`path` with its header and tensors changed, its checksum made good again."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        format_ = next(name for name in file.metadata() if name.startswith("specxai."))
        header = json.loads(file.metadata()[format_])
    tensors = {**load_file(path), **(tensors or {})}
    change(header)
    text = json.dumps(header) if text is None else text
    save_file(tensors, path, metadata={format_: text, "sha256": store._digest(text, tensors)})


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(("change", "words"), [
    (lambda h: h.update(version=99), "version 99"),
    (lambda h: h.update(version=0), "version 0"),
    (lambda h: h.update(version="2"), "version is no number"),
    (lambda h: h.update(version=True), "version is no number"),
    (lambda h: h.pop("version"), r"header .* damaged"),
    (lambda h: h.pop("seed"), r"missing \['seed'\]"),
    (lambda h: h.pop("agreement"), r"missing \['agreement'\]"),
    (lambda h: h.update(layer=3), "layer is not str"),
    (lambda h: h.update(seed=1.5), "seed is not int"),
    (lambda h: h.update(seed=True), "seed is not int"),
    (lambda h: h.update(output="0.5"), "output is not float"),
    (lambda h: h.update(output=10**400), "output is not float"),
    (lambda h: h.update(error=[1.0]), "error is not float or null"),
    (lambda h: h.update(bias_contributions={"fc1": "1"}), "bias_contributions is not"),
    (lambda h: h.update(bias_contributions=[1.0]), "bias_contributions is not"),
    (lambda h: h.update(backends={"targets": 1}), "backends is not"),
    (lambda h: h.update(settings=[]), "settings is not"),
    (lambda h: h["settings"].update(model=5), "settings is not"),
    (lambda h: h["settings"].update(svd=5), "settings is not"),
    (lambda h: h["settings"].update(svd={"norm": "large"}), "settings is not"),
])
def test_header(tmp_path, exact, change, words):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    rewritten(path, change)
    with pytest.raises(FileError, match=words):
        load(path)


@pytest.mark.parametrize(("text", "words"), [
    (nested(100_000), "damaged: RecursionError"),
    ('{"version": ' + nested(100_000) + "}", "damaged: RecursionError"),
    ("[]", "damaged: TypeError"), ("null", "damaged: TypeError"), ("", "damaged: JSONDecodeError"),
    ('{"version": ' + "1" * 5000 + "}", "damaged: ValueError"),
    (" " * (store.LONGEST_HEADER + 1), "at most"),
])
def test_a_crafted_header_is_one_line(tmp_path, exact, text, words):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    rewritten(path, text=text)
    with pytest.raises(FileError, match=words) as caught:
        load(path)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "tensor", "words"), [
    ("alpha", torch.ones(3).double(), "do not fit together"), ("gradient", torch.ones(2, 2), "do not fit together"),
    ("left_vectors", torch.ones(1, 2), "do not fit together"), ("left_vectors", torch.tensor(1.0), "do not fit"),
    ("S", torch.tensor(1.0).double(), "do not fit together"), ("target", torch.tensor(1.0), "do not fit together"),
    ("extra", torch.ones(1), "unknown"), ("alpha\x1b[2J", torch.ones(1), r"unknown \['alpha.{1,2}x1b"),
    ("S", torch.ones(18, dtype=torch.complex64), "S in .* is torch.complex64"),
    ("indices", torch.ones(18), "indices in .* is torch.float32"), ("x", torch.ones(3, 4, 5).int(), "x in .* is"),
])
def test_tensors(tmp_path, exact, name, tensor, words):
    path = tmp_path / "e.safetensors"
    exact.save(path)
    rewritten(path, tensors={name: tensor})
    with pytest.raises(FileError, match=words):
        load(path)


def test_a_file_of_version_1(tmp_path):
    """Written by the code before version 2; its numbers are from the terminal of that run."""
    e = load(DATA / "version1.safetensors")
    assert (e.layer, e.target_label, e.method, e.products, e.seed) == ("relu", "output[1]", "exact", 51, 0)
    assert e.alpha.tolist() == [-0.6316106422374413, 0.04674150336661108, 1.3721657116540502]
    assert e.S.tolist() == [1.6549452543258667, 1.4103504419326782, 1.356184959411621]
    assert (e.output, e.bias, e.bypass) == (0.6869555711746216, -0.5500921010971069, 2.125786304473877)
    assert (e.agreement, e.backends, e.backend) == (None, {}, "native")
    assert e.right_vectors.shape == (3, 1, 6, 6)
    assert e.left_vectors.shape == (3, 2, 4, 4)
    assert e.completeness < 1e-7
    assert "agreement not checked" in repr(e)
    assert "backend native" in repr(e)
    e.save(tmp_path / "again.safetensors")
    same(e, load(tmp_path / "again.safetensors"))


@pytest.mark.parametrize("kind", [Explanation, Decomposition])
def test_the_other_kind_of_file(tmp_path, net, kind):
    (explain if kind is Decomposition else decompose)(net, layer="relu").save(tmp_path / "r.safetensors")
    with pytest.raises(FileError, match=r"not a saved .*names it 'specxai\."):
        kind.load(tmp_path / "r.safetensors")


def test_a_loaded_record_owns_its_memory(tmp_path, net):
    """Tensors mapped to a file crash with it when it is cut short, and change with it when it is written to."""
    for record in (explain(net, layer="relu", target=1), decompose(net, layer="relu")):
        path = tmp_path / "r.safetensors"
        record.save(path)
        read = type(record).load(path)
        with open(path, "r+b") as file:
            file.write(b"\xff" * 64)
            file.truncate(64)
        same(record, read)


@pytest.mark.parametrize("make", [explain, decompose])
def test_no_components(tmp_path, net, make):
    dead = type(net)(net.input, {**net.weights, "b1": torch.full((18,), -1e3, dtype=torch.float64)})
    record = make(dead, layer="relu", rank=3)[[]]
    record.save(tmp_path / "r.safetensors")
    read = type(record).load(tmp_path / "r.safetensors")
    assert len(read) == 0
    same(record, read)


@pytest.mark.parametrize("make", [explain, decompose])
def test_damaged_bytes_are_refused_or_harmless(tmp_path, net, make):
    record, words = make(net, layer="relu", rank=2), []
    path = tmp_path / "r.safetensors"
    record.save(path)
    whole, draw = path.read_bytes(), random.Random(16)
    head = 8 + int.from_bytes(whole[:8], "little")
    for turn in range(300):
        damaged = bytearray(whole)
        if turn % 3 == 2:
            del damaged[draw.randrange(len(whole)):]
        else:  # half of them in the header
            for _ in range(draw.choice([1, 1, 4])):
                damaged[draw.randrange(head if turn % 3 else len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            read = type(record).load(path)
        except FileError as error:
            words.append(str(error))
        else:
            same(record, read)
    assert len(words) > 290, "every byte is covered by the checksum"
    assert not any("\n" in said for said in words)


def test_a_decomposition_of_other_shapes(tmp_path, net):
    path = tmp_path / "d.safetensors"
    decompose(net, layer="relu").save(path)
    rewritten(path, lambda h: h.update(layer_shape=[2, 3, 4]))
    with pytest.raises(FileError, match=r"do not fit together: .*shape \(2, 3, 4\)"):
        Decomposition.load(path)


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
