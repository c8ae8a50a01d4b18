"""The kernels of attention's adjoint where rows and keys take several tiles, and what a kernel of one tile shares."""

from __future__ import annotations

import triton
import triton.language as tl

from specxai.kernels.precision import multiply, rounded


@triton.jit
def factor(x, MODE: tl.constexpr):
    """x as a product takes it: rounded once, also where several products do."""
    if MODE == "bf16":
        return x.to(tl.bfloat16)
    elif MODE == "fp16":
        return x.to(tl.float16)
    elif MODE == "rounded":
        return rounded(x.to(tl.float32), 16)
    else:
        return x.to(tl.float32)


@triton.jit
def product(a, b, total, MODE: tl.constexpr):
    """total + a b, of factors."""
    if MODE == "fp16":
        return tl.dot(a, b, total)
    else:
        return multiply(a, b, total, MODE)


@triton.jit
def held(base, row, n_rows, pitch, column, n_columns, step):
    """(rows, columns) of a matrix, zero past its edges."""
    at = base + row.to(tl.int64)[:, None] * pitch + column[None, :] * step
    return tl.load(at, mask=(row < n_rows)[:, None] & (column < n_columns)[None, :], other=0.0)


@triton.jit
def write(total, base, row, n_rows, pitch, column, n_columns, MODE: tl.constexpr):
    """Store a tile inside a matrix's edges."""
    if MODE == "rounded" and base.dtype.element_ty == tl.bfloat16:
        total = rounded(total, 16)  # the interpreter cuts off
    at = base + row.to(tl.int64)[:, None] * pitch + column[None, :]
    tl.store(at, total.to(base.dtype.element_ty), mask=(row < n_rows)[:, None] & (column < n_columns)[None, :])


