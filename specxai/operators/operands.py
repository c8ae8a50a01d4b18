"""What operators are added to and scaled by: checked here, with the remedy for what is not."""

from __future__ import annotations

import math
from numbers import Complex, Real

from torch import Tensor

from specxai.operators.base import CheckedProducts

__all__ = ["as_factor", "check_alike", "no_operator"]


def no_operator(operator: CheckedProducts, other: object):
    """NotImplemented; TypeError for what a user may take for an operator."""
    if isinstance(other, Tensor) or hasattr(other, "__array__"):
        raise TypeError(f"{operator!r} adds to operators, got {type(other).__name__}; wrap a matrix as "
                        "DenseOperator(torch.as_tensor(matrix))")
    if other is None:
        raise TypeError(f"{operator!r} adds to operators, got None; leave out a term that is not there")
    return NotImplemented


def as_factor(operator: CheckedProducts, number: object) -> float | None:
    """A real number as a float, None for what is no number at all; TypeError for what may be taken for one."""
    if isinstance(number, CheckedProducts):
        raise TypeError(f"operators are composed by @, not by * or /: {operator!r} and {number!r}")
    single = isinstance(number, Tensor) or hasattr(number, "__array__")
    if single and getattr(number, "ndim", None) != 0:
        raise TypeError(f"an operator is scaled by one real number, got {type(number).__name__} of shape "
                        f"{tuple(getattr(number, 'shape', ()))}; take a number out of it by .item(), or compose with a "
                        "matrix by @ DenseOperator(matrix)")
    value = number.item() if single else number
    if isinstance(value, bool) or (isinstance(value, Complex) and not isinstance(value, Real)):
        raise TypeError(f"an operator is scaled by a real number, got {number!r}; give an int or a float")
    if not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_alike(verb: str, left: CheckedProducts, word: str, right: CheckedProducts) -> None:
    """Raise ValueError where dtypes or devices differ."""
    if left.dtype != right.dtype or left.device != right.device:
        raise ValueError(f"cannot {verb} {left!r} {word} {right!r}: dtype and device must be the same; cast or move "
                         "the model or matrix that one is made of")
