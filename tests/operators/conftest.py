"""What every operator keeps to, as a function that the tests share."""

from __future__ import annotations

import pytest
import torch

from specxai.operators import LinearOperator
from tolerances import RELATIVE, assert_close


def agrees(operator: LinearOperator, matrix: torch.Tensor, factor: float = 1.0) -> None:
    """`operator` acts as `matrix` does, in every way of asking; `factor` as for `assert_close`."""
    m, n = matrix.shape
    assert operator.shape == (m, n)
    assert_close(operator.to_dense(), matrix, factor)
    assert_close(operator.T.to_dense(), matrix.mT, factor)
    for k in (0, 1, 4):
        X, Y = torch.randn(n, k, dtype=matrix.dtype), torch.randn(m, k, dtype=matrix.dtype)
        assert_close(operator @ X, matrix @ X, factor)
        assert_close(operator.rmatmat(Y), matrix.mT @ Y, factor)
        assert_close(operator.T @ Y, matrix.mT @ Y, factor)
    x, y = torch.randn(n, dtype=matrix.dtype), torch.randn(m, dtype=matrix.dtype)
    assert (operator @ x).shape == (m,)
    assert (operator.rmatvec(y)).shape == (n,)
    scale = float(torch.linalg.norm(matrix) * torch.linalg.norm(x) * torch.linalg.norm(y))
    allowed = factor * RELATIVE[matrix.dtype] * max(scale, 1e-30)
    assert abs(float((operator @ x) @ y) - float(x @ (operator.T @ y))) <= allowed


@pytest.fixture(scope="session")
def check_operator():
    return agrees
