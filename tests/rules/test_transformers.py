"""Models of `transformers`, unmodified: `gates="frozen"` is the Jacobian of the same classes with patched forwards."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import specxai
from specxai._vision import import_vision

with contextlib.suppress(ImportError):
    import_vision("torchvision")  # before transformers asks for it
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
# Norms that are cast to single precision round their scale to that.
MODELS = {
    "llama": (lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GATED)), 1e-6),
    "qwen3": (lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**GATED)), 1e-6),
    "gemma3": (lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(sliding_window=3, **GATED)), 1e-6),
    "gpt-2": (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)), 1e-12),
    "bert": (lambda: transformers.BertModel(transformers.BertConfig(intermediate_size=24, **SMALL)), 1e-12),
}


class Embedded(nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(inputs_embeds=x)[0]


def detach_by_hand(model: nn.Module, monkeypatch) -> None:
    """Patterns, roots, gates and secants of the model's classes as constants."""
    softmax, root = nn.functional.softmax, torch.rsqrt
    monkeypatch.setattr(nn.functional, "softmax", lambda *args, **kwargs: softmax(*args, **kwargs).detach())
    monkeypatch.setattr(torch, "rsqrt", lambda z: root(z).detach())

    def layer_norm(self, z):
        z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + self.eps).sqrt().detach() * self.weight + self.bias

    monkeypatch.setattr(nn.LayerNorm, "forward", layer_norm)
    for module in model.modules():
        for name, child in list(module.named_children()):
            if name in ("act_fn", "act", "intermediate_act_fn"):
                held = hasattr(module, "gate_proj")
                setattr(module, name, Held(child) if held else Secant(child))
        if hasattr(module, "intermediate_act_fn") and not isinstance(module.intermediate_act_fn, nn.Module):
            module.intermediate_act_fn = Secant(module.intermediate_act_fn)


class Held(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z).detach()


class Secant(Held):
    def forward(self, z):
        return (self.function(z) / z).detach() * z


@pytest.mark.parametrize("name", MODELS)
def test_frozen_is_the_patched_model(name, monkeypatch):
    make, bound = MODELS[name]
    model = make().eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.config.use_cache = False
    x = torch.randn(1, 5, 16, dtype=torch.float64)
    local = specxai.linearize(Embedded(model).eval(), x, gates="frozen")
    value = model(inputs_embeds=x)[0]
    assert local.generic_nodes == []
    assert local.exactness <= bound
    assert local.agreement <= local.agreement_details.tolerance
    model.set_attn_implementation("eager")
    detach_by_hand(model, monkeypatch)
    assert torch.allclose(model(inputs_embeds=x)[0], value, rtol=10 * bound, atol=10 * bound)
    wanted = torch.autograd.functional.jacobian(Embedded(model), x).reshape(-1, x.numel())
    assert (local.jacobian.to_dense() - wanted).norm() <= bound * wanted.norm()
