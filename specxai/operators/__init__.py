"""Linear operators R of shape (m, n), known by their products R X and Rᵀ Y.

J, L and R of an affine map are never built as matrices; everything above this package (solvers, certificates, the
spectral layer) sees only the interface of `LinearOperator`.  A block of k vectors is a matrix whose columns are the
vectors.
"""

from specxai.operators.algebra import (
    AdjointOperator,
    ComposedOperator,
    Cut,
    LinearOperator,
    ScaledOperator,
    SumOperator,
)
from specxai.operators.base import plain
from specxai.operators.dense import DenseOperator
from specxai.operators.selection import SelectionOperator
from specxai.operators.stack import StackedOperator, hstack, vstack
from specxai.operators.zero import ZeroOperator

__all__ = ["AdjointOperator", "ComposedOperator", "Cut", "DenseOperator", "LinearOperator", "ScaledOperator",
           "SelectionOperator", "StackedOperator", "SumOperator", "ZeroOperator", "hstack", "plain", "vstack"]
