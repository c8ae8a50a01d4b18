"""What a fit will hold is said beforehand, and a block of columns keeps to `max_memory`."""

from __future__ import annotations

import pytest
import torch

from small import BLOCKS, WIDTH, small_gpt, some_prompts
from specxai._blocks import require_memory
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearizer
from specxai.lens.memory import estimate
from specxai.lens.sweep import block_columns


def test_the_estimate_is_near_what_is_held():
    decoder, layers = Decoder(small_gpt()), list(range(BLOCKS - 1))
    found = estimate(decoder, layers, 30, 1 << 20)
    assert found.sums == 3 * WIDTH * WIDTH * 4
    assert found.weights == sum(p.nbytes for p in decoder.model.parameters())
    assert found.block == 1 << 20
    held = Linearizer(decoder, layers, 5).at(some_prompts((30,))[0]).value_bytes
    assert held / 3 < found.values < 3 * held
    assert str(found).startswith("memory: weights 0.")


@pytest.mark.parametrize("columns", [1, 3, 11])
def test_a_block_keeps_to_the_memory(columns):
    make = Linearizer(Decoder(small_gpt()), [0, 1], 5)
    found = make.at(some_prompts((30,))[0])
    operator = found.operator
    operator.max_memory = operator._bytes(operator._products, columns)
    assert columns <= block_columns(found) <= WIDTH
    assert operator._bytes(operator._products, block_columns(found)) <= operator.max_memory


def test_sums_that_do_not_fit_are_refused():
    with pytest.raises(MemoryError, match=r"needs [\d,.]+ GiB, and there are"):
        require_memory(1 << 60, torch.device("cpu"), "the sums", "fit fewer layers at a time")
