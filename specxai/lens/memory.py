"""What a fit will hold, before it is begun: weights, sums, a prompt's linear map, one segment's plan, columns."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specxai._blocks import default_memory
from specxai.lens.decoder import Decoder
from specxai.lens.segments import MATRICES
from specxai.lens.sweep import whole_blocks

TABLES = 6  # times the values of a segment: rows and numbers of its plan, for the stages and for the kernels


@dataclass(frozen=True)
class Estimate:
    """Bytes of a fit.

    weights   of the model, which is there already
    sums      of the layers' matrices (d, d)
    values    about what the linear map of one prompt holds
    plan      about what the plan of one segment, from a source layer to the next, holds: copies of weights, tables, and
              matrices of positions
    held      cotangents between two segments
    block     the most that a block of columns may take
    """

    weights: int
    sums: int
    values: int
    plan: int
    held: int
    block: int

    def __str__(self) -> str:
        parts = {"weights": self.weights, "sums": self.sums, "a prompt's map, about": self.values,
                 "a plan, about": self.plan, "cotangents": self.held, "columns, at most": self.block}
        return "memory: " + "; ".join(f"{name} {size / 2**20:,.1f} MiB" for name, size in parts.items())


class _Made(TorchDispatchMode):
    """Counts the bytes of what calls make; views make nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(part.alias_info for part in func._schema.returns):
            self.bytes += sum(part.nbytes for part in tree_leaves(out) if isinstance(part, Tensor))
        return out


@torch.no_grad()
def estimate(decoder: Decoder, layers: list[int], tokens: int, max_memory: int | None = None) -> Estimate:
    """What a fit of these source layers holds at prompts of so many tokens; the model runs once, to its last block.

    >>> from specxai.zoo.gpt import GPT
    >>> decoder = Decoder(GPT(vocabulary=9, width=8, heads=2, blocks=3, context=16).eval())
    >>> estimate(decoder, [0, 1], 16).sums
    512
    """
    model = decoder.model
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}.values()
    ids = torch.zeros(1, tokens, dtype=torch.long, device=next(model.parameters()).device)
    last = len(decoder) - 1
    with sdpa_kernel(SDPBackend.MATH):  # attention in parts, as a capture has it
        with _Made() as first:
            decoder.residuals(ids, [layers[0]])
        with _Made() as whole:
            stream = decoder.residuals(ids, [last])[last]
    width, size = stream.shape[-1], max(4, stream.itemsize)
    values, column = whole.bytes - first.bytes, tokens * width * size
    widest = max(stop - start for start, stop in pairwise((*layers, last)))
    packed = max(sum(p.nbytes for p in block.parameters()) for block in decoder.blocks)
    most = default_memory(ids.device) if max_memory is None else max_memory
    held = 0 if len(layers) == 1 else column * min(width, whole_blocks(width, column, most))
    return Estimate(sum(t.nbytes for t in tensors), len(layers) * width * width * size, values,
                    widest * (packed + TABLES * values // (last - layers[0])) + 2 * min(column * width, MATRICES), held,
                    most)
