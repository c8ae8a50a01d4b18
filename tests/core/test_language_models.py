"""Language models by their structure: toy ones in plain torch, and those of `transformers` where it is installed."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import specxai
from specxai._vision import import_vision
from specxai.errors import CaptureError, LayerError
from specxai.transformers import from_hf

IDS, D, V = torch.tensor([[3, 1, 4, 1, 5]]), 8, 11


class Block(nn.Module):
    def __init__(self, as_tuple=False):
        super().__init__()
        self.norm, self.as_tuple = nn.LayerNorm(D), as_tuple
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.ReLU()) for _ in range(2))

    def forward(self, hidden_states, mask=None):
        h = self.norm(hidden_states)
        for expert in self.experts:  # in turn, as blocks are
            h = expert(h)
        h = hidden_states + h
        return (h, None) if self.as_tuple else h


class Decoder(nn.Module):
    """As models of `transformers` are: blocks are called by keyword, and may return tuples."""

    def __init__(self, as_tuple=False):
        super().__init__()
        self.embed, self.drop = nn.Embedding(V, D), nn.Dropout(0.1)
        self.layers = nn.ModuleList(Block(as_tuple) for _ in range(3))
        self.norm, self.lm_head = nn.LayerNorm(D), nn.Linear(D, V, bias=False)

    def forward(self, input_ids, use_cache=True):
        h = self.embed(input_ids)
        for layer in self.layers:
            found = layer(hidden_states=h)
            h = found[0] if layer.as_tuple else found
        return {"logits": self.lm_head(self.norm(self.drop(h))), "past_key_values": object()}


class Embed(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_E = nn.Parameter(torch.randn(V, D))

    def forward(self, tokens):
        return self.W_E[tokens]


class Unembed(nn.Module):
    def __init__(self):
        super().__init__()
        self.W_U, self.b_U = nn.Parameter(torch.randn(D, V)), nn.Parameter(torch.randn(V))

    def forward(self, h):
        return h @ self.W_U + self.b_U


class Hooked(nn.Module):
    """As TransformerLens' HookedTransformer is: its own layers, and identities to hang hooks on."""

    def __init__(self):
        super().__init__()
        self.embed, self.hook_embed = Embed(), nn.Identity()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.ln_final, self.unembed = nn.LayerNorm(D), Unembed()

    def forward(self, input, return_type="logits"):
        h = self.hook_embed(self.embed(input))
        for block in self.blocks:
            h = block(h)
        return self.unembed(self.ln_final(h))


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(V, D)
        self.encoder, self.decoder = (nn.ModuleList(Block() for _ in range(2)) for _ in range(2))

    def forward(self, input_ids, decoder_input_ids):
        h, g = self.embed(input_ids), self.embed(decoder_input_ids)
        for block in self.encoder:
            h = block(h)
        for block in self.decoder:
            g = block(g + h.mean(1, keepdim=True)) if block is self.decoder[0] else block(g)
        return g


def make(cls, *args):
    torch.manual_seed(0)
    return cls(*args).double().eval()


@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_decoder(as_tuple):
    model = make(Decoder, as_tuple)
    t = from_hf(model)
    assert t.layers == ("layers.0", "layers.1", "layers.2")
    assert (t.embedding, t.norm, t.unembedding, t.d_model, len(t)) == ("embed", "norm", "lm_head", D, 3)
    assert [t.layer_name(layer) for layer in (0, -1, "layers.1")] == ["layers.0", "layers.2", "layers.1"]
    local = t.linearize(IDS, verify=True)
    torch.testing.assert_close(t.unembed(local.split(t.layer_name(-1)).value), local.output)
    op = local.operator(t.layer_name(0), t.layer_name(-1), source_positions="sum", target_positions="sum")
    assert op.shape == (D, D)
    assert local.input.equal(model.embed(IDS).detach())


def test_a_hooked_transformer():
    model = make(Hooked)
    t = from_hf(model)
    assert (t.layers, t.embedding, t.norm, t.unembedding) == (("blocks.0", "blocks.1"), "embed", "ln_final", "unembed")
    local = t.linearize(IDS)
    torch.testing.assert_close(t.unembed(local.split("blocks.1").value), model(IDS).detach())


def test_an_encoder_and_a_decoder():
    model = make(EncoderDecoder)
    with pytest.raises(LayerError, match="has 2 stacks of blocks, encoder, decoder: name one by stack="):
        from_hf(model)
    t = from_hf(model, stack="encoder")
    assert (t.layers, t.norm, t.unembedding) == (("encoder.0", "encoder.1"), "", "")
    with pytest.raises(LayerError, match="EncoderDecoder has no unembedding"):
        t.unembed(torch.zeros(D).double())


