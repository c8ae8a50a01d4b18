"""Targets resolve to weights and a label, or say what is wrong."""

import numpy as np
import pytest
import torch

from specxai.affine.target import resolve_target

table = torch.arange(32.0).reshape(4, 8)
row = torch.tensor([[1.0, 5.0, 2.0]])
grid = torch.arange(12.0).reshape(1, 3, 2, 2)


@pytest.mark.parametrize(("target", "position"), [
    (None, 1), (2, 2), (-1, 2), ((0,), 0), ((0, 2), 2), (np.int64(1), 1), (torch.tensor(2), 2),
    (lambda y: int(y.argmin()), 0), (lambda y: (0, 1), 1),
])
def test_index_into_a_row(target, position):
    weights, label = resolve_target(target, row)
    assert weights.tolist() == [float(i == position) for i in range(3)]
    assert label == f"output[{position}]"


@pytest.mark.parametrize(("target", "position", "label"), [
    (None, 11, "output[2, 1, 1]"), ((1, 0, 1), 5, "output[1, 0, 1]"), ((0, 1, 0, 1), 5, "output[1, 0, 1]"),
    ((-1, -1, -2), 10, "output[2, 1, 0]"),
])
def test_index_into_a_grid(target, position, label):
    weights, found = resolve_target(target, grid)
    assert (int(weights.argmax()), float(weights.sum()), found) == (position, 1.0, label)


@pytest.mark.parametrize(("target", "label"), [
    (torch.tensor([0.0, 1.0, -1.0]), "output[1] - output[2]"), (torch.tensor([[-1.0, 0.0, 0.0]]), "- output[0]"),
    ([0, 0, 1], "output[2]"), (np.array([0.5, 0.25, 0.0]), "weights"), (lambda y: y, "weights"),
])
def test_weights(target, label):
    weights, found = resolve_target(target, row)
    assert (weights.shape, weights.dtype, found) == ((3,), torch.float32, label)


def test_scalar_output():
    for target in (None, 0, ()):
        weights, label = resolve_target(target, torch.tensor([3.0]))
        assert (weights.tolist(), label) == ([1.0], "output")


@pytest.mark.parametrize(("target", "output", "label"), [
    ((-1, 3), table, "output[3, 3]"), (None, table, "output[3, 7]"), ((2, 3), table, "output[2, 3]"),
    (3, torch.arange(8.0), "output[3]"),
    (None, torch.arange(8.0), "output[7]"), ((), torch.tensor(2.0), "output"), (None, torch.tensor(2.0), "output"),
])
def test_output_without_a_batch_axis(target, output, label):
    weights, found = resolve_target(target, output)
    assert found == label
    assert weights.sum() == 1


@pytest.mark.parametrize(("target", "output", "error", "words"), [
    ((0, 2, 3), torch.ones(4, 8), ValueError, r"give a tuple of 2 integers$"),
    (3, row, IndexError, r"out of range for an output of shape \(1, 3\)"),
    (-4, row, IndexError, "out of range"),
    (0, grid, ValueError, r"give a tuple of 3, such as \(0, 0, 0\)"),
    ((0, 1), grid, ValueError, r"give a tuple of 3 integers"),
    ((0, 5, 0), grid, IndexError, r"\(1, 3, 2, 2\)"),
    (torch.zeros(3), row, ValueError, "all zero"),
    (torch.ones(4), row, ValueError, r"shape \(4,\), but the output has shape \(1, 3\)"),
    (torch.tensor([1.0, float("nan"), 0.0]), row, ValueError, "nan or inf"),
    (True, row, TypeError, "bool"), (1.5, row, TypeError, "float"), ("cat", row, TypeError, "str"),
    ((0, 0.5), row, TypeError, "not of integers"),
    (lambda y: (lambda z: 0), row, TypeError, "another callable"),
    (None, torch.tensor([[float("nan"), 1.0]]), ValueError, "contains nan"),
])
def test_errors_name_cause_and_remedy(target, output, error, words):
    with pytest.raises(error, match=words):
        resolve_target(target, output)
