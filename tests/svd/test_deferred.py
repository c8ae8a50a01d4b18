"""Krylov without a wait for the device in its steps: what is deferred, and what is taken back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.operators import DenseOperator, LinearOperator
from specxai.operators.later import checked_later
from specxai.svd import deferred, krylov, orth
from specxai.svd.products import Counted, ProgressBar
from specxai.svd.space import Space
from tolerances import assert_close
from waits import Waits


class OnDevice(LinearOperator):
    """A matrix of its own device."""

    own_products = True

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(tuple(matrix.shape), matrix.dtype, matrix.device)
        self.matrix = matrix

    def _matmat(self, X):
        return self.matrix @ X

    def _rmatmat(self, Y):
        return self.matrix.mT @ Y


@pytest.fixture
def always(monkeypatch):
    """Steps are deferred on the CPU too."""
    monkeypatch.setattr(orth, "defers", lambda device: True)


def counted(operator: LinearOperator) -> Counted:
    made = Counted(operator, ProgressBar(False))
    made.scale = 1.0  # what the first product decides, before any step
    return made


def test_the_counter_sees_what_waits():
    t, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    for wait in (lambda: float(t[0]), lambda: bool((t > 1).all()), lambda: t[mask], lambda: mask.nonzero(),
                 lambda: torch.equal(t, t), lambda: torch.linalg.svdvals(t.outer(t)), lambda: t.unique(),
                 lambda: torch.linalg.eigh(t.outer(t)), lambda: t[mask].fill_(0), lambda: t.to("meta")):
        with Waits() as waits:
            wait()
        assert waits.found
    with Waits() as waits:
        torch.linalg.cholesky_ex(t.outer(t) + torch.eye(4))
        torch.where(mask, t, 0)
        t.double()
    assert not waits.found


@pytest.mark.parametrize("columns", [4, 64])
def test_a_step_waits_for_nothing(columns, dtype):
    operator = counted(DenseOperator(torch.randn(700, 500, dtype=dtype)))
    space = Space(operator)
    steps = deferred.Steps(space)
    steps.deferring = True
    new = torch.linalg.qr(torch.randn(700, columns, dtype=dtype))[0]
    with Waits() as waits:
        for depth in range(3):
            assert steps.begin(new, depth)
            right = space.add(new, 1e-6, steps.extend)
            new, _, _ = steps.extend(space.Q, operator.matmat(right), 1e-6)
    assert waits.found == []
    assert steps.settle() is None


def test_a_step_on_a_device_copies_nothing_to_the_host():
    with Waits() as waits:  # a device whose tensors have no numbers, so that whoever asks for one fails
        operator = counted(OnDevice(torch.empty(700, 500, device="meta")))
        growth = krylov._Growth(4, 1e-3, None, 1e-6, None, 64, None, 10**6)
        space, growth.depth = Space(operator), 1
        steps, new = deferred.Steps(space), torch.empty(700, 64, device="meta")
        for depth in range(3):
            assert steps.begin(new, depth)
            _, new, C = growth._step(space, new, steps.extend)
        assert new.device.type == C.device.type == space.T.device.type == "meta"
    assert waits.found == []


@pytest.mark.parametrize("rough", [False, True])
def test_a_whole_run_waits_between_checks_only(always, monkeypatch, rough):
    inside, checks = [], []
    step, holds = krylov._Growth._step, krylov._Growth._holds

    def watched(self, *arguments):
        with Waits() as waits:
            made = step(self, *arguments)
        inside.append(waits.found)
        return made

    monkeypatch.setattr(krylov._Growth, "_step", watched)
    monkeypatch.setattr(krylov._Growth, "_holds", lambda self, *rest: checks.append(1) or holds(self, *rest))
    matrix = torch.randn(600, 400)
    operator = DenseOperator(matrix)
    if rough:
        monkeypatch.setattr(DenseOperator, "rough", lambda self: OnDevice(matrix + 1e-4 * torch.randn(600, 400)))
        monkeypatch.setattr(DenseOperator, "column_cost", lambda self, columns: 100.0)
    result = specxai.svd(operator, rank=5, method="krylov", block_size=16)
    assert result.converged
    assert result.settings["rough"] == rough
    assert len(inside) >= 5
    assert not any(inside), inside
    assert len(checks) <= len(inside) / 2 + 2


@pytest.mark.parametrize("arguments", [{"rank": 6}, {"rank": 6, "tol": 1e-6}, {"tol": 1e-2}, {"rank": 20}])
def test_every_certificate_holds(kit, always, spectrum, shape, dtype, arguments):
    matrix = kit.prescribed(spectrum, *shape, dtype)
    deferring = specxai.svd(DenseOperator(matrix), method="krylov", block_size=4, **arguments)
    kit.check(matrix, deferring)


def test_the_result_is_that_of_looking_at_every_step(kit, monkeypatch, dtype):
    matrix = kit.prescribed(0.97 ** torch.arange(250.0, dtype=torch.float64), 400, 300, dtype)
    plain = specxai.svd(DenseOperator(matrix), rank=6, method="krylov", block_size=8)
    monkeypatch.setattr(orth, "defers", lambda device: True)
    ours = specxai.svd(DenseOperator(matrix), rank=6, method="krylov", block_size=8)
    kit.check(matrix, ours)
    assert ours.converged
    assert_close(ours.S, plain.S, factor=1e3 if dtype is torch.float64 else 8)
    assert ours.products <= plain.products + 2 * 8 * krylov.DEFERRED_STEPS


def test_steps_that_were_not_good_are_made_again(kit, always, monkeypatch, dtype):
    """Twenty equal values: blocks of 4 exhaust what they can reach at once."""
    taken_back, settle = [], deferred.Steps.settle
    monkeypatch.setattr(deferred.Steps, "settle", lambda self: taken_back.append(settle(self)) or taken_back[-1])
    matrix = torch.zeros(40, 50, dtype=dtype)
    matrix[:20, :20] = torch.eye(20)
    result = specxai.svd(DenseOperator(matrix), method="krylov", block_size=4)
    kit.check(matrix, result)
    assert result.rank == 20
    assert sum(found is not None for found in taken_back) == 1


def test_products_that_are_not_finite_say_so(always):
    class Later(OnDevice):
        def _rmatmat(self, Y):
            return super()._rmatmat(Y) * float("nan")

    with pytest.raises((ValueError, RuntimeError)):
        specxai.svd(Later(torch.randn(60, 50)), rank=2, method="krylov", block_size=4)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
@pytest.mark.parametrize("inside", [0.0, 1.0, 1e3])
def test_what_is_flagged_good_is(condition, inside, dtype):
    eps = torch.finfo(dtype).eps
    basis = torch.linalg.qr(torch.randn(500, 40, dtype=dtype))[0]
    mix = torch.linalg.qr(torch.randn(8, 8, dtype=dtype))[0]
    scales = torch.logspace(0, -float(torch.tensor(condition).log10()), 8, dtype=dtype)
    X = (torch.linalg.qr(torch.randn(500, 8, dtype=dtype))[0] * scales) @ mix
    X += inside * basis @ torch.randn(40, 8, dtype=dtype) / 40**0.5
    Q, H, C, good = orth.extend_unseen(basis, X, 16 * eps)
    lost = eps * inside * condition > 1  # the rounding of what lies inside is more than what lies outside
    assert bool(good) != lost
    if lost:
        return
    assert float((Q.double().mT @ Q.double() - torch.eye(8)).abs().max()) <= 20 * eps
    assert float((basis.double().mT @ Q.double()).abs().max()) <= 5 * eps
    error = torch.linalg.norm(X.double() - basis.double() @ H - Q.double() @ C)
    assert float(error) <= 64 * eps * float(torch.linalg.norm(X.double()))


@pytest.mark.parametrize("call", ["tall_qr", "range_basis", "extend"])
def test_a_good_block_is_looked_at_once(always, call, dtype):
    X, basis = torch.randn(300, 8, dtype=dtype), torch.linalg.qr(torch.randn(300, 20, dtype=dtype))[0]
    with Waits() as waits:
        {"tall_qr": lambda: orth.tall_qr(X), "range_basis": lambda: orth.range_basis(X, 1e-3),
         "extend": lambda: orth.extend(basis, X, 1e-3)}[call]()
    assert waits.found == ["_local_scalar_dense"]


@pytest.mark.parametrize("condition", [1.0, 1e4, 1e9, float("inf")])
@pytest.mark.parametrize("shape", [(200, 12), (12, 12), (5, 12), (7, 0), (0, 4)])
def test_a_basis_without_looking(always, shape, condition, dtype):
    m, b = shape
    scales = torch.logspace(0, -torch.log10(torch.tensor(condition)).clamp_max(30), b, dtype=torch.float64)
    mix = torch.linalg.qr(torch.randn(b, b, dtype=torch.float64))[0]
    X = (torch.randn(m, b, dtype=torch.float64) * scales @ mix).to(dtype)
    Q, C = orth.tall_qr(X)
    eps, r = torch.finfo(dtype).eps, min(m, b)
    assert float(torch.linalg.norm(Q.double().mT @ Q.double() - torch.eye(r))) <= 64 * eps * max(r, 1) ** 0.5
    assert float(torch.linalg.norm(X.double() - Q.double() @ C)) <= 64 * eps * float(torch.linalg.norm(X.double()))
    Q, C = orth.range_basis(X, 1e-2)
    assert float(torch.linalg.matrix_norm(X.double() - Q.double() @ C, 2)) <= 1.1e-2 if X.numel() else True


@pytest.mark.parametrize("method", ["exact", "subspace"])
def test_other_solvers_without_looking(kit, always, spectrum, shape, dtype, method):
    matrix = kit.prescribed(spectrum, *shape, dtype)
    kit.check(matrix, specxai.svd(DenseOperator(matrix), rank=6, method=method))


@pytest.mark.parametrize("what", ["dependent", "inside", "small", "nan", "inf", "zero"])
def test_what_is_not_good_is_flagged(what, dtype):
    basis = torch.linalg.qr(torch.randn(100, 10, dtype=dtype))[0]
    X = torch.randn(100, 4, dtype=dtype)
    if what == "dependent":
        X[:, 1] = 2 * X[:, 0]
    elif what == "inside":
        X[:, 2] = basis[:, 3]
    elif what == "small":
        X[:, 0] *= 1e-9
    else:
        X[5, 1] = float(what if what != "zero" else 0)
        X *= 0 if what == "zero" else 1
    assert not bool(orth.extend_unseen(basis, X, 1e-5)[3])


NETS = {
    "convolutions": (nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                                   nn.Linear(128, 10)), (1, 2, 8, 8)),
    "attention": (nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), (1, 6, 16)),
}


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", NETS)
def test_a_product_waits_for_nothing(name, backend):
    """After the first, which makes tables; within a solver, which looks at the weights at the end."""
    net, shape = NETS[name]
    local = specxai.linearize(net.eval(), torch.randn(shape), backend=backend)
    J = local.jacobian
    X, Y = torch.randn(J.shape[1], 20), torch.randn(J.shape[0], 20)
    J.matmat(X), J.rmatmat(Y)
    with checked_later(), Waits() as waits:
        J.matmat(X)
        J.rmatmat(Y)
    assert waits.found == []


def test_the_cpu_decides_as_it_goes(monkeypatch):
    assert not orth.defers(torch.device("cpu"))
    assert orth.defers(torch.device("cuda", 1))
    monkeypatch.setattr(orth, "_pass_unseen", None)
    assert specxai.svd(DenseOperator(torch.randn(60, 50)), rank=2, method="krylov").converged
