"""What a fit will hold is said beforehand, and a block of columns keeps to `max_memory`."""

from __future__ import annotations

import weakref

import pytest
import torch

from small import BLOCKS, WIDTH, relative, small_gpt, some_prompts
from specxai import native
from specxai._blocks import require_memory
from specxai.affine.operator import LocalOperator
from specxai.backends import whole
from specxai.backends.products import PlannedProducts
from specxai.lens import fit
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearizer
from specxai.lens.memory import estimate
from specxai.lens.sweep import block_columns, rows_of


def test_the_estimate_is_near_what_is_held():
    decoder, layers = Decoder(small_gpt()), list(range(BLOCKS - 1))
    found = estimate(decoder, layers, 30, 1 << 20)
    assert found.sums == 3 * WIDTH * WIDTH * 4
    assert found.weights == sum(p.nbytes for p in decoder.model.parameters())
    assert found.block == 1 << 20
    held = Linearizer(decoder, layers, 5).at(some_prompts((30,))[0]).value_bytes
    assert held / 3 < found.values < 3 * held
    assert str(found).startswith("memory: weights 0.")
    assert found.held == WIDTH * WIDTH * 30 * 4
    made = Linearizer(decoder, layers, 5).at(some_prompts((30,))[0])
    kept = max(made.along(segment)._products._kept for segment in made.segments)
    assert kept / 3 < found.plan < 3 * kept


def test_the_cotangents_are_no_more_than_estimated(monkeypatch):
    """Groups of 16 columns, blocks of 8; what a prompt's sweep holds at its widest."""
    monkeypatch.setattr("specxai.lens.sweep.COLUMNS", 8)
    monkeypatch.setattr("specxai.lens.sweep.most_held", lambda max_memory: 16 * WIDTH * 30 * 4)
    decoder, layers = Decoder(small_gpt()), list(range(BLOCKS - 1))
    found = Linearizer(decoder, layers, 5).at(some_prompts((30,))[0])
    at_once, columns, pull_back = [], {}, LocalOperator.pull_back

    def watched(operator, block, *rest):
        columns.setdefault(id(operator), [operator, 0])[1] += block.shape[1]
        at_once.append(columns[id(operator)][1])
        return pull_back(operator, block, *rest)

    monkeypatch.setattr(LocalOperator, "pull_back", watched)
    list(rows_of(found))
    assert max(at_once) * WIDTH * 30 * 4 == estimate(decoder, layers, 30).held == 16 * WIDTH * 30 * 4
    assert len(columns) == 2 * len(layers)


@pytest.mark.parametrize("fitting", [1, 2, 9])
def test_matrices_of_all_middles_of_a_segment_share_half_of_the_memory(monkeypatch, fitting):
    """From the first block alone to the last one all middles lie in one segment."""
    counts, tokens, made = [], 30, whole.with_matrices
    one = 4 * tokens * WIDTH * WIDTH

    def watched(graph, found, *rest):
        counts.append(len(found))
        return made(graph, found, *rest)

    monkeypatch.setattr(whole, "with_matrices", watched)
    prompts, options = some_prompts((tokens,)), {"layers": [0], "skip_first": 5, "backend": "reference"}
    lens = fit(small_gpt(), prompts, max_memory=2 * fitting * one + 2 * one - 1, **options)
    assert set(counts) == {min(fitting, BLOCKS - 1)}
    assert relative(lens.J[0], fit(small_gpt(), prompts, **options).J[0]) < 1e-5


@pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels, so no plans: {native.available()[1]}")
def test_one_plan_is_there_at_a_time(monkeypatch):
    plans, make = [], PlannedProducts.__init__

    def watched(products, *args):
        assert not any(plan() is not None for plan in plans)
        plans.append(weakref.ref(products))
        make(products, *args)

    monkeypatch.setattr(PlannedProducts, "__init__", watched)
    found = Linearizer(Decoder(small_gpt()), [0, 1, 2], 5).at(some_prompts((30,))[0])
    assert len(found.segments) == 3
    list(rows_of(found))
    assert len(plans) == 3


@pytest.mark.parametrize("columns", [1, 3, 11])
def test_a_block_keeps_to_the_memory(columns):
    make = Linearizer(Decoder(small_gpt()), [0, 1], 5)
    found = make.at(some_prompts((30,))[0])
    operator = found.along(found.segments[0])
    operator.max_memory = operator._bytes(operator._products, columns)
    assert columns <= block_columns(found, operator) <= WIDTH
    assert operator._bytes(operator._products, block_columns(found, operator)) <= operator.max_memory


def test_sums_that_do_not_fit_are_refused():
    with pytest.raises(MemoryError, match=r"needs [\d,.]+ GiB, and there are"):
        require_memory(1 << 60, torch.device("cpu"), "the sums", "fit fewer layers at a time")