def test_prompts():
    words = ["a", "b", "c", "d", "e", "f"]
    t = from_hf(make(Decoder), lambda text: {"input_ids": [words.index(word) for word in text.split()]})
    for prompt in ("d b e b f", [3, 1, 4, 1, 5], IDS, IDS[0]):
        assert torch.equal(t.ids(prompt), IDS)
        assert torch.equal(t.linearize(prompt, verify=False).output, t.linearize(IDS, verify=False).output)
    assert from_hf(t.model, lambda text: [1, 2]).ids("text").tolist() == [[1, 2]]


@pytest.mark.parametrize("call, error, words", [
    (lambda t: t.ids("text"), TypeError, "the prompt is a text: read it with from_hf(model, tokenizer), or give"),
    (lambda t: t.ids([]), ValueError, "the prompt [] has no tokens: give one or more, as in [1, 5, 2]"),
    (lambda t: t.ids(torch.ones(1, 3)), TypeError, "the prompt holds torch.float32, where token ids are wanted"),
    (lambda t: t.ids(torch.ones(3) > 0), TypeError, "the prompt holds torch.bool"),
    (lambda t: t.ids([[1, 2], [3, 4]]), ValueError, "has shape (2, 2): give one prompt (1, T) at a time"),
    (lambda t: t.ids([[1, 2], [3]]), TypeError, "no token ids can be made of the prompt, a list"),
    (lambda t: t.ids(None), TypeError, "no token ids can be made of the prompt, a NoneType"),
    (lambda t: from_hf(t.model, lambda text: []).ids("text"), ValueError, "the prompt 'text' has no tokens"),
    (lambda t: from_hf(t.model, lambda text: None).ids("text"), TypeError, "the tokenizer makes a NoneType"),
    (lambda t: t.layer_name(3), LayerError, "layer 3 has no residual stream: that is after the blocks 'layers.0'"),
    (lambda t: t.layer_name("layers.1.norm"), LayerError, "layer 'layers.1.norm' has no residual stream"),
    (lambda t: from_hf(nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4)).eval()), LayerError, "no stack of blocks"),
    (lambda t: from_hf(nn.Sequential(nn.Linear(3, 4)).eval()), TypeError, "no embedding"),
    (lambda t: from_hf(make(Decoder).train()), ValueError, "training mode"),
    (lambda t: from_hf(t.model, stack="blocks"), LayerError, "stacks of blocks, layers: name one by stack=, got"),
    (lambda t: from_hf(nn.Bilinear(2, 2, 2).eval()), (CaptureError, TypeError), "Bilinear"),
    (lambda t: from_hf("gpt2"), TypeError, "must be a torch.nn.Module, got str"),
])
def test_bad_input(call, error, words):
    with pytest.raises(error) as raised:
        call(from_hf(make(Decoder)))
    assert "\n" not in str(raised.value)
    assert words in str(raised.value)


SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
HF = {
    "LlamaForCausalLM": ("LlamaConfig", GATED, "model.layers", "model.norm"),
    "Qwen3ForCausalLM": ("Qwen3Config", GATED, "model.layers", "model.norm"),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", GATED, "model.layers", "model.norm"),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 0,
                                       "eos_token_id": 0}, "transformer.h", "transformer.ln_f"),
    "OPTForCausalLM": ("OPTConfig", SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16}, "model.decoder.layers",
                       "model.decoder.final_layer_norm"),
    "BertModel": ("BertConfig", SMALL | {"intermediate_size": 24}, "encoder.layer", ""),
    "T5EncoderModel": ("T5Config", {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2,
                                    "num_heads": 4}, "encoder.block", "encoder.final_layer_norm"),
}


@pytest.mark.parametrize("name", HF)
def test_models_of_transformers(name):
    with contextlib.suppress(ImportError):
        import_vision("torchvision")  # before transformers asks for it
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config, settings, stack, norm = HF[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).double().eval()
    t = from_hf(model)
    assert t.layers == (f"{stack}.0", f"{stack}.1")
    assert t.norm == norm
    assert t.d_model == 16
    mask = torch.ones_like(IDS)
    local = t.linearize(IDS, kwargs={"attention_mask": mask})
    assert local.agreement < 1e-6
    out = model(IDS, attention_mask=mask)
    torch.testing.assert_close(local.output, out[0].detach())
    assert local.operator(t.layer_name(0), t.layer_name(1), target_positions=[-1]).output_shape == (1, 16)
    if t.unembedding:
        last = local.split(t.layer_name(-1)).value
        torch.testing.assert_close(t.unembed(last), out.logits.detach(), rtol=1e-6, atol=1e-6)
    for given, words in (({"use_cache": True}, "use_cache is True"), ({"past_key_values": object()}, "whole prompt")):
        with pytest.raises(ValueError, match=words):
            specxai.linearize(model, IDS, kwargs=given)
    with pytest.raises(TypeError, match="embeddings are wanted"):
        specxai.linearize(model, kwargs={"inputs_embeds": IDS}, wrt="inputs_embeds")
