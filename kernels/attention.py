"""The adjoint of attention at one input on a GPU: cotangents of the outputs to those of queries, keys and values.

A pattern P = softmax(scale · Q Kᵀ) and Q, K, V are held, so that the map is linear.  For each column and stack (head):

    dV = Pᵀ dO,   dP = dO Vᵀ,   dS = P ∘ (dP − δ),   dQ = scale · dS K,   dK = scale · dSᵀ Q

with δ the row sums of P ∘ dP.  Scores (rows, keys) of a column stay in a program.  Up to 128 rows and keys a program
owns a stack under some columns, reads dO and writes the three; else one kernel owns rows of dQ, another keys of dK and
dV, and δ, a sum over dO ∘ (P V), passes between them.  No atomics, so that every run has equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from specxai.kernels.attention_tiles import factor, held, key_kernel, output_kernel, owned, product, query_kernel, write
from specxai.kernels.precision import dot_mode
from specxai.kernels.split import PROGRAMS

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
MOST_WIDTH = 256  # of a query, key or value
MOST_COLUMNS = 8  # of a program
NEAR = 16 << 20  # bytes of held matrices that stay in a card's second-level cache




@triton.jit
def whole_kernel(
    cotangent,
    pattern,
    query,
    key,
    value,
    made_query,
    made_key,
    made_value,
    scale,
    n_columns,
    n_parts,
    together,
    n_rows,
    n_keys,
    width,
    value_width,
    cotangent_column,
    cotangent_stack,
    cotangent_row,
    pattern_stack,
    pattern_row,
    query_stack,
    query_row,
    key_stack,
    key_row,
    key_step,
    value_stack,
    value_row,
    made_query_column,
    made_query_stack,
    made_query_row,
    made_key_column,
    made_key_stack,
    made_key_row,
    made_value_column,
    made_value_stack,
    made_value_row,
    MODE: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_VALUE: tl.constexpr,
):
    """All rows and keys of one stack under COLUMNS columns."""
    part, s, _ = owned(n_parts, together, 1)
    s = s.to(tl.int64)
    t, j = tl.arange(0, BLOCK_ROWS), tl.arange(0, BLOCK_KEYS)
    e, v = tl.arange(0, BLOCK_WIDTH), tl.arange(0, BLOCK_VALUE)
    P = held(pattern + s * pattern_stack, t, n_rows, pattern_row, j, n_keys, 1)
    Q = factor(held(query + s * query_stack, t, n_rows, query_row, e, width, 1), MODE)
    K = factor(held(key + s * key_stack, j, n_keys, key_row, e, width, key_step), MODE)
    V = factor(held(value + s * value_stack, j, n_keys, value_row, v, value_width, 1), MODE)
    of_rows = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), dtype=tl.float32)
    of_keys = tl.zeros((BLOCK_KEYS, BLOCK_WIDTH), dtype=tl.float32)
    of_values = tl.zeros((BLOCK_KEYS, BLOCK_VALUE), dtype=tl.float32)
    scores = tl.zeros((BLOCK_ROWS, BLOCK_KEYS), dtype=tl.float32)
    for c in range(part * COLUMNS, min(n_columns, part * COLUMNS + COLUMNS)):
        at = tl.cast(c, tl.int64)
        dO = factor(held(cotangent + at * cotangent_column + s * cotangent_stack, t, n_rows, cotangent_row, v,
                         value_width, 1), MODE)
        dP = product(dO, tl.trans(V), scores, MODE)
        PdP = P.to(tl.float32) * dP
        dS = factor(PdP - P.to(tl.float32) * tl.sum(PdP, axis=1)[:, None], MODE)
        dV = product(tl.trans(factor(P, MODE)), dO, of_values, MODE)
        write(dV, made_value + at * made_value_column + s * made_value_stack, j, n_keys, made_value_row, v, value_width,
              MODE)
        dQ = product(dS, K, of_rows, MODE)
        write(dQ * scale, made_query + at * made_query_column + s * made_query_stack, t, n_rows, made_query_row, e,
              width, MODE)
        dK = product(tl.trans(dS), Q, of_keys, MODE)
        write(dK * scale, made_key + at * made_key_column + s * made_key_stack, j, n_keys, made_key_row, e, width, MODE)


@dataclass(frozen=True)
class Cut:
    """A program's tile and how it runs; sizes are powers of two.

    panel     numbers of a query, key or value; of the whole kernel all of them
    columns   of a program of the whole kernel, which holds its stack's matrices for so long
    """

    rows: int
    keys: int
    panel: int
    warps: int
    stages: int
    columns: int = 1


OUTPUTS = Cut(64, 32, 64, 8, 2)  # of P V


def cuts_for(columns: int, stack: int, rows: int, keys: int, width: int, dtype: torch.dtype,
             pattern: torch.dtype | None = None, precision: str = "tf32x3", capability: int = 90) -> tuple[Cut, ...]:
    """One cut, where a program holds all rows and keys, or those of rows and of keys; what compiles without spills
    (tests/native/test_triton_attention.py), not measured on a card yet.

    Args:
        width: the larger of a query's and a value's.
        pattern: its dtype, that of the blocks if None.
        capability: of the card, ten times its major and minor number.

    >>> cuts_for(2048, 32, 128, 128, 64, torch.bfloat16)
    (Cut(rows=128, keys=128, panel=64, warps=8, stages=2, columns=8),)
    >>> [(cut.rows, cut.keys) for cut in cuts_for(2048, 32, 512, 512, 64, torch.bfloat16)]
    [(128, 64), (64, 64)]
    """
    panel, high, wide = _filled(width), _filled(rows), _filled(keys)
    most, hopper = max(high, wide), capability >= 90
    if dtype is torch.float32:
        if precision == "fp32":
            return (Cut(32, 32, min(panel, 64), 8, 1),) * 2
        if panel > 64 or precision == "bf16x6":
            fewer = 32 if hopper or precision != "bf16x6" else 16
            return Cut(64, 32, min(panel, 32), 8, 2), Cut(fewer, 64, min(panel, 32), 8, 2)
        return Cut(64, 32, panel, 8, 2), Cut(32, 32, panel, 8, 2)
    if most <= (128 if pattern in (None, dtype) else 64):  # a program keeps a pattern twice where it is converted
        if most * panel <= 128 * 64:
            many = max(1, min(MOST_COLUMNS, columns * stack // (2 * PROGRAMS)))
            warps = 8 if most > 64 or panel > 64 else 4 if most > 32 or panel > 32 else 1
            return (Cut(high, wide, panel, warps, 2, many),)
        if panel <= 128 and hopper:
            return (Cut(high, wide, panel, 8, 1),)
    if not hopper:
        panel = panel if panel <= 128 else 64
        return Cut(64, 64, panel, 4, 2), Cut(32, 64, panel, 8, 2)
    if panel <= 64:
        return Cut(128, 64, panel, 8, 2), Cut(64, 64, panel, 4, 2)
    if panel <= 128:
        return Cut(64, 64, panel, 4, 2), Cut(64, 64, panel, 8, 2)
    return Cut(64, 64, panel, 8, 2), Cut(32, 64, panel, 8, 2)


def attention_adjoint(cotangent: Tensor, pattern: Tensor, query: Tensor, key: Tensor, value: Tensor,
                      made_query: Tensor, made_key: Tensor, made_value: Tensor, scale: float = 1.0,
                      causal: bool = False, precision: str = "tf32x3", cuts: tuple[Cut, ...] | None = None) -> None:
    """Write the cotangents of queries, keys and values that columns of cotangents of attention's outputs lead to.

    Blocks have any strides, those of their last axis excepted, so that memory (k, T, stack, h) is seen as
    (k, stack, T, h).  Those of 16 bits are multiplied on tensor cores in their own type, with sums in float32: P, dS
    and the held matrices are rounded to it for their products, P in P ∘ dP and the row sums are not.

    Args:
        cotangent: (k, stack, T, h_v) bfloat16, float16 or float32.
        pattern: (stack, T, S); query: (stack, T, h); key: (stack, S, h), of any strides; value: (stack, S, h_v), each
            bfloat16, float16 or float32, of widths up to 256.
        made_query: (k, stack, T, h); made_key: (k, stack, S, h); made_value: (k, stack, S, h_v), of the cotangent's
            dtype, other memory.
        scale: the one of Q Kᵀ in the softmax.
        causal: that the pattern (S = T) is zero above its diagonal, tiles of which are then not read.
        precision: of float32 blocks, one of `PRECISIONS`.
        cuts: one for the kernel of whole stacks, two for those of tiles of rows and of keys; by size if None.

    Raises:
        TypeError, ValueError: dtypes, devices or shapes that do not fit, with the values found.
    """
    held_ones = {"pattern": pattern, "query": query, "key": key, "value": value}
    blocks = {"made_query": made_query, "made_key": made_key, "made_value": made_value}
    _check(cotangent, held_ones, blocks)
    (k, stack, rows, value_width), keys, width = cotangent.shape, key.shape[1], key.shape[2]
    if causal and rows != keys:
        raise ValueError(f"a causal pattern has as many keys as rows, got {keys} keys and {rows} rows")
    if 0 in (k, stack, rows, keys):
        for made in blocks.values():
            made.zero_()
        return
    mode = _mode(precision, cotangent.dtype)
    cuts = cuts or cuts_for(k, stack, rows, keys, max(width, value_width), cotangent.dtype, pattern.dtype, precision,
                            _capability(cotangent.device))
    near = rows * keys * pattern.element_size() + (rows + keys) * (width + value_width) * key.element_size()
    together = _together(stack, near)
    sizes = (rows, keys, width, value_width)
    strides = {name: t.stride()[:-1] for name, t in (held_ones | blocks | {"cotangent": cotangent}).items()}
    strides["key"] = key.stride()

    def of(*names: str) -> tuple[int, ...]:
        return tuple(step for name in names for step in strides[name])

    with torch.cuda.device_of(cotangent):
        if len(cuts) == 1:
            (cut,) = cuts
            parts = triton.cdiv(k, cut.columns)
            whole_kernel[(stack * parts,)](
                cotangent, pattern, query, key, value, made_query, made_key, made_value, scale, k, parts, together,
                *sizes, *of("cotangent", "pattern", "query", "key", "value", "made_query", "made_key", "made_value"),
                MODE=mode, COLUMNS=cut.columns, BLOCK_ROWS=cut.rows, BLOCK_KEYS=cut.keys,
                BLOCK_WIDTH=_filled(width), BLOCK_VALUE=_filled(value_width), num_warps=cut.warps,
                num_stages=cut.stages)
            return
        outputs = cotangent.new_empty(stack, rows, value_width, dtype=torch.float32)
        sums = cotangent.new_empty(k, stack, rows, dtype=torch.float32)
        by_rows, by_keys = cuts
        output_kernel[(stack * triton.cdiv(rows, OUTPUTS.rows) * triton.cdiv(value_width, OUTPUTS.panel),)](
            pattern, value, outputs, rows, keys, value_width, *of("pattern", "value"), MODE=mode,
            SUM_MODE=mode if cotangent.dtype is torch.float32 else dot_mode("tf32x3", torch.float32), CAUSAL=causal,
            BLOCK_ROWS=OUTPUTS.rows, BLOCK_KEYS=OUTPUTS.keys, PANEL=OUTPUTS.panel, num_warps=OUTPUTS.warps,
            num_stages=OUTPUTS.stages)
        for kernel, cut, count, tile, others, made in (
                (query_kernel, by_rows, rows, by_rows.rows, (pattern, key, value, outputs, sums), ("made_query",)),
                (key_kernel, by_keys, keys, by_keys.keys, (pattern, query, value, sums), ("made_key", "made_value"))):
            panels = triton.cdiv(max(width, value_width), cut.panel)
            read = ("pattern", "key" if kernel is query_kernel else "query", "value")
            kernel[(stack * k * triton.cdiv(count, tile) * panels,)](
                cotangent, *others, *(blocks[name] for name in made), scale, k, stack, together, *sizes,
                *of("cotangent", *read, *made), MODE=mode, CAUSAL=causal, BLOCK_ROWS=cut.rows, BLOCK_KEYS=cut.keys,
                PANEL=cut.panel, PANELS=panels, num_warps=cut.warps, num_stages=cut.stages)


def _mode(precision: str, dtype: torch.dtype) -> str:
    if dtype is torch.float16:
        return "fp16"
    return dot_mode("bf16" if dtype is torch.bfloat16 else precision, torch.float32)


def _capability(device: torch.device) -> int:
    if device.type != "cuda":
        return 90  # the interpreter
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _together(stack: int, held_bytes: int) -> int:
    """Stacks whose programs take turns: what is held of them stays near, and columns come from memory in order."""
    return max(n for n in range(1, stack + 1) if stack % n == 0 and (n == 1 or n * held_bytes <= NEAR))


def _filled(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _check(cotangent: Tensor, held_ones: dict[str, Tensor], blocks: dict[str, Tensor]) -> None:
    if cotangent.dtype not in FLOATS:
        raise TypeError(f"cotangent must be bfloat16, float16 or float32, got {cotangent.dtype}")
    if cotangent.dim() != 4:
        raise ValueError(f"cotangent must be (columns, stack, rows, width), got {tuple(cotangent.shape)}")
    query, key = held_ones["query"], held_ones["key"]
    for name, t in (("query", query), ("key", key)):
        if t.dim() != 3:
            raise ValueError(f"{name} must be (stack, length, width), got {tuple(t.shape)}")
    (k, stack, rows, value_width), keys, width = cotangent.shape, key.shape[1], key.shape[2]
    for name, size in (("key", width), ("value", value_width)):
        if not 1 <= size <= MOST_WIDTH:
            raise ValueError(f"a {name}'s width must be 1 to {MOST_WIDTH}, got {size}")
    shapes = {"pattern": (stack, rows, keys), "query": (stack, rows, width), "key": (stack, keys, width),
              "value": (stack, keys, value_width), "made_query": (k, stack, rows, width),
              "made_key": (k, stack, keys, width), "made_value": (k, stack, keys, value_width)}
    for name, t in (held_ones | blocks).items():
        if tuple(t.shape) != shapes[name]:
            raise ValueError(f"{name} must be {shapes[name]}, got {tuple(t.shape)}")
        if name in blocks and t.dtype is not cotangent.dtype:
            raise TypeError(f"{name} is {t.dtype} but cotangent is {cotangent.dtype}")
        if t.dtype not in FLOATS:
            raise TypeError(f"{name} must be bfloat16, float16 or float32, got {t.dtype}")
        if t.device != cotangent.device:
            raise ValueError(f"{name} is on {t.device} but cotangent is on {cotangent.device}")
        if name in blocks and 0 in (step for step, size in zip(t.stride(), t.shape, strict=True) if size > 1):
            raise ValueError(f"{name} must have memory of its own for each number, got strides {t.stride()}")
    for name, t in ({"cotangent": cotangent} | held_ones | blocks).items():
        if name != "key" and t.shape[-1] > 1 and t.stride(-1) != 1:
            raise ValueError(f"the last axis of {name} must be contiguous, got strides {t.stride()}")
