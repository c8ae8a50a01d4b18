"""The adjoint of attention in the interpreter."""

from __future__ import annotations

import pytest
import torch

from attention_reference import assert_right, drawn
from specxai.kernels.attention import Cut, attention_adjoint, cuts_for
from specxai.kernels.precision import PRECISIONS

WHOLE, TILES = "whole", "tiles"
FACTORS = {"tf32": 2.0**-11, "bf16": 2.0**-8}


def cuts_of(kind: str, rows: int, keys: int, width: int, columns: int = 2) -> tuple[Cut, ...]:
    if kind == TILES:
        return Cut(32, 16, 32, 4, 1), Cut(16, 32, 32, 4, 1)
    high, wide = (next(size for size in (16, 32, 64, 128, 256) if size >= n) for n in (rows, keys))
    return (Cut(high, wide, width, 4, 1, columns),)


@pytest.mark.parametrize("kind", [WHOLE, TILES])
@pytest.mark.parametrize(("k", "rows", "keys", "width", "value_width", "causal"), [
    (1, 1, 1, 5, 5, False), (3, 7, 7, 16, 16, True), (3, 9, 1, 5, 16, False), (1, 1, 9, 16, 5, False),
    (3, 16, 16, 64, 64, True), (1, 33, 33, 5, 5, True), (3, 33, 16, 16, 33, False), (1, 7, 130, 64, 5, False),
    (1, 130, 130, 16, 16, True), (1, 130, 33, 5, 64, False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_values(dtype, k, rows, keys, width, value_width, causal, kind):
    dO, held, made, right = drawn(k, 2, rows, keys, width, value_width, dtype, causal=causal)
    cuts = cuts_of(kind, rows, keys, width)
    attention_adjoint(dO, *held, *made, scale=right.scale, causal=causal, precision="fp32", cuts=cuts)
    assert_right(right, dO, made)
    assert all(t._base.isnan().sum() == t._base.numel() - t.numel() for t in made), "numbers beside a block"
    again = [torch.full_like(t, torch.nan) for t in made]
    attention_adjoint(dO, *held, *again, scale=right.scale, precision="fp32", cuts=cuts)
    if not causal:
        assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert_right(right, dO, again)


@pytest.mark.parametrize("rows", [9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_cuts_by_size_and_held_matrices_of_another_type(dtype, rows):
    for held in {torch.bfloat16, torch.float32} - {dtype}:
        dO, matrices, made, right = drawn(3, 2, rows, rows, 16, 16, dtype, held=held)
        attention_adjoint(dO, *matrices, *made, scale=right.scale)
        assert_right(right, dO, made)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision):
    dO, held, made, right = drawn(2, 2, 20, 20, 16, 16, torch.float32)
    attention_adjoint(dO, *held, *made, scale=right.scale, precision=precision)
    assert_right(right, dO, made, FACTORS.get(precision, 0.0))
    if precision in FACTORS:
        with pytest.raises(AssertionError, match="of its bound"):
            assert_right(right, dO, made)


@pytest.mark.parametrize("kind", [WHOLE, TILES])
def test_is_the_vector_jacobian_product_of_attention(kind):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 20, 8, dtype=torch.float64) for _ in range(3))
    scale = 0.3
    mask = torch.ones(20, 20, dtype=torch.bool).tril()

    def attend(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale)

    _, pull = torch.func.vjp(attend, query, key, value)
    dO = torch.randn(3, 2, 20, 8)
    want = torch.func.vmap(pull)(dO.double())
    pattern = torch.softmax((scale * query @ key.mT).masked_fill(~mask, -torch.inf), -1).float()
    made = [torch.full_like(dO, torch.nan) for _ in range(3)]
    attention_adjoint(dO, pattern, query.float(), key.float(), value.float(), *made, scale=scale, causal=True,
                      precision="fp32", cuts=cuts_of(kind, 20, 20, 8))
    for got, exact in zip(made, want, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=2e-5, atol=2e-5)


def test_keys_of_any_strides_and_shared_ones():
    dO, (pattern, query, key, value), made, right = drawn(2, 2, 9, 12, 16, 16, torch.float32)
    again = [torch.full_like(t, torch.nan) for t in made]
    shared, turned = key[:1].expand(2, -1, -1), key[:1].mT.contiguous().mT.expand(2, -1, -1)
    for keys, out in ((shared, made), (turned, again)):
        attention_adjoint(dO, pattern, query, keys, value, *out, precision="fp32")
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    assert not torch.equal(shared, key)
    assert_right(type(right)(right.pattern, right.query, shared.double(), right.value, 1.0), dO, made)


@pytest.mark.parametrize(("k", "stack", "rows", "keys"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_nothing_to_sum_is_zero(k, stack, rows, keys):
    sizes = ((k, stack, rows, 5), (stack, rows, keys), (stack, rows, 6), (stack, keys, 6), (stack, keys, 5),
             (k, stack, rows, 6), (k, stack, keys, 6), (k, stack, keys, 5))
    tensors = [torch.ones(size) for size in sizes]
    attention_adjoint(*tensors)
    assert all(t.eq(0).all() for t in tensors[-3:])


def test_cuts_hold_what_there_is():
    for dtype in (torch.bfloat16, torch.float32):
        for width in (1, 64, 65, 128, 256):
            for rows in (1, 17, 128, 129, 2048):
                cuts = cuts_for(100, 32, rows, rows, width, dtype)
                if len(cuts) == 1:
                    assert min(cuts[0].rows, cuts[0].keys) >= rows
                    assert cuts[0].panel >= width
                assert dtype is torch.bfloat16 or len(cuts) == 2
    assert cuts_for(1, 1, 128, 128, 64, torch.bfloat16)[0].columns == 1, "few columns are spread"


GOOD = {"cotangent": (2, 3, 4, 5), "pattern": (3, 4, 6), "query": (3, 4, 7), "key": (3, 6, 7), "value": (3, 6, 5),
        "made_query": (2, 3, 4, 7), "made_key": (2, 3, 6, 7), "made_value": (2, 3, 6, 5)}


@pytest.mark.parametrize(("name", "change", "error", "message"), [
    ("cotangent", lambda t: t.double(), TypeError, "cotangent must be bfloat16, float16 or float32, got torch.float64"),
    ("cotangent", lambda t: t[0], ValueError, r"cotangent must be \(columns, stack, rows, width\), got \(3, 4, 5\)"),
    ("pattern", lambda t: t.mT, ValueError, r"pattern must be \(3, 4, 6\), got \(3, 6, 4\)"),
    ("pattern", lambda t: t.mT.contiguous().mT, ValueError, "last axis of pattern must be contiguous"),
    ("query", lambda t: t[0], ValueError, r"query must be \(stack, length, width\), got \(4, 7\)"),
    ("key", lambda t: t.repeat(1, 1, 40), ValueError, "a key's width must be 1 to 256, got 280"),
    ("value", lambda t: t.int(), TypeError, "value must be bfloat16, float16 or float32, got torch.int32"),
    ("value", lambda t: t.to("meta"), ValueError, "value is on meta but cotangent is on cpu"),
    ("made_query", lambda t: t[:1], ValueError, r"made_query must be \(2, 3, 4, 7\), got \(1, 3, 4, 7\)"),
    ("made_key", lambda t: t.bfloat16(), TypeError, "made_key is torch.bfloat16 but cotangent is torch.float32"),
    ("made_value", lambda t: t[:1].expand(2, -1, -1, -1), ValueError, "memory of its own"),
    ("made_value", lambda t: t.mT.contiguous().mT, ValueError, "last axis of made_value must be contiguous")])
def test_refuses(name, change, error, message):
    given = {name: torch.ones(shape) for name, shape in GOOD.items()}
    with pytest.raises(error, match=message):
        attention_adjoint(**given | {name: change(given[name])})


def test_refuses_a_causal_pattern_of_other_keys_and_unknown_precisions():
    given = {name: torch.ones(shape) for name, shape in GOOD.items()}
    with pytest.raises(ValueError, match="as many keys as rows, got 6 keys and 4 rows"):
        attention_adjoint(**given, causal=True)
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        attention_adjoint(**given, precision="fp8")
