"""Memory that is used again: never while a tensor still sees it."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from specxai import native
from specxai.native.memory import SMALL

pytestmark = pytest.mark.skipif(not native.available()[0], reason=f"no compiled kernels: {native.available()[1]}")
ROWS = SMALL // 64  # float32 rows of 64: four times what is small


def test_memory_is_used_again_when_the_last_view_is_gone():
    native.release_idle()
    first = native.empty(ROWS, 64)
    view, place = first[3:, :2], first.data_ptr()
    del first
    gc.collect()
    other = native.empty(ROWS, 64)
    assert other.data_ptr() != place, "a view still sees it"
    del view
    gc.collect()
    assert native.empty(ROWS, 64).data_ptr() == place


def test_a_large_block_is_worth_more_than_small_ones():
    native.release_idle()
    large = 40 << 18  # numbers: 40 MB of the 48 that are kept
    small, other = native.empty(10 << 18), native.empty(large)
    places = small.data_ptr(), other.data_ptr()
    del small
    del other
    gc.collect()
    assert native.empty(large).data_ptr() == places[1]
    huge = native.empty(100 << 18)
    del huge  # too large to be kept, so nothing made room for it
    gc.collect()
    assert native.empty(large).data_ptr() == places[1]
    native.release_idle()


def test_a_new_block_takes_the_place_of_idle_ones_that_are_too_small():
    native.release_idle()
    before = _resident()
    small = [native.empty(10 << 18).fill_(1) for _ in range(4)]
    del small
    gc.collect()
    kept = native.empty(42 << 18).fill_(1)
    assert _resident() - before <= 60 << 20, "42 MB, and not 82"
    assert float(kept[-1]) == 1
    native.release_idle()


def _resident() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell how much memory is resident")
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


def test_blocks_are_what_was_asked_for():
    for shape in ((ROWS, 64), (3, 5), (0, 7), (ROWS * 64 + 1,)):
        for dtype in (torch.float32, torch.float64):
            block = native.empty(*shape, dtype=dtype)
            assert block.shape == shape
            assert block.dtype is dtype
            block.fill_(1)
            assert float(block.sum()) == block.numel()


def test_threads_never_share_a_block():
    def work(number: int) -> bool:
        for _ in range(20):
            block = native.empty(ROWS, 64).fill_(number)
            if not bool((block == number).all()):
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))


def test_no_memory_is_an_error():
    with pytest.raises(MemoryError):
        native.empty(1 << 40, 1 << 18)
