"""A lens is the reference's where units between two sources close, and where something goes around a source."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from small import reference_lens, relative
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearizer

WIDTH, TOKENS, VOCABULARY = 8, 12, 9


class Block(nn.Module):
    """A stream whose units a ReLU closes, with a part of the first block's added where that is given."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, x, first=None):
        y = torch.relu(x + self.down(torch.tanh(self.up(x))))
        return y if first is None else y + 0.1 * first


class Around(nn.Module):
    """The last block reads the first one's output too."""

    def __init__(self, seed: int, blocks: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, ids):
        x = first = self.blocks[0](self.tokens(ids))
        for block in self.blocks[1:-1]:
            x = block(x)
        return self.head(self.blocks[-1](x, first))


@pytest.mark.parametrize("blocks", [3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_units_of_a_source_that_the_one_before_does_not_reach(seed, blocks):
    """A plan leaves them out, so that the source's cotangents are pulled back by a plan of its own."""
    model = Around(seed, blocks).double().eval()
    prompts = [torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(seed))]
    layers = list(range(blocks - 1))
    found = Linearizer(Decoder(model), layers, 2).at(prompts[0])
    if found.planned:
        assert any(segment.apart for segment in found.segments)
    wanted = reference_lens(model, model.blocks, prompts, layers, skip_first=2)
    got = specxai.lens.fit(model, prompts, layers=layers, skip_first=2)
    assert max(relative(got.J[layer].double(), wanted[layer]) for layer in layers) < 1e-12
