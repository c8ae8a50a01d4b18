"""Index tables against torch's own indexing; what they refuse."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specxai import native

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")


def i32(values) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


@given(st.lists(st.integers(-1, 11), max_size=30), st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_against_torch(rows, sizes):
    rows = i32(rows)
    table = torch.randperm(12, dtype=torch.int32)
    assert torch.equal(native.map_rows(rows, table), torch.where(rows < 0, -1, table[rows.clamp_min(0).long()]))
    begin = i32([0, *torch.tensor(sizes).cumsum(0)])
    rows = rows[rows < begin[-1]]
    want = [len({r for r in rows.tolist() if a <= r < b}) for a, b in pairwise(begin.tolist())]
    assert native.count_distinct(rows, begin).tolist() == want


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.integers(1, 4))
def test_any_neighbour(n, groups, m, taps):
    cells, neighbours = torch.rand(n, groups) < 0.4, torch.randint(-1, n, (m, taps), dtype=torch.int32)
    padded = torch.cat([cells, cells.new_zeros(1, groups)])
    assert torch.equal(native.any_neighbour(cells, neighbours), padded[neighbours.long()].any(1))


def test_the_argument_is_left_alone():
    rows = i32([[2, -1], [0, 1]]).T
    mapped = native.map_rows(rows, i32([5, 6, 7]))
    assert mapped.tolist() == [[7, 5], [-1, 6]]
    assert rows.tolist() == [[2, 0], [-1, 1]]


def test_bad_indices_are_refused():
    with pytest.raises(ValueError, match="rows spans 0 to 3, but must lie in -1 to 2"):
        native.map_rows(i32([0, 3]), i32([0, 1, 2]))
    with pytest.raises(ValueError, match="rows spans 0 to 5, but must lie in -1 to 2"):
        native.map_rows(i32([[0, 1], [5, 2]]).T, i32([0, 1, 2]))  # a copy, which is mapped in its place
    with pytest.raises(ValueError, match="rows spans 0 to 0, but must lie in -1 to -1"):
        native.map_rows(i32([0]), i32([]))
    with pytest.raises(ValueError, match="rows spans -2 to 0"):
        native.count_distinct(i32([0, -2]), i32([0, 3]))
    with pytest.raises(ValueError, match="begin must not decrease"):
        native.count_distinct(i32([0]), i32([0, 3, 1]))
    with pytest.raises(ValueError, match="begin must start at 0"):
        native.count_distinct(i32([0]), i32([1, 3]))
    with pytest.raises(ValueError, match="neighbours spans 0 to 2, but must lie in -1 to 1"):
        native.any_neighbour(torch.ones(2, 1, dtype=torch.bool), i32([[0, 2]]))
    with pytest.raises(ValueError, match=r"rows must be contiguous torch\.int32 on the CPU, got torch\.int64"):
        native.map_rows(torch.tensor([0]), i32([0]))