@triton.jit
def owned(n_parts, together, n_tiles):
    """(part of the columns, stack, tile) of this program: tiles follow each other, then `together` stacks, whose held
    matrices a cache keeps, then the columns."""
    at = tl.program_id(0)
    group = at // (n_tiles * together * n_parts)
    return (at // (n_tiles * together)) % n_parts, group * together + (at // n_tiles) % together, at % n_tiles


@triton.jit
def panel_of(panel, SIZE: tl.constexpr):
    return panel * SIZE + tl.arange(0, SIZE)


@triton.jit
def output_kernel(
    pattern,
    value,
    outputs,
    n_rows,
    n_keys,
    value_width,
    pattern_stack,
    pattern_row,
    value_stack,
    value_row,
    MODE: tl.constexpr,
    SUM_MODE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PANEL: tl.constexpr,
):
    """P V of a tile of rows and a panel of values of a stack, (stack, rows, value_width) float32, where V is rounded as
    products of MODE round it, and P is not."""
    panel, s, tile = owned(tl.cdiv(value_width, PANEL), 1, tl.cdiv(n_rows, BLOCK_ROWS))
    s = s.to(tl.int64)
    t, v = panel_of(tile, BLOCK_ROWS), panel_of(panel, PANEL)
    total = tl.zeros((BLOCK_ROWS, PANEL), dtype=tl.float32)
    for start in range(0, min(n_keys, (tile + 1) * BLOCK_ROWS) if CAUSAL else n_keys, BLOCK_KEYS):
        j = start + tl.arange(0, BLOCK_KEYS)
        P = held(pattern + s * pattern_stack, t, n_rows, pattern_row, j, n_keys, 1).to(tl.float32)
        V = factor(held(value + s * value_stack, j, n_keys, value_row, v, value_width, 1), MODE).to(tl.float32)
        total = multiply(P, V, total, SUM_MODE)
    write(total, outputs + s * n_rows * value_width, t, n_rows, value_width, v, value_width, MODE)


@triton.jit
def over_panels(cotangent, t, n_rows, cotangent_row, value, j, n_keys, value_row, value_width, total,
                MODE: tl.constexpr, PANEL: tl.constexpr):
    """total + dO Vᵀ of wide values, panel by panel."""
    for panel in range(0, tl.cdiv(value_width, PANEL)):
        v = panel_of(panel, PANEL)
        dO = factor(held(cotangent, t, n_rows, cotangent_row, v, value_width, 1), MODE)
        V = factor(held(value, j, n_keys, value_row, v, value_width, 1), MODE)
        total = product(dO, tl.trans(V), total, MODE)
    return total


@triton.jit
def query_kernel(
    cotangent,
    pattern,
    key,
    value,
    outputs,
    sums,
    made_query,
    scale,
    n_columns,
    n_stack,
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
    key_stack,
    key_row,
    key_step,
    value_stack,
    value_row,
    made_query_column,
    made_query_stack,
    made_query_row,
    MODE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PANEL: tl.constexpr,
    PANELS: tl.constexpr,
):
    """dQ of a tile of rows of one stack and column, or one of its PANELS, and the rows' sums δ, (columns, stack, rows)
    float32."""
    c, s, tile = owned(n_columns, together, tl.cdiv(n_rows, BLOCK_ROWS) * PANELS)
    c, s = c.to(tl.int64), s.to(tl.int64)
    t, e = panel_of(tile // PANELS, BLOCK_ROWS), panel_of(tile % PANELS, PANEL)
    cotangent += c * cotangent_column + s * cotangent_stack
    value += s * value_stack
    delta = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    for panel in range(0, tl.cdiv(value_width, PANEL)):
        v = panel_of(panel, PANEL)
        output = held(outputs + s * n_rows * value_width, t, n_rows, value_width, v, value_width, 1)
        dO = held(cotangent, t, n_rows, cotangent_row, v, value_width, 1)
        delta += tl.sum(dO.to(tl.float32) * output, axis=1)
    tl.store(sums + (c * n_stack + s) * n_rows + t, delta, mask=(t < n_rows) & (tile % PANELS == 0))
    v = tl.arange(0, PANEL)
    dO = factor(held(cotangent, t, n_rows, cotangent_row, v, value_width, 1), MODE)
    scores = tl.zeros((BLOCK_ROWS, BLOCK_KEYS), dtype=tl.float32)
    dQ = tl.zeros((BLOCK_ROWS, PANEL), dtype=tl.float32)
    for start in range(0, min(n_keys, (tile // PANELS + 1) * BLOCK_ROWS) if CAUSAL else n_keys, BLOCK_KEYS):
        j = start + tl.arange(0, BLOCK_KEYS)
        if PANELS == 1:
            V = factor(held(value, j, n_keys, value_row, v, value_width, 1), MODE)
            dP = product(dO, tl.trans(V), scores, MODE)
        else:
            dP = over_panels(cotangent, t, n_rows, cotangent_row, value, j, n_keys, value_row, value_width, scores,
                             MODE, PANEL)
        P = held(pattern + s * pattern_stack, t, n_rows, pattern_row, j, n_keys, 1)
        dS = factor(P.to(tl.float32) * (dP - delta[:, None]), MODE)
        K = factor(held(key + s * key_stack, j, n_keys, key_row, e, width, key_step), MODE)
        dQ = product(dS, K, dQ, MODE)
    write(dQ * scale, made_query + c * made_query_column + s * made_query_stack, t, n_rows, made_query_row, e, width,
          MODE)


@triton.jit
def key_kernel(
    cotangent,
    pattern,
    query,
    value,
    sums,
    made_key,
    made_value,
    scale,
    n_columns,
    n_stack,
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
    value_stack,
    value_row,
    made_key_column,
    made_key_stack,
    made_key_row,
    made_value_column,
    made_value_stack,
    made_value_row,
    MODE: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    PANEL: tl.constexpr,
    PANELS: tl.constexpr,
):
    """dK and dV of a tile of keys of one stack and column, or one of their PANELS, from the sums δ of all rows."""
    c, s, tile = owned(n_columns, together, tl.cdiv(n_keys, BLOCK_KEYS) * PANELS)
    c, s = c.to(tl.int64), s.to(tl.int64)
    j, e = panel_of(tile // PANELS, BLOCK_KEYS), panel_of(tile % PANELS, PANEL)
    cotangent += c * cotangent_column + s * cotangent_stack
    value += s * value_stack
    V = factor(held(value, j, n_keys, value_row, e, value_width, 1), MODE)
    scores = tl.zeros((BLOCK_ROWS, BLOCK_KEYS), dtype=tl.float32)
    dK = tl.zeros((BLOCK_KEYS, PANEL), dtype=tl.float32)
    dV = tl.zeros((BLOCK_KEYS, PANEL), dtype=tl.float32)
    first = tile // PANELS * BLOCK_KEYS // BLOCK_ROWS * BLOCK_ROWS if CAUSAL else 0
    for start in range(first, n_rows, BLOCK_ROWS):
        t = start + tl.arange(0, BLOCK_ROWS)
        dO = factor(held(cotangent, t, n_rows, cotangent_row, e, value_width, 1), MODE)
        if PANELS == 1:
            dP = product(dO, tl.trans(V), scores, MODE)
        else:
            dP = over_panels(cotangent, t, n_rows, cotangent_row, value, j, n_keys, value_row, value_width, scores,
                             MODE, PANEL)
        P = held(pattern + s * pattern_stack, t, n_rows, pattern_row, j, n_keys, 1)
        delta = tl.load(sums + (c * n_stack + s) * n_rows + t, mask=t < n_rows, other=0.0)
        dV = product(tl.trans(factor(P, MODE)), dO, dV, MODE)
        dS = factor(P.to(tl.float32) * (dP - delta[:, None]), MODE)
        Q = factor(held(query + s * query_stack, t, n_rows, query_row, e, width, 1), MODE)
        dK = product(tl.trans(dS), Q, dK, MODE)
    write(dK * scale, made_key + c * made_key_column + s * made_key_stack, j, n_keys, made_key_row, e, width, MODE)
    write(dV, made_value + c * made_value_column + s * made_value_stack, j, n_keys, made_value_row, e, value_width,
          MODE)
