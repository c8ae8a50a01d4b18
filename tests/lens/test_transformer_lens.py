"""TransformerLens itself: its bridge is fitted and read as it does, its loop takes our provider, files go both ways.

The models are random and the tokenizer is of forty words, so that nothing is fetched.
"""

from __future__ import annotations

import contextlib

import pytest
import torch

import specxai
from small import relative
from specxai._vision import import_vision
from specxai.lens import BackwardProvider

with contextlib.suppress(ImportError):
    import_vision("torchvision")  # before transformers asks for it
pytest.importorskip("transformer_lens.tools.analysis.jacobian_lens",
                    reason="TransformerLens 4.3 or later is not installed: pip install transformer-lens")
import tokenizers
import transformers
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformer_lens.tools.analysis import JacobianLens
from transformer_lens.tools.analysis.jacobian_lens import _fit_transport_matrices

WORDS, SKIP, D, BOUND = 40, 4, 16, 1e-5
SMALL = {"vocab_size": WORDS, "hidden_size": D, "num_hidden_layers": 4, "num_attention_heads": 4,
         "max_position_embeddings": 64}
GATED = SMALL | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 4}
MODELS = {
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": WORDS, "n_embd": D, "n_layer": 4, "n_head": 4,
                                       "n_positions": 64, "bos_token_id": 1, "eos_token_id": 1}),
    "LlamaForCausalLM": ("LlamaConfig", GATED),
    "Gemma2ForCausalLM": ("Gemma2Config", GATED | {"sliding_window": 5, "final_logit_softcapping": 2.0}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", SMALL | {"intermediate_size": 24}),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """In a folder, out of which a bridge reads it again with a token for the beginning."""
    vocabulary = {"<unk>": 0, "<s>": 1} | {f"w{number}": number for number in range(2, WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="<s>",
                                         pad_token="<unk>").save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def made(name: str, tokenizer):
    config, settings = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return build_bridge_from_module(model, name, hf_config=model.config, tokenizer=tokenizer, dtype=torch.float32,
                                    device="cpu", model_name=f"random {name}").eval()


@pytest.fixture(scope="module", params=MODELS)
def every(request, tokenizer):
    return made(request.param, tokenizer)


@pytest.fixture(scope="module")
def bridge(tokenizer):
    return made("LlamaForCausalLM", tokenizer)


def texts(*lengths: int) -> list[str]:
    generator = torch.Generator().manual_seed(1)
    return [" ".join(f"w{word}" for word in torch.randint(2, WORDS, (length,), generator=generator).tolist())
            for length in lengths]


PROMPTS = texts(20, 24, 20)


def theirs(bridge, prompts=PROMPTS, **options) -> JacobianLens:
    return JacobianLens.fit(bridge, prompts, corpus="words", skip_first_positions=SKIP, show_progress=False,
                            **{"dim_batch": 5, **options})


def same(got: dict, wanted: dict, bound: float = BOUND) -> None:
    assert sorted(got) == sorted(wanted)
    for layer in wanted:
        assert relative(got[layer], wanted[layer]) <= bound


def test_a_bridge_is_fitted_and_read_as_its_own_library_does(every):
    wanted = theirs(every)
    L = specxai.lens.fit(every, PROMPTS, skip_first=SKIP, tokenizer=every.to_tokens)
    same(L.J, wanted.jacobians)
    ids = every.to_tokens(PROMPTS[0])
    read = wanted.readout(every, ids, return_full_logits=True).lens_logits
    same({layer: L.readout(h, layer) for layer, h in specxai.lens.residuals(every, ids).items()}, read)


def test_what_is_known_of_a_bridge(every):
    t = specxai.transformers.from_hf(every, every.to_tokens)
    assert t.layers == tuple(f"blocks.{number}" for number in range(4))
    assert (t.embedding, t.norm, t.d_model) == ("embed", "ln_final", D)
    assert torch.equal(t.ids(PROMPTS[0]), every.to_tokens(PROMPTS[0]))
    local = t.linearize(PROMPTS[0])
    assert local.agreement <= BOUND
    assert local.operator(t.layer_name(0), t.layer_name(-1), target_positions=-1).shape[0] == D


@pytest.mark.parametrize("columns", [5, 3 * D])
def test_their_loop_takes_the_provider(every, columns):
    options = {"source_layers": [0, 2], "dim_batch": columns, "max_seq_len": 18, "skip_first_positions": SKIP,
               "show_progress": False}
    with BackwardProvider(every) as provider:
        got, count = _fit_transport_matrices(every, PROMPTS, backward_provider=provider, **options)
    assert count == 3
    same(got, theirs(every, source_layers=[0, 2], max_seq_len=18).jacobians)


def test_a_policy_in_their_loop_is_that_of_fit(bridge):
    gates = {"base": "tangent", "norm": "held", "softmax": "held"}
    with BackwardProvider(bridge, gates=gates) as provider:
        got, _ = _fit_transport_matrices(bridge, PROMPTS[:1], source_layers=[0], dim_batch=D, max_seq_len=128,
                                         skip_first_positions=SKIP, show_progress=False, backward_provider=provider)
    wanted = specxai.lens.fit(bridge, PROMPTS[:1], [0], SKIP, gates=gates, tokenizer=bridge.to_tokens).J
    same(got, wanted)
    assert relative(theirs(bridge, PROMPTS[:1]).jacobians[0], wanted[0]) > 1e-2


def test_files_and_checkpoints_go_both_ways(bridge, tmp_path):
    wanted, file = theirs(bridge), str(tmp_path / "lens.pt")
    L = specxai.lens.fit(bridge, PROMPTS, skip_first=SKIP, tokenizer=bridge.to_tokens, checkpoint=tmp_path / "fit.pt")
    L.save(file, dtype=torch.float32)
    for path in (file, str(tmp_path / "fit.pt")):
        read = JacobianLens.from_pretrained(path, model=bridge)
        assert (read.n_prompts, read.d_model, read.metadata["target_layer"]) == (3, D, 3)
        same(read.jacobians, wanted.jacobians)
    wanted.save(file)
    read = specxai.lens.load(file, model=bridge)
    assert (read.n_prompts, read.metadata["corpus"]) == (3, "words")
    same(read.J, wanted.jacobians, 1e-3)  # of float16
    ids = bridge.to_tokens(PROMPTS[1])
    same({1: read.readout(specxai.lens.residuals(bridge, ids)[1], 1)},
         {1: JacobianLens.load(file).readout(bridge, ids, layers=[1], return_full_logits=True).lens_logits[1]})


def test_either_merges_the_others(bridge, tmp_path):
    files = [str(tmp_path / name) for name in ("first.pt", "second.pt", "merged.pt")]
    parts, wanted = (PROMPTS[:1], PROMPTS[1:]), theirs(bridge).jacobians
    for file, part in zip(files, parts, strict=False):
        theirs(bridge, part).save(file, dtype=torch.float32)
    merged = specxai.lens.load(files[0]).merge(specxai.lens.load(files[1]))
    assert (merged.n_prompts, merged.metadata["n_prompts"]) == (3, 3)
    same(merged.J, wanted)
    merged.save(files[2], dtype=torch.float32)
    same(JacobianLens.from_pretrained(files[2], model=bridge).jacobians, wanted)
    for file, part in zip(files, parts, strict=False):
        specxai.lens.fit(bridge, part, skip_first=SKIP, tokenizer=bridge.to_tokens).save(file, dtype=torch.float32)
    same(JacobianLens.merge([JacobianLens.load(file) for file in files[:2]]).jacobians, wanted)


def test_a_run_on_a_text_has_no_ids(bridge):
    with BackwardProvider(bridge) as provider:
        _, cache = bridge.run_with_cache(PROMPTS[0])
        blocks = [cache[f"blocks.{layer}.hook_out"] for layer in (0, 3)]
        with pytest.raises(ValueError, match="was given no token ids"):
            provider(blocks[1], blocks[:1], torch.zeros_like(blocks[1]), False)
