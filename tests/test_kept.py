"""The last results: bounded, computed once, safe in threads, after a fork and in a copy."""

import copy
import os
import pickle
import threading

import pytest

from specxai import _kept
from specxai._kept import Kept


def size(value):
    return len(value)


def test_the_oldest_goes_first():
    kept, made = Kept(2, 100), []
    for key in "abac" + "ab":
        kept.get(key, lambda key=key: made.append(key) or key, size)
    assert made == ["a", "b", "c", "b"], "a was asked for again before c came"


def test_bytes_are_bounded():
    kept, made = Kept(10, 10), []
    for key in ("x" * 4, "y" * 4, "z" * 4, "w" * 11, "z" * 4, "x" * 4, "w" * 11):
        kept.get(key, lambda key=key: made.append(key[0]) or key, size)
    assert made == ["x", "y", "z", "w", "x", "w"], "x made way; w is larger than all that may be kept"


def test_another_key_may_serve():
    kept = Kept(4, 100)
    kept.get(5, lambda: "five", size)
    assert kept.get(3, lambda: "three", size, serves=lambda key, value: key >= 3) == "five"
    assert kept.get(6, lambda: "six", size, serves=lambda key, value: key >= 6) == "six"


def test_an_error_is_the_caller_s_and_is_not_kept():
    kept = Kept(4, 100)

    def fails():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kept.get("a", fails, size)
    assert kept.get("a", lambda: "yes", size) == "yes"


@pytest.mark.parametrize("most_bytes", [0, 100])
def test_threads_share_what_one_of_them_makes(most_bytes, monkeypatch):
    """Also where it is too large to be kept."""
    kept, made, found, waiting = Kept(4, most_bytes), [], [], threading.Semaphore(0)
    wait = _kept.wait
    monkeypatch.setattr(_kept, "wait", lambda futures: waiting.release() or wait(futures))

    def make():
        made.append(1)
        for _ in range(3):
            assert waiting.acquire(timeout=10), "the others wait for this one"
        return "value"

    threads = [threading.Thread(target=lambda: found.append(kept.get("key", make, size))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == ["value"] * 4
    assert made == [1]


def test_who_waited_for_a_failure_tries_again():
    kept, started, go, found = Kept(4, 100), threading.Event(), threading.Event(), []

    def fails():
        started.set()
        go.wait(10)
        raise ValueError("no")

    def first():
        with pytest.raises(ValueError, match="no"):
            kept.get("key", fails, size)

    threads = [threading.Thread(target=first),
               threading.Thread(target=lambda: found.append(kept.get("key", lambda: "yes", size)))]
    threads[0].start()
    started.wait(10)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(10)
    assert found == ["yes"]


def test_a_fork_in_the_middle_does_not_wait_for_a_thread_that_is_not_there():
    kept, started, go = Kept(4, 100), threading.Event(), threading.Event()

    def slow():
        started.set()
        go.wait(20)
        return "slow"

    thread = threading.Thread(target=lambda: kept.get("key", slow, size))
    thread.start()
    started.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if kept.get("key", lambda: "mine", size) == "mine" else 1)
    go.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_copy_is_empty():
    kept = Kept(4, 100)
    kept.get("a", lambda: "a", size)
    for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert (len(other), other.most, other.most_bytes) == (0, 4, 100)
    kept.clear()
    assert len(kept) == 0
