"""The provider serves a fit loop that is written from the protocol alone: as autograd does, or with held factors."""

from __future__ import annotations

import pytest
import torch

import specxai
from small import reference_lens, relative, small_gpt, some_prompts
from specxai.lens import BackwardProvider


def test_the_loop_gets_what_autograd_gives():
    model, prompts = small_gpt(torch.float64), some_prompts((20, 15))
    wanted = reference_lens(model, model.blocks, prompts, [2, 0, 1], skip_first=5)
    with BackwardProvider(model) as provider:
        got = reference_lens(model, model.blocks, prompts, [2, 0, 1], skip_first=5, backward=provider)
    for layer in wanted:
        assert relative(got[layer], wanted[layer]) <= 1e-12
    assert all(not block._forward_hooks for block in model.blocks)
    assert not model._forward_pre_hooks


def test_other_weights_are_seen():
    model, prompts = small_gpt(torch.float64), some_prompts((20, 20))
    with BackwardProvider(model) as provider:
        before = reference_lens(model, model.blocks, prompts, [1], skip_first=5, backward=provider)
        with torch.no_grad():
            model.blocks[2].up.weight.mul_(1.5)
        after = reference_lens(model, model.blocks, prompts, [1], skip_first=5, backward=provider)
    assert relative(after[1], before[1]) > 1e-2
    assert relative(after[1], reference_lens(model, model.blocks, prompts, [1], skip_first=5)[1]) <= 1e-12


def test_every_position_and_source_is_autograds(gpt):
    seen = {}
    for layer in range(4):
        gpt.blocks[layer].register_forward_hook(lambda m, i, out, layer=layer: seen.__setitem__(layer, out))
    with BackwardProvider(gpt) as provider:
        gpt(some_prompts((11,))[0].expand(3, -1))
        target, sources = seen[3], [seen[1], seen[0]]  # the provider runs the model, and these hooks, again
        cotangent = torch.randn_like(target)
        got = provider(target, sources, cotangent, True)
    wanted = torch.autograd.grad(target, sources, cotangent)
    for mine, theirs in zip(got, wanted, strict=True):
        assert relative(mine, theirs) <= 1e-5


def test_a_policy_is_that_of_fit():
    model, prompts = small_gpt(torch.float64), some_prompts((20,))
    gates = {"base": "tangent", "norm": "held", "softmax": "held"}
    with BackwardProvider(model, gates=gates) as provider:
        got = reference_lens(model, model.blocks, prompts, [0], skip_first=5, backward=provider)
    assert relative(got[0], specxai.lens.fit(model, prompts, layers=[0], skip_first=5, gates=gates).J[0]) <= 1e-12


def test_what_it_cannot_serve_it_says(gpt):
    seen = {}
    for layer in range(4):
        gpt.blocks[layer].register_forward_hook(lambda m, i, out, layer=layer: seen.__setitem__(layer, out))
    with BackwardProvider(gpt) as provider:
        gpt(torch.cat(some_prompts((11, 11))))
        with pytest.raises(ValueError, match="its rows differ"):
            provider(seen[3], [seen[0]], torch.zeros_like(seen[3]), False)
        with pytest.raises(ValueError, match="the target is block 2, and a lens ends at the last one, 3"):
            provider(seen[2], [seen[0]], torch.zeros_like(seen[3]), False)
        with pytest.raises(ValueError, match="is no output of blocks"):
            provider(seen[3], [torch.zeros(2, 11, 24)], torch.zeros_like(seen[3]), False)


def test_a_run_without_ids_says_so(gpt):
    class Reader(torch.nn.Module):
        """Takes texts too, as bridges of TransformerLens do."""

        def __init__(self):
            super().__init__()
            self.gpt = gpt
            self.eval()

        def forward(self, prompt):
            return self.gpt(prompt if isinstance(prompt, torch.Tensor) else some_prompts((11,))[0])

    model, seen = Reader(), {}
    for layer in (0, 3):
        gpt.blocks[layer].register_forward_hook(lambda m, i, out, layer=layer: seen.__setitem__(layer, out))
    with BackwardProvider(model) as provider:
        model("some words")
        with pytest.raises(ValueError, match="was given no token ids"):
            provider(seen[3], [seen[0]], torch.zeros_like(seen[3]), False)
