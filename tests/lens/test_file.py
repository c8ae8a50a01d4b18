"""A lens file is the reference's; a foreign or damaged one is refused by what is wrong with it."""

from __future__ import annotations

import pickle

import pytest
import torch

from specxai.errors import FileError
from specxai.lens import Lens, load


def lens(**metadata) -> Lens:
    torch.manual_seed(0)
    return Lens({layer: torch.randn(6, 6) for layer in (0, 1, 4)}, 7, 6, metadata)


def test_it_holds_what_the_reference_holds(tmp_path):
    lens(skip_first=3).save(tmp_path / "lens.pt")
    content = torch.load(tmp_path / "lens.pt", weights_only=True)
    assert set(content) == {"J", "n_prompts", "source_layers", "d_model", "metadata"}
    assert (content["n_prompts"], content["source_layers"], content["d_model"]) == (7, [0, 1, 4], 6)
    assert all(matrix.dtype == torch.float16 and matrix.shape == (6, 6) for matrix in content["J"].values())


@pytest.mark.parametrize("dtype, bound", [(torch.float16, 1e-3), (torch.float32, 0)])
def test_it_round_trips(tmp_path, dtype, bound):
    wanted = lens(gates="tangent", extra={"a": [1, 2.0, None]})
    wanted.save(tmp_path / "folder" / "lens.pt", dtype=dtype)
    got = load(tmp_path / "folder" / "lens.pt")
    assert (got.n_prompts, got.d_model, got.metadata) == (7, 6, wanted.metadata)
    for layer in wanted.J:
        assert got.J[layer].dtype == torch.float32
        assert (got.J[layer] - wanted.J[layer]).abs().max() <= bound * wanted.J[layer].abs().max()


def test_files_of_others_are_read(tmp_path):
    J = {0: torch.eye(3, dtype=torch.float16)}
    torch.save({"J": J, "n_prompts": 100, "source_layers": [0], "d_model": 3}, tmp_path / "reference.pt")
    assert load(tmp_path / "reference.pt").n_prompts == 100
    torch.save({"jacobian_sum": {0: 4 * torch.eye(3)}, "n_done": 4, "next_idx": 5, "source_layers": [0],
                "target_layer": 2, "skip_first": 16}, tmp_path / "checkpoint.pt")
    got = load(tmp_path / "checkpoint.pt")
    assert (got.n_prompts, got.metadata["target_layer"]) == (4, 2)
    assert torch.equal(got.J[0], torch.eye(3))


def test_files_of_transformerlens_merge(tmp_path):
    first, second = (Lens({0: value * torch.eye(3)}, count, 3, {"corpus": "c", "n_prompts": count})
                     for value, count in ((1.0, 1), (4.0, 2)))
    merged = first.merge(second)
    assert (merged.n_prompts, merged.metadata) == (3, {"corpus": "c", "n_prompts": 3})
    assert torch.allclose(merged.J[0], 3 * torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex64, "float16", None])
def test_it_is_written_in_real_numbers(tmp_path, dtype):
    with pytest.raises(TypeError, match="give one of real numbers"):
        lens().save(tmp_path / "lens.pt", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileError, match="is a folder, and no lens file"):
        load(tmp_path)


GOOD = {"J": {0: torch.eye(3), 1: torch.eye(3)}, "n_prompts": 2, "source_layers": [0, 1], "d_model": 3}


@pytest.mark.parametrize("change, says", [
    ({"J": None}, "has no matrices in J"), ({"J": {}}, "has no matrices in J"),
    ({"J": {0: torch.eye(3), "x": torch.eye(3)}}, "has 'x' as a layer in J"),
    ({"J": {0: torch.ones(3, 2), 1: torch.eye(3)}}, r"shape \(3, 2\) at J\[0\]"),
    ({"J": {0: torch.eye(3), 1: torch.eye(4)}}, r"shape \(4, 4\) at J\[1\]"),
    ({"J": {0: torch.eye(3).long(), 1: torch.eye(3)}}, r"no matrix of numbers at J\[0\]"),
    ({"J": {0: torch.eye(3) / 0, 1: torch.eye(3)}}, r"NaN or infinity at J\[0\]"),
    ({"n_prompts": "2"}, "n_prompts '2'"), ({"d_model": 4}, "says d_model 4, and J is 3 wide"),
    ({"source_layers": [0]}, "source_layers"), ({"metadata": [1]}, "metadata"),
    ({"metadata": {"a": torch.ones(1)}}, "metadata 'a' of Tensor"),
    ({"factors": {0: {"U": torch.ones(3, 1)}}}, "lacks U, S, V or residuals at factors"),
])
def test_a_wrong_file_says_what_is_wrong(tmp_path, change, says):
    torch.save({**GOOD, **change}, tmp_path / "lens.pt")
    with pytest.raises(FileError, match=says):
        load(tmp_path / "lens.pt")


class Harmful:
    def __reduce__(self):
        return print, ("this ran",)


def test_nothing_in_a_file_is_run(tmp_path, capsys):
    torch.save({**GOOD, "metadata": {"a": Harmful()}}, tmp_path / "lens.pt")
    with pytest.raises(FileError, match="refused: it holds a pickled"):
        load(tmp_path / "lens.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(FileError):
        load(tmp_path / "raw.pt")
    assert capsys.readouterr().out == ""


def test_no_lens_and_half_a_lens(tmp_path):
    with pytest.raises(FileNotFoundError, match="no lens file"):
        load(tmp_path / "none.pt")
    lens().save(tmp_path / "lens.pt")
    whole = (tmp_path / "lens.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(FileError, match="cut short, damaged or of another format"):
        load(tmp_path / "half.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(FileError, match="holds a list"):
        load(tmp_path / "list.pt")


def test_what_overflows_is_not_written(tmp_path):
    big = Lens({0: torch.full((2, 2), 1e6)}, 1, 2)
    with pytest.raises(ValueError, match=r"save\(path, dtype=torch.float32\)"):
        big.save(tmp_path / "lens.pt")
    assert list(tmp_path.iterdir()) == []
