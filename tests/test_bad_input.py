"""Bad input gets one clear line that names the cause and the remedy, before any work is done.

What comes from files and flags (images, checkpoints, output folders) is in tests/cli.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.capture.checks import is_finite
from specxai.errors import CaptureError


def make(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(144, 3)).to(dtype).eval()


def image(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(1, 1, 8, 8).to(dtype)


def changed(change) -> nn.Sequential:
    """The net after `change(net)`."""
    net = make()
    with torch.no_grad():
        change(net)
    return net


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(self.embed(tokens).mean(1))


class ComplexWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.phase = nn.Parameter(torch.ones(8, dtype=torch.complex64))

    def forward(self, x):
        return (x * self.phase).abs()


def refused(model, x, error, *words):
    """`linearize` and `explain` raise `error`, in one line with all `words`."""
    for call in (lambda: specxai.linearize(model, x), lambda: specxai.explain(model, x, layer="2")):
        with pytest.raises(error) as raised:
            call()
        assert "\n" not in str(raised.value)
        for word in words:
            assert word in str(raised.value)


def test_training_mode():
    refused(make().train(), image(), ValueError, "in training mode", "call model.eval() first")
    refused(changed(lambda net: net[1].train()), image(), ValueError, "'1' is in training mode", "model.eval()")


@pytest.mark.parametrize("x", [torch.zeros(2, 1, 8, 8), torch.zeros(0, 1, 8, 8), torch.zeros(8, 8), torch.tensor(1.0)],
                         ids=["two", "none", "no batch axis", "a number"])
def test_batch_other_than_one(x):
    refused(make(), x, ValueError, f"shape {tuple(x.shape)}", "must be a batch of 1", "x[:1]")


def test_an_unknown_layer_is_offered_near_misses():
    net = nn.Sequential()
    net.add_module("features", make())
    net.eval()
    for call in (specxai.linearize(net, image()).split,
                 lambda layer: specxai.explain(net, image(), layer=layer)):
        with pytest.raises(specxai.errors.LayerError, match=r"no layer 'feature\.2' .* did you mean .*features\.2"):
            call("feature.2")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
def test_integer_input_says_how_to_pass_embeddings(dtype):
    refused(Tokens().eval(), torch.ones(1, 2, dtype=dtype), TypeError, str(dtype), "embedding layer",
            "embeddings")


def test_token_ids_without_an_embedding():
    refused(make(), torch.ones(1, 1, 8, 8, dtype=torch.int64), TypeError, "torch.int64", "no embedding", "wrt=",
            "x.float() / 255")


def test_embeddings_as_that_line_says():
    model = Tokens().eval()
    after = nn.Sequential(nn.AdaptiveAvgPool2d((1, 4)), nn.Flatten(), model.head).eval()
    x = model.embed(torch.tensor([[1, 2]])).detach().unsqueeze(0)
    assert torch.allclose(specxai.linearize(after, x).output, model(torch.tensor([[1, 2]])), atol=1e-6)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(value):
    x = image()
    x[0, 0, 3, 3] = value
    refused(make(), x, ValueError, "the input holds NaN or infinity", "give a finite one")
    refused(changed(lambda net: net[4].weight[0].fill_(value)), image(), ValueError, "4.weight", "NaN or infinity",
            "load weights that are finite")
    refused(changed(lambda net: net[1].running_var[0].fill_(value)), image(), ValueError, "1.running_var", "finite")


def test_mixed_dtypes():
    refused(make(torch.float64), image(), ValueError, "the input is torch.float32", "0.weight is torch.float64",
            "convert one")
    refused(changed(lambda net: net[4].double()), image(), ValueError, "4.weight is torch.float64", "convert one")
    refused(make(), image(torch.float16), ValueError, "the input is torch.float16", "convert one")


def test_mixed_devices():
    refused(make().to("meta"), image(), ValueError, "the input is on cpu", "0.weight is on meta", "move one")
    refused(changed(lambda net: net[4].to("meta")), image(), ValueError, "4.weight is on meta", "move one")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_mixed_devices_on_a_gpu():
    refused(make().cuda(), image(), ValueError, "the input is on cpu", "on cuda:0", "x.to('cuda:0')")
    refused(make(), image().cuda(), ValueError, "the input is on cuda:0", "model.to('cuda:0')")


@pytest.mark.parametrize("rank", [0, -1, 2.5, True, "all"])
def test_a_rank_that_is_none(rank):
    with pytest.raises(ValueError, match=rf"rank={rank!r}.* give at least 1, or None for all"):
        specxai.explain(make(), image(), layer="2", rank=rank)
    with pytest.raises(ValueError, match=rf"rank must be a positive integer, or None for all; got {rank!r}"):
        specxai.svd(specxai.linearize(make(), image()).split("2").right, rank=rank)


def test_a_rank_beyond_the_operator():
    local = specxai.linearize(make(), image())
    with pytest.raises(ValueError, match=r"rank 65 is out of range .* it has 64 singular values; give at most that"):
        specxai.svd(local.split("2").right, rank=65)
    # `explain` has a default rank, which must suit a narrow layer too: it takes what there is.
    assert len(specxai.explain(local, layer="2", rank=65)) <= 64


@pytest.mark.parametrize("method", ["auto", "exact", "krylov", "subspace"])
def test_an_operator_that_is_zero_has_no_components(method):
    def close_all_gates(net):
        net[0].weight.zero_()
        net[1].bias.fill_(-1)
        net[0].bias.zero_()

    local = specxai.linearize(changed(close_all_gates), image())
    found = specxai.svd(local.split("2").right, rank=3, method=method)
    assert (len(found.S), float(found.error)) == (0, 0.0)
    e = specxai.explain(local, layer="2", rank=3, method=method)
    assert len(e) == 0
    assert e.remainder == 0
    assert e.output == pytest.approx(e.bias)
    assert "0 components" in e.summary()


def test_complex_numbers():
    refused(make(), image().to(torch.complex64), TypeError, "the input is torch.complex64", "real")
    refused(ComplexWeights().eval(), torch.randn(1, 8), TypeError, "phase is torch.complex64")
    with pytest.raises(ValueError, match=r"real floating dtype, got torch\.complex64"):
        specxai.operators.DenseOperator(torch.zeros(2, 2, dtype=torch.complex64))


@pytest.mark.parametrize("call", [
    lambda local: local.jacobian @ torch.ones(64),
    lambda local: local.jacobian.T @ torch.ones(3),
    lambda local: local.jacobian.to_dense(),
    lambda local: specxai.svd(local.split("2").right, rank=2),
    lambda local: specxai.explain(local, layer="2"),
], ids=["product", "adjoint", "dense", "svd", "explain"])
def test_a_memory_bound_that_is_too_small(call):
    message = r"max_memory is 100 bytes, but .* needs [\d,]+ .*give at least that"
    with pytest.raises(ValueError, match=message) as raised:
        call(specxai.linearize(make(), image(), max_memory=100))
    assert "\n" not in str(raised.value)


def test_the_memory_that_line_asks_for_is_enough():
    with pytest.raises(ValueError, match="needs") as raised:
        specxai.linearize(make(), image(), max_memory=1).jacobian.to_dense()
    enough = int(str(raised.value).partition("needs ")[2].split()[0].replace(",", ""))
    local = specxai.linearize(make(), image(), max_memory=enough)
    assert local.jacobian.to_dense().shape == (3, 64)


@pytest.mark.parametrize("place", ["file/e.safetensors", "file/e.npz"])
def test_a_result_that_cannot_be_saved(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    e = specxai.explain(make(), image(), layer="2", rank=1)
    with pytest.raises(OSError, match=r"cannot write .* is a file, not a folder; choose another place"):
        e.save(tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("model, x, error", [
    (lambda x: x, image(), TypeError), (make(), [0.0], TypeError), (make(), image().numpy(), TypeError),
    (make(), torch.randn(1, 1, 4, 4), CaptureError),
], ids=["no module", "list", "array", "another size"])
def test_what_is_no_model_or_no_input(model, x, error):
    with pytest.raises(error) as raised:
        specxai.linearize(model, x)
    assert "\n" not in str(raised.value)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


class ComplexOutput(nn.Module):
    def forward(self, x):
        return x * 1j


@pytest.mark.parametrize("model", [Spectrum(), ComplexOutput()], ids=["inside", "output"])
def test_complex_numbers_inside_the_model(model):
    with pytest.raises(CaptureError, match=r"complex numbers .* real and imaginary parts as channels"):
        specxai.linearize(model.eval(), torch.randn(1, 8))


def test_a_memory_bound_that_is_no_number():
    with pytest.raises(TypeError, match=r"max_memory is a number of bytes, such as 2 << 30; got '2GB'"):
        specxai.linearize(make(), image(), max_memory="2GB")


def test_an_input_without_values():
    with pytest.raises(ValueError, match="meta device"):
        specxai.linearize(nn.ReLU().eval(), torch.zeros(1, 3, device="meta"))


def test_a_sparse_input_and_an_array():
    with pytest.raises(TypeError, match=r"pass x\.to_dense\(\)"):
        specxai.linearize(make(), image().to_sparse())
    with pytest.raises(TypeError, match=r"multiplies torch tensors, got ndarray; convert it by torch\.as_tensor"):
        specxai.linearize(make(), image()).jacobian @ image().numpy().flatten()


def test_a_lazy_module_before_its_first_input():
    with pytest.raises(ValueError, match=r"parameter weight has no values yet .* run the model once") as raised:
        specxai.linearize(nn.LazyLinear(3).eval(), torch.ones(1, 4))
    assert "\n" not in str(raised.value)


def test_an_op_that_torch_cannot_differentiate():
    class Zeta(nn.Module):
        def forward(self, x):
            return torch.special.zeta(x, 2 + x)

    with pytest.raises(CaptureError, match="special_zeta has no rule here and torch cannot differentiate it") as raised:
        specxai.linearize(Zeta().eval(), torch.ones(1, 4))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_what_is_finite(dtype):
    most = torch.finfo(dtype).max
    for numbers, wanted in (([], True), ([most] * 3, True), ([most, -most, 1.0], True), ([1.0, torch.inf], False),
                            ([torch.inf, -torch.inf], False), ([most, most, torch.nan], False)):
        assert is_finite(torch.tensor(numbers, dtype=dtype)) is wanted, numbers
    assert is_finite(torch.full((2, 2), most, dtype=dtype).to_sparse())
