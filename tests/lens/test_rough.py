"""Fits by rough products: in either way, how far off they are, and checkpoints of others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from small import relative, some_prompts
from specxai.errors import FileError
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearizer
from specxai.lens.sweep import rough_of, sweep, unit_rows
from specxai.zoo.gpt import GPT


def test_rough_products_say_how_far_off_they_are(gpt):
    prompts = some_prompts((20, 20))
    whole = specxai.lens.fit(gpt, prompts, skip_first=5)
    rough = specxai.lens.fit(gpt, prompts, skip_first=5, products="rough")
    error = max(relative(rough.J[layer], whole.J[layer]) for layer in whole.J)
    assert error <= max(2 * rough.metadata["rough_error"], 1e-6)
    assert rough.metadata["rough_error"] < 0.03
    with pytest.raises(ValueError, match="different products cannot be merged: None and 'rough'"):
        whole.merge(rough)


class Dead(nn.Module):
    def forward(self, x):
        return x.detach()


def test_the_error_of_rough_products_is_a_number_where_a_layer_leads_nowhere(gpt):
    blocks = [gpt.blocks[0], nn.Sequential(gpt.blocks[1], Dead()), gpt.blocks[2]]
    model = nn.Sequential(gpt.tokens, nn.Sequential(*blocks)).eval()
    rough = specxai.lens.fit(model, some_prompts((20,)), skip_first=5, products="rough", stack="1")
    assert not rough.J[0].any()
    assert rough.J[1].any()
    assert 0 < rough.metadata["rough_error"] < 0.03


@pytest.mark.parametrize("there, here", [("full", "rough"), ("rough", "full"), ("rough", "auto")])
def test_a_checkpoint_of_other_products_is_of_another_fit(gpt, tmp_path, there, here):
    prompts, options = some_prompts((20, 20)), {"skip_first": 5, "checkpoint": tmp_path / "fit.pt"}
    specxai.lens.fit(gpt, prompts[:1], products=there, **options)
    with pytest.raises(FileError, match=f"products is '{there}' there and '{here.replace('auto', 'full')}' here"):
        specxai.lens.fit(gpt, prompts, products=here, **options)
    assert specxai.lens.fit(gpt, prompts, products=there, **options).n_prompts == 2


def test_rough_products_in_either_way():
    """Wide enough that the compiled kernels round; by whole values, in bfloat16."""
    torch.manual_seed(0)
    make = Linearizer(Decoder(GPT(vocabulary=60, width=256, heads=4, blocks=2, context=24).eval()), [0], 5)
    found = make.at(some_prompts((20,))[0])
    rows = unit_rows(found, 0, 64)
    exact = sweep(found, rows)
    errors = {kind: relative(sweep(found, rows, rough), exact) for rough, kind in (
        rough_of(found), (torch.bfloat16, "bfloat16"))}
    for kind, error in errors.items():
        assert 1e-6 < error < {"16-bit factors": 2e-3, "bfloat16": 0.02}[kind], errors
