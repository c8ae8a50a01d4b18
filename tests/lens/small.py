"""A small GPT with weights of a trained one's size, prompts, and the lens by a plain autograd loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from specxai.zoo.gpt import GPT

WIDTH, BLOCKS, VOCABULARY, CONTEXT = 24, 4, 40, 40


def small_gpt(dtype: torch.dtype = torch.float32, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(VOCABULARY, WIDTH, heads=3, blocks=BLOCKS, context=CONTEXT).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def some_prompts(lengths: Sequence[int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (1, length), generator=generator) for length in lengths]


def autograd(target: Tensor, sources: list[Tensor], cotangent: Tensor, retain_graph: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(target, sources, cotangent, retain_graph=retain_graph)


def keeping(kept: dict[int, Tensor], layer: int) -> Callable:
    def hook(module, inputs, output):
        kept[layer] = output if isinstance(output, Tensor) else output[0]

    return hook


def reference_lens(model: nn.Module, blocks: Sequence[nn.Module], prompts: Sequence[Tensor], layers: Sequence[int], *,
                   skip_first: int, max_length: int = 128, dim_batch: int = 7, backward: Callable = autograd,
                   **kwargs) -> dict[int, Tensor]:
    """The prompt replicated `dim_batch` times, one forward pass, a backward pass for every `dim_batch` rows."""
    sums: dict[int, Tensor] = {}
    for prompt in prompts:
        ids, kept, last = prompt[:, :max_length], {}, len(blocks) - 1
        handles = [blocks[layer].register_forward_hook(keeping(kept, layer)) for layer in {*layers, last}]
        model(ids.expand(dim_batch, -1), **kwargs)
        for handle in handles:
            handle.remove()
        valid, target = range(skip_first, ids.shape[1] - 1), kept[last]
        width = target.shape[-1]
        for start in range(0, width, dim_batch):
            count = min(dim_batch, width - start)
            cotangent = torch.zeros_like(target)
            for row in range(count):
                cotangent[row, list(valid), start + row] = 1
            grads = backward(target, [kept[layer] for layer in layers], cotangent, start + dim_batch < width)
            for layer, grad in zip(layers, grads, strict=True):
                total = sums.setdefault(layer, grad.new_zeros(width, width))
                total[start:start + count] += grad[:count, list(valid)].mean(1) / len(prompts)
    return sums


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()
