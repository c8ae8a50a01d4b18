"""The affine map on a GPU is the CPU's."""

from __future__ import annotations

import pytest
import torch

import specxai
from nets import NETS, build
from random_nets import random_net
from specxai.operators import DenseOperator
from specxai.svd.deferred import Steps
from specxai.svd.products import Counted, ProgressBar
from specxai.svd.space import Space
from tolerances import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("backend", ["auto", "torch", "cuda"])
@pytest.mark.parametrize("name", NETS)
def test_same_map(name, backend):
    if backend == "cuda":
        pytest.importorskip("triton", reason="its kernels are Triton's")
    model, x = build(name)
    wanted = specxai.linearize(model, x)
    layer = wanted.layers[len(wanted.layers) // 2]
    e = specxai.explain(wanted, layer=layer, target=0, rank=None)
    got = specxai.linearize(model.cuda(), x.cuda(), backend=backend)
    assert got.backend == ("reference" if backend == "auto" else backend)
    assert torch.allclose(got.jacobian.to_dense().cpu(), wanted.jacobian.to_dense(), rtol=1e-11, atol=1e-13)
    assert got.exactness <= 1e-12
    assert got.first_flip(torch.ones_like(x)) == pytest.approx(wanted.first_flip(torch.ones_like(x)))
    again = specxai.explain(got, layer=layer, target=0, rank=None)
    assert torch.allclose(again.alpha, e.alpha, atol=1e-11)
    assert again.completeness <= 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_the_cuda_engine_is_the_torch_engine(seed):
    """Float32-grade on tensor cores, rough products within what they state."""
    pytest.importorskip("triton", reason="its kernels are Triton's")
    net, x = random_net(seed, torch.float32)
    captured = specxai.capture(net.cuda(), x.cuda(), verify=False)
    ours, oracle = (captured.linearize(x.cuda(), backend=name, verify=False).jacobian for name in ("cuda", "torch"))
    for columns in (1, 4, 17, 64):
        X, Y = (torch.randn(side, columns, device="cuda") for side in oracle.shape[::-1])
        want, back = oracle.matmat(X), oracle.rmatmat(Y)
        assert_close(ours.matmat(X), want, factor=8)
        assert_close(ours.rmatmat(Y), back, factor=8)
        assert torch.equal(ours.matmat(X), ours.matmat(X))
        if ours.rough() is not None:  # whole values have none
            assert (ours.rough().matmat(X) - want).norm() <= 1e-4 * want.norm()


def test_explain_on_cuda_is_explain_on_torch():
    pytest.importorskip("triton", reason="its kernels are Triton's")
    net, x = random_net(3, torch.float32)
    layer = specxai.capture(net, x).layers[-2]
    ours, oracle = (specxai.explain(net.cuda(), x.cuda(), layer, target=1, rank=4, backend=name)
                    for name in ("cuda", "torch"))
    assert torch.allclose(ours.S, oracle.S, rtol=1e-5)
    assert torch.allclose(ours.alpha, oracle.alpha, rtol=1e-4, atol=1e-6)
    assert ours.backends == {"decomposition": "cuda", "targets": "cuda"}


def test_passes_are_replayed_and_nothing_waits():
    """The second pass of a kind is captured, which a wait for the device would end."""
    pytest.importorskip("triton", reason="its kernels are Triton's")
    net, x = random_net(4, torch.float32)
    J = specxai.linearize(net.cuda(), x.cuda(), backend="cuda").jacobian
    blocks = [torch.randn(J.shape[1], 8, device="cuda") for _ in range(4)]
    first = [J.matmat(block) for block in blocks]
    made = J._products._graphs
    assert len(made._kept) == 1
    assert not made._refused
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = [J.matmat(block) for block in blocks]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_step_of_krylov_waits_for_nothing():
    pytest.importorskip("triton", reason="its kernels are Triton's")
    operator = Counted(DenseOperator(torch.randn(3000, 2000, device="cuda")), ProgressBar(False))
    operator.matmat(torch.randn(2000, 4, device="cuda"))  # which decides the scale
    space = Space(operator)
    steps, new = Steps(space), torch.linalg.qr(torch.randn(3000, 64, device="cuda"))[0]
    for depth in range(4):  # the first compiles, and takes memory
        torch.cuda.set_sync_debug_mode("error" if depth else "default")
        try:
            assert steps.begin(new, depth)
            right = space.add(new, 1e-6, steps.extend)
            new, _, _ = steps.extend(space.Q, operator.matmat(right), 1e-6)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert steps.settle() is None
