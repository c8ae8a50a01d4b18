"""The certificates by themselves: unbiased, safe, and blind to nothing."""

from __future__ import annotations

import math

import torch

import specxai
from specxai.operators import DenseOperator, LinearOperator
from specxai.svd.certify import FAILURE, HeldOut, leave_one_out, residual_norms, safety_factor
from specxai.svd.products import Counted, ProgressBar, gaussian, generator_of


def _counted(matrix):
    return Counted(DenseOperator(matrix), ProgressBar(False))


def test_safety_factor_solves_the_chernoff_equation():
    for probes in (1, 8, 32, 100):
        theta = safety_factor(probes) ** -2
        assert theta < 1
        # log form: θ e^{1−θ} underflows for one probe
        assert math.isclose((math.log(theta) + 1 - theta) * probes / 2, math.log(FAILURE), rel_tol=1e-6)


def test_held_out_is_unbiased_and_its_bound_safe():
    # Rank one is the worst case of the Chernoff bound.
    matrix = torch.outer(torch.randn(50, dtype=torch.float64), torch.randn(40, dtype=torch.float64))
    exact = float(torch.linalg.norm(matrix))
    none = torch.zeros(50, 0, dtype=torch.float64)
    squares = []
    for seed in range(300):
        held = HeldOut(_counted(matrix), generator_of(seed))
        estimate = held.unseen(none)
        assert exact <= held.factor * estimate
        squares.append(estimate**2)
    # The mean of 300 · 32 chi-squares of one degree: standard deviation √(2/9600) = 1.4 %.
    assert abs(sum(squares) / 300 / exact**2 - 1) < 0.06


def test_leave_one_out_equals_leaving_out(kit):
    matrix = kit.prescribed(0.8 ** torch.arange(30.0), 50, 40, torch.float64)
    probes = gaussian(40, 6, generator_of(0), DenseOperator(matrix))
    image = matrix @ probes
    for power in (0, 1):
        powered = torch.linalg.matrix_power(matrix @ matrix.mT, power) @ image
        Q, T = torch.linalg.qr(powered)
        total = 0.0
        for i in range(6):
            others = torch.linalg.qr(powered[:, [j for j in range(6) if j != i]])[0]
            total += float(torch.linalg.norm(image[:, i] - others @ (others.mT @ image[:, i])) ** 2)
        assert math.isclose(leave_one_out(Q, T, image), math.sqrt(total / 6), rel_tol=1e-9)


def test_residuals_name_a_wrong_triplet(kit):
    matrix = kit.prescribed(torch.linspace(2, 1, 20), 50, 40, torch.float64)
    U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    wrong = S[:4].clone()
    wrong[2] += 0.01
    forward, adjoint = residual_norms(_counted(matrix), U[:, :4], wrong, Vt[:4].mT)
    assert torch.allclose(forward, torch.tensor([0, 0, 0.01, 0], dtype=torch.float64), atol=1e-12)
    assert torch.allclose(adjoint, forward, atol=1e-12)


def test_subspace_certifies_with_the_image_of_its_basis(kit):
    """The last iteration has multiplied RP: RV costs no products, and the residuals are those of real ones."""
    matrix = kit.prescribed(0.9 ** torch.arange(30.0), 60, 50, torch.float64)
    operator = _counted(matrix)
    result = specxai.svd(operator, rank=4, method="subspace", block_size=4, tol=0.0, max_products=32 + 8 + 2 * 16)
    assert operator.products == result.products == 32 + 8 + 2 * 16 + 4
    residuals = torch.maximum(*residual_norms(operator, result.U, result.S, result.V))
    assert residuals.max() > 1e-3  # stopped early: there is something to certify
    assert torch.allclose(result.residuals - result.floor, residuals, rtol=1e-10)


def test_an_operator_may_return_its_argument():
    class Identity(LinearOperator):
        def _matmat(self, X):
            return X

        _rmatmat = _matmat

    for method in ("subspace", "krylov", "exact"):
        result = specxai.svd(Identity((200, 200), torch.float32), rank=20, method=method)
        assert torch.allclose(result.S, torch.ones(20), atol=1e-5)
        assert result.residuals.max() <= 2 * result.floor


def test_large_blocks_of_probes_are_the_same_on_any_threads_and_in_any_mode():
    from specxai.operators import DenseOperator
    from specxai.svd.products import LARGE, gaussian, generator_of

    rows, like, blocks = LARGE // 8 + 3, DenseOperator(torch.eye(2)), []
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        blocks.append(gaussian(rows, 8, generator_of(0), like))
    torch.set_num_threads(before)
    with torch.inference_mode():
        blocks.append(gaussian(rows, 8, generator_of(0), like))
    assert all(torch.equal(blocks[0], block) for block in blocks)
    assert abs(float(blocks[0].mean())) <= 5 / (rows * 8) ** 0.5
    assert abs(float(blocks[0].std()) - 1) <= 5 / (rows * 8) ** 0.5
    parts = blocks[0].tensor_split(8)
    assert not torch.equal(parts[0][:9], parts[1][:9])


def test_probes_do_not_depend_on_dtype():
    single = gaussian(9, 4, generator_of(1), DenseOperator(torch.zeros(3, 9)))
    double = gaussian(9, 4, generator_of(1), DenseOperator(torch.zeros(3, 9, dtype=torch.float64)))
    assert torch.equal(single.double(), double)
