"""The GPT that ships is the one that its checkpoint describes, and its pieces are exact both ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from specxai.zoo.gpt import CHECKPOINT, CONTEXT, checkpoint_info, load_gpt, texts
from specxai.zoo.words import Words

trained = pytest.mark.skipif(not CHECKPOINT.is_file(),
                             reason="the checkpoint is not there: python examples/train_gpt.py makes it")


def test_pieces_are_exact_both_ways():
    words = Words.learned("the cat sat on the mat, and the hat sat on the cat " * 3, 40)
    for text in ("the cat sat", "", "  two  spaces\n\n\tand tabs \n", "größe ∂h/∂x 🐍", "snake_case = 3.14e-5"):
        assert words.decode(words.encode(text)) == text
    assert len(words.encode("the cat sat")) < 6
    assert words.decode(words.encode("∂")[:1]) == "�"


def test_without_a_checkpoint_it_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*gpt.safetensors: train the GPT with python examples"):
        load_gpt(tmp_path / "gpt.safetensors")


@trained
def test_the_checkpoint_is_small_and_says_what_it_is():
    assert CHECKPOINT.stat().st_size < 5 << 20
    info = checkpoint_info()
    assert info["vocabulary"] == 256 + len(info["merges"]) == 2048


@trained
def test_it_has_learned():
    model, words = load_gpt()
    held = torch.tensor(words.encode("\n\n".join(texts()[1])))
    starts = torch.linspace(0, len(held) - CONTEXT - 2, 12).long()
    ids = torch.stack([held[start:start + CONTEXT + 1] for start in starts])
    with torch.no_grad():
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()
    assert abs(loss - checkpoint_info()["held_out_loss"]) < 0.5  # other windows, perhaps another Python's texts
    assert loss < 4.8  # of 7.6, which is no knowledge
