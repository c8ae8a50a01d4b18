"""Raw decoders of `transformers`, unmodified and with their default attention: blocks found, lens and readout exact."""

from __future__ import annotations

import contextlib

import pytest
import torch

import specxai
from small import reference_lens, relative
from specxai._vision import import_vision

with contextlib.suppress(ImportError):
    import_vision("torchvision")  # before transformers asks for it
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
GATED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
# Norms that are cast to single precision round their scale to that.
MODELS = {
    "gpt-2": (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0)), 1e-10),
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GATED)), 1e-6),
    "qwen3": (lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GATED)), 1e-6),
    "gemma2": (lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        sliding_window=3, final_logit_softcapping=2.0, **GATED)), 1e-6),
    "gemma3": (lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(sliding_window=3, **GATED)), 1e-6),
    "opt": (lambda: transformers.OPTForCausalLM(transformers.OPTConfig(
        ffn_dim=24, word_embed_proj_dim=8, **SMALL)), 1e-10),
    "gpt-neox": (lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(intermediate_size=24, **SMALL)),
                 1e-10),
    "phi": (lambda: transformers.PhiForCausalLM(transformers.PhiConfig(intermediate_size=24, **SMALL)), 1e-10),
}


def made(name: str):
    torch.manual_seed(0)
    model = MODELS[name][0]().eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_reference_estimator(name):
    model, bound = made(name), MODELS[name][1]
    prompts = [torch.randint(40, (1, 12)) for _ in range(2)]
    L = specxai.lens.fit(model, prompts, skip_first=3)
    blocks = model.get_submodule(L.metadata["stack"])
    wanted = reference_lens(model, blocks, prompts, [0, 1], skip_first=3, use_cache=False)
    for layer in wanted:
        assert relative(L.J[layer], wanted[layer]) <= bound
    last = specxai.lens.residuals(model, prompts[0], [2])[2]
    with torch.no_grad():
        assert relative(L.readout(last, 2), model(prompts[0]).logits[0]) <= 1e-6


def test_an_encoder_beside_the_decoder_is_asked_about():
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=40, d_model=16, num_layers=2, d_ff=24, num_heads=4, d_kv=4)).eval()
    with pytest.raises(specxai.errors.LayerError, match=r"2 stacks of blocks, encoder\.block, decoder\.block"):
        specxai.lens.fit(model, [torch.zeros(1, 20, dtype=torch.long)])


def test_halves_in_bfloat16_are_fitted():
    model = made("llama").to(torch.bfloat16)
    prompts = [torch.randint(40, (1, 12))]
    L = specxai.lens.fit(model, prompts, skip_first=3)
    assert L.J[0].dtype == torch.float32
    assert relative(L.J[0].double(), specxai.lens.fit(model.double(), prompts, skip_first=3).J[0]) < 0.05
