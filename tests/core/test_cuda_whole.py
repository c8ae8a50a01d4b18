"""On a GPU a decoder's products and its lens go through whole values, by Triton kernels and the library's products."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import specxai
from decoders import D, Decoder, T, errors_of
from small import relative, small_gpt, some_prompts
from specxai.backends.whole.products import JoinedProducts
from tolerances import assert_close

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("norm", "middle", "shared", "fused"), [("weight first", "gated", 3, False),
                                                                 ("layer", "gelu", 1, True)])
@torch.no_grad()
def test_a_decoder(norm, middle, shared, fused, dtype):
    pytest.importorskip("triton", reason="its kernels are Triton's")
    net = nn.Sequential(*(Decoder(norm, middle, shared, fused) for _ in range(2))).eval()
    assert max(errors_of(net, dtype, "cuda", 65)) < (2e-6 if dtype is None else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_lens(dtype):
    model, prompts = small_gpt(dtype), some_prompts((30,))
    want = specxai.lens.fit(copy.deepcopy(model).double(), prompts, skip_first=5)
    got = specxai.lens.fit(model.cuda(), prompts, skip_first=5)
    assert got.metadata.get("rough_kind") == (None if dtype is torch.float32 else "bfloat16")
    for layer, matrix in got.J.items():
        assert relative(matrix.double(), want.J[layer]) < (1e-5 if dtype is torch.float32 else 3e-2)


def test_products_wait_for_nothing():
    pytest.importorskip("triton", reason="its kernels are Triton's")
    net, x = nn.Sequential(*(Decoder("own", "gated", 3, False) for _ in range(2))).eval(), torch.randn(1, T, D)
    want = specxai.linearize(net, x, backend="reference").jacobian.to_dense()
    J = specxai.linearize(net.cuda(), x.cuda(), backend="cuda", verify=False).jacobian
    assert isinstance(J._products, JoinedProducts)
    X = torch.randn(T * D, 8, device="cuda")
    J.matmat(X), J.rmatmat(X)
    torch.cuda.set_sync_debug_mode("error")
    try:
        forth, back = J._products.matmat(X), J._products.rmatmat(X)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_close(forth.cpu(), want @ X.cpu())
    assert_close(back.cpu(), want.T @ X.cpu())
