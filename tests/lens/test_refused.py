"""What a lens cannot be made of, or be read with: one line each, which names the cause and the remedy."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import specxai
from small import CONTEXT, WIDTH, some_prompts
from specxai.errors import LayerError
from specxai.zoo.gpt import GPT


@pytest.mark.parametrize("options, error, says", [
    ({"layers": [3]}, LayerError, "layer 3 is no source of a lens: the model has 4 blocks, sources are 0 to 2"),
    ({"layers": []}, LayerError, "list is empty"),
    ({"layers": 1}, TypeError, "layers=1: give the numbers of blocks, as in"),
    ({"layers": "01"}, TypeError, "layers='01': give the numbers of blocks"),
    ({"layers": [True]}, TypeError, "give the numbers of blocks"),
    ({"stack": "block"}, LayerError, "GPT has no list of two or more blocks 'block'; its lists are: blocks"),
    ({"kwargs": {"use_cache": True}}, ValueError, "use_cache is True"),
    ({"max_length": 6}, ValueError, "max_length 6 leaves no valid position with skip_first 5: it must be at least 7"),
    ({"rank": 0}, ValueError, "rank must be a whole number, at least 1; got 0"),
    ({"skip_first": 2.5}, ValueError, "skip_first must be a whole number"),
    ({"rank": 3, "checkpoint": "x.pt"}, ValueError, "leave one of the two out"),
    ({"gates": "tangents"}, ValueError, "unknown gate policy"),
    ({"layers": [-9]}, LayerError, "layer -9 is no source of a lens"),
    ({"kwargs": {"mask": 1}}, TypeError, "kwargs has 'mask', which is no argument of GPT.forward: that takes ids"),
    ({"skip_frist": 5}, TypeError, "fit has no argument 'skip_frist': did you mean skip_first?"),
    ({"mask": 5}, TypeError, "no argument 'mask': one of the model's own forward goes into kwargs={'mask': ...}"),
])
def test_bad_options_are_one_line(gpt, options, error, says):
    with pytest.raises(error, match=re.escape(says)) as caught:
        specxai.lens.fit(gpt, some_prompts((20,)), **{"skip_first": 5, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layers", [None, [0]])
def test_one_block_has_no_source_below_it(layers):
    model = GPT(vocabulary=40, width=WIDTH, heads=3, blocks=1, context=CONTEXT).eval()
    with pytest.raises(LayerError, match="the model has one block, which is the target"):
        specxai.lens.fit(model, some_prompts((20,)), layers, skip_first=5)


@pytest.mark.parametrize("prompts, error, says", [
    ([torch.zeros(1, 20, WIDTH)], TypeError, "prompt 0 holds torch.float32, where token ids are wanted"),
    ([torch.rand(1, 20)], TypeError, "prompt 0 holds torch.float32, where token ids are wanted"),
    (None, TypeError, "prompts is None: give texts or token ids"), (5, TypeError, "prompts is 5: give texts"),
    ([None], TypeError, "no token ids can be made of prompt 0, a NoneType"),
    ([1, 2, 3], TypeError, "prompt 0 is the number 1: give all ids of a prompt"),
    ([torch.zeros(2, 20, dtype=torch.long)], ValueError, "give one prompt"),
    (["text"], TypeError, "tokenizer="),
    ([["a", "b"]], TypeError, "no token ids can be made of prompt 0, a list"),
    ([[1, 2, 3]], ValueError, "no prompt is long enough .* needs 7 tokens"),
    ([torch.full((1, 20), 40)], ValueError, "the largest id 40"),
    ([torch.zeros(1, CONTEXT + 1, dtype=torch.long)], ValueError, "41 tokens"),
    ([torch.zeros(1, 5, dtype=torch.long)], ValueError, "no prompt is long enough .* needs 7 tokens"),
    ([], ValueError, "there are no prompts"), (iter([]), ValueError, "there are no prompts"),
])
@pytest.mark.filterwarnings("ignore:prompt 0 is left out")
@pytest.mark.parametrize("rank", [None, 2])
def test_bad_prompts_are_one_line(gpt, prompts, error, says, rank):
    with pytest.raises(error, match=says) as caught:
        specxai.lens.fit(gpt, prompts, skip_first=5, rank=rank)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tokenizer, says", [
    ("gpt2", "prompt 0 is a text, and the tokenizer is a str that cannot be called: read it with fit"),
    (lambda text: None, "the tokenizer makes a NoneType of prompt 0: it must return token ids, or a mapping"),
    (lambda text: {}, "the tokenizer makes a NoneType of prompt 0"),
    (lambda text: text, "the tokenizer makes a str of prompt 0"),
    (str.split, "no token ids can be made of prompt 0, a list"),
    (lambda text: torch.rand(1, 20), "prompt 0 holds torch.float32"),
])
def test_bad_tokenizers_are_one_line(gpt, tokenizer, says):
    with pytest.raises(TypeError, match=says) as caught:
        specxai.lens.fit(gpt, ["some words"], skip_first=5, tokenizer=tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids, layers, error, says", [
    (torch.zeros(1, 8), None, TypeError, "ids holds torch.float32, where token ids are wanted"),
    (torch.zeros(2, 8, dtype=torch.long), None, ValueError, "give one prompt"),
    ("text", None, TypeError, "ids is a text: read it with the model's tokenizer, or give token ids"),
    ([], None, ValueError, "ids holds no tokens"), (5, None, TypeError, "ids is the number 5"),
    (torch.zeros(1, 8, dtype=torch.long), [7], LayerError, "layer 7 is no block: the model has 4, 0 to 3"),
    (torch.zeros(1, 8, dtype=torch.long), [], LayerError, "list is empty"),
    (torch.zeros(1, 8, dtype=torch.long), [0.5], TypeError, "give the numbers of blocks"),
])
def test_bad_residuals_are_one_line(gpt, ids, layers, error, says):
    with pytest.raises(error, match=says) as caught:
        specxai.lens.residuals(gpt, ids, layers)
    assert "\n" not in str(caught.value)


def test_bad_models_are_one_line(gpt):
    prompts = some_prompts((20,))
    with pytest.raises(ValueError, match="training mode"):
        specxai.lens.fit(gpt.train(), prompts, skip_first=5)
    with pytest.raises(LayerError, match="no stack of blocks with a residual stream"):
        specxai.lens.fit(nn.Sequential(nn.Embedding(40, 8)).eval(), prompts, skip_first=5)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.blocks = nn.Embedding(40, 8), nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, ids):
            x = self.tokens(ids).mean(1)
            for block in self.blocks:
                x = block(x)
            return x

    with pytest.raises(LayerError, match=r"layer 0 \(blocks.0\) has no residual stream: it returns \(1, 8\)"):
        specxai.lens.fit(Flat().eval(), prompts, skip_first=5, stack="blocks")


def test_readout_says_what_it_wants(gpt):
    L = specxai.lens.fit(gpt, some_prompts((20,)), layers=[1], skip_first=5)
    with pytest.raises(TypeError, match="not token ids"):
        L.readout(torch.zeros(1, 5, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"\(\*, 24\)"):
        L.readout(torch.zeros(5, 8), 1)
    with pytest.raises(KeyError, match="layer 0 is not in this lens, which has 1"):
        L.readout(torch.zeros(5, WIDTH), 0)
    with pytest.raises(ValueError, match="has no model to read with"):
        specxai.lens.Lens(L.J, 1, WIDTH).readout(torch.zeros(5, WIDTH), 1)
