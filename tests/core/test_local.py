"""The affine map: J, L, R, bypass and both ways to the bias, against torch.func on whole nets."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import specxai
from nets import NETS, build


@pytest.fixture(params=NETS)
def net(request) -> tuple[nn.Module, torch.Tensor]:
    return build(request.param)


def dense(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    jacobian = torch.func.jacrev(model)(x)
    return jacobian.reshape(-1, x.numel()).detach()


def test_jacobian_is_torchs(net):
    model, x = net
    local = specxai.linearize(model, x)
    wanted = dense(model, x)
    assert local.jacobian.shape == wanted.shape
    assert (local.jacobian.to_dense() - wanted).norm() <= 1e-13 * wanted.norm()
    assert (local.jacobian.T.to_dense() - wanted.T).norm() <= 1e-13 * wanted.norm()
    assert torch.equal(local.output, model(x).detach())


def test_bias_both_ways(net):
    model, x = net
    local = specxai.linearize(model, x)
    parts = local.bias_contributions()
    assert all(part.shape == local.output.shape for part in parts.values())
    assert (sum(parts.values()) - local.bias).norm() <= 1e-13 * local.output.norm()
    assert local.exactness <= 1e-13
    for target in (1, (0, 1), torch.tensor([[1.0, -1.0] + [0.0] * (local.output.numel() - 2)])):
        weights = torch.zeros_like(local.output)
        weights[0, 1] = 1
        weights = target.to(weights) if isinstance(target, torch.Tensor) else weights
        got = local.bias_contributions(target)
        assert got == pytest.approx({name: float((weights * part).sum()) for name, part in parts.items()}, abs=1e-13)


def test_layers_with_a_bias_are_the_ones_named():
    model, x = build("skip")
    # The batch norm's shift, the head, and the constant subtracted in the model's own forward().
    assert set(specxai.linearize(model, x).bias_contributions()) == {"stem", "body.1", "head", "sub"}


def test_exactness_sees_a_wrong_offset(net):
    local = specxai.linearize(*net)
    node = next(n for n in reversed(local.graph.nodes.values()) if n.offset is not None)
    object.__setattr__(node, "offset", node.offset + 0.1)
    assert local.exactness > 1e-3


def test_split_at_every_layer(net):
    model, x = net
    local = specxai.linearize(model, x)
    wanted, around = dense(model, x), 0
    for layer in local.layers:
        s = local.split(layer)
        assert s.shape == s.value.shape
        assert s.right.shape == (s.value.numel(), x.numel())
        assert s.left.shape == (local.output.numel(), s.value.numel())
        around += not s.bypass.is_zero
        J = s.left @ s.right + s.bypass
        assert (J.input_shape, J.output_shape) == (x.shape, local.output.shape)
        assert (J.to_dense() - wanted).norm() <= 1e-13 * wanted.norm(), layer
        assert (J.T.to_dense() - wanted.T).norm() <= 1e-13 * wanted.norm(), layer
    assert (around > 0) == (type(model).__name__ in ("Skip", "Branches"))


def test_bypass_is_what_is_left_when_the_layer_is_held():
    model, x = build("branches")
    s = specxai.linearize(model, x).split("deep")
    with torch.no_grad():
        slope = torch.ones(1, 3).to(x)
        gate = torch.where(model.right(x) > 0, slope, 0.01 * slope).flatten()
        wanted = model.head.weight[:, 5:] @ torch.diag(gate) @ model.right.weight
    assert (s.bypass.to_dense() - wanted).norm() <= 1e-14


def test_module_objects_name_layers():
    model, x = build("skip")
    local = specxai.linearize(model, x)
    assert local.split(model.body[1]).layer == "body.1"
    with pytest.raises(specxai.errors.LayerError, match="called 3 times; name one of relu#1, relu#2, relu#3"):
        local.split(model.relu)
    with pytest.raises(ValueError, match="this ReLU is not a layer"):
        local.split(nn.ReLU())
    with pytest.raises(ValueError, match=r"no layer 'bdy.1' .* did you mean body.1"):
        local.split("bdy.1")


def test_a_model_without_submodules_has_no_layers():
    with pytest.raises(ValueError, match=r"no submodules to split at; wrap it"):
        specxai.linearize(nn.Linear(3, 2).eval(), torch.ones(1, 3)).split("weight")


def test_run_tail_is_the_real_network():
    model, x = build("skip")
    local = specxai.linearize(model, x)
    z = torch.randn_like(local.split("relu#2").value)
    with torch.no_grad():
        wanted = model.head(torch.relu(model.pool(z) - 0.1).flatten(1))
    assert torch.allclose(local.run_tail("relu#2", z), wanted, rtol=1e-14)
    assert torch.allclose(local.run_tail("relu#2", z.flatten()), wanted, rtol=1e-14)
    with pytest.raises(ValueError, match="the layer's output is"):
        local.run_tail("relu#2", z[:, :1])


def test_spectral_ablation():
    """Removing the top singular directions of R from z moves the real output as J says, within the region."""
    model, x = build("skip")
    local = specxai.linearize(model, x)
    split = local.split("stem")
    U, S, Vh = torch.linalg.svd(split.right.to_dense(), full_matrices=False)
    z, size = split.value.flatten(), 1e-6
    step = size * U[:, :3] @ (S[:3] * (Vh[:3] @ x.flatten()))
    moved = local.run_tail("stem", z - step)
    predicted = local.output - (split.left @ step).reshape(local.output.shape)
    assert (moved - predicted).norm() <= 1e-14 * local.output.norm() < 1e-5 * (moved - local.output).norm()
    # Far outside the region the prediction fails: the test can tell.
    far = local.run_tail("stem", z - 1e7 * step)
    linear = local.output - 1e7 * (split.left @ step).reshape(local.output.shape)
    assert (far - linear).norm() > 1e-3 * (far - local.output).norm()


def test_products_within_a_memory_bound_are_the_same():
    model, x = build("convolutional")
    wide = specxai.linearize(model, x, backend="reference")
    bound = wide.jacobian.product_bytes * 3
    narrow = specxai.linearize(model, x, max_memory=bound, backend="reference")
    assert narrow.jacobian.block_size == 3 < wide.jacobian.block_size
    V = torch.randn(x.numel(), 10, dtype=x.dtype)
    assert torch.allclose(narrow.jacobian @ V, wide.jacobian @ V, rtol=1e-13)
    assert narrow.bias_contributions().keys() == wide.bias_contributions().keys()


def test_report_says_what_runs(net):
    local = specxai.linearize(*net)
    text = local.report()
    for wanted in (local.model_name, f"backend {local.backend}", "exactness", "GFLOP", "generic nodes", "none"):
        assert wanted in text
    if local.backend == "native":
        live = int(text.rpartition("sum")[2].split()[0].replace(",", ""))
        assert 0 < live <= sum(node.offset.numel() if node.offset is not None else 10**9
                               for node in local.graph.nodes.values() if node.resets)
    assert local.model_name in repr(local)


def test_output_of_any_shape():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    local = specxai.linearize(model, torch.randn(1, 1, 5, 4))
    assert local.bias.shape == local.output.shape == (1, 2, 3, 2)
    assert local.jacobian.output_shape == (1, 2, 3, 2)
    assert local.jacobian.input_shape == (1, 1, 5, 4)


def test_constant_models_have_a_zero_jacobian():
    class Constant(nn.Module):
        def forward(self, x):
            return 0 * x + 3

    local = specxai.linearize(Constant().eval(), torch.randn(1, 4))
    assert not local.jacobian.to_dense().any()
    assert torch.equal(local.bias, torch.full((1, 4), 3.0))


@pytest.mark.parametrize("target, error, message", [
    (9, IndexError, "out of range"), ((0, 9), IndexError, "out of range"), (torch.ones(3), ValueError, "shape"),
])
def test_bad_targets(target, error, message):
    with pytest.raises(error, match=message):
        specxai.linearize(*build("perceptron")).bias_contributions(target)


def test_bad_policy_and_memory():
    model, x = build("perceptron")
    with pytest.raises(ValueError, match="unknown gate policy 'soft'; choose tangent"):
        specxai.linearize(model, x, gates="soft")
    needed = specxai.linearize(model, x).jacobian.product_bytes
    with pytest.raises(ValueError, match=f"max_memory is {needed - 1:,} bytes, .* needs {needed:,} "):
        specxai.linearize(model, x, max_memory=needed - 1)
    narrow = specxai.linearize(model, x, backend="reference", max_memory=needed).jacobian
    assert narrow.block_size == 1
    assert torch.allclose(narrow.to_dense(), specxai.linearize(model, x, max_memory=needed).jacobian.to_dense())
    with pytest.raises(ValueError, match="unknown backend 'tpu'; choose auto, reference, native"):
        specxai.linearize(model, x, backend="tpu")


@pytest.mark.parametrize("first", [nn.Identity(), nn.Flatten()])
def test_the_input_itself_as_a_layer(first):
    """L is J and R the identity: nothing goes round."""
    model, x = nn.Sequential(first, nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval(), torch.randn(1, 6)
    split = specxai.linearize(model, x).split("0")
    assert split.bypass.is_zero
    assert torch.equal(split.right.to_dense(), torch.eye(6))
    e = specxai.explain(model, x, layer="0", target=0, rank=None)
    assert e.completeness <= 1e-6


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("end", [torch.sum, torch.max, lambda y: y.reshape(2, 4), lambda y: y.squeeze(0)])
def test_outputs_without_a_batch_axis(end, backend):
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(5, 8), nn.ReLU())

        def forward(self, x):
            return end(self.inner(x))

    model, x = Ends().eval().double(), torch.randn(1, 5).double()
    local = specxai.linearize(model, x, backend=backend)
    assert local.exactness <= 1e-14
    assert local.jacobian.T.input_shape == local.output.shape
    e = specxai.explain(local, layer="inner", rank=None)
    assert e.output == pytest.approx(local.output.max().item())
    assert e.completeness <= 1e-13


def test_a_dense_matrix_that_no_memory_holds():
    local = specxai.linearize(nn.ReLU().eval(), torch.ones(1, 10**7))
    with pytest.raises(MemoryError, match=r"the dense matrix .* needs [\d,.]+ GiB, and there are .*; use its products"):
        local.jacobian.to_dense()
    with pytest.raises(MemoryError, match=r"an exact SVD .* needs .*; give rank= or tol="):
        specxai.svd(local.jacobian)


def test_a_tolerance_alone_decides_the_rank():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 2)).eval()
    x = torch.randn(1, 200)
    loose, tight, default = (specxai.explain(net, x, layer="1", **kw) for kw in ({"tol": 0.5}, {"tol": 0.05}, {}))
    assert len(loose) < len(default) == 50 < len(tight)
    assert len(specxai.explain(net, x, layer="1", rank=3, tol=0.05)) == 3


@pytest.fixture
def nothing_kept(monkeypatch):
    monkeypatch.setattr("specxai.affine.local.KEPT_VALUES", 0)


def test_values_that_are_not_kept_are_found_again(nothing_kept):
    model, x = build("perceptron")
    given = x.clone()
    local = specxai.linearize(model, given)
    flip = local.first_flip(torch.ones_like(x))
    given.zero_()  # the caller's own business
    assert local._kept is None
    layer = local.layers[1]
    assert torch.equal(local.split(layer).value, model[:2](x).detach())
    assert local.first_flip(torch.ones_like(x)) == flip
    assert torch.allclose(local.run_tail(layer, local.split(layer).value), local.output)


class Smooth(nn.Module):
    """Every kind of node whose offset is as large as a value."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.last = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x):
        h = self.first(self.norm(x))
        h = (h @ h.mT).softmax(-1) @ (h.tanh() * h + h.pow(3))
        return self.last(torch.nn.functional.gelu(h).cumprod(0) - 0.5)


@pytest.mark.parametrize("gates", ["tangent", "frozen"])
def test_offsets_that_are_not_kept_are_found_again(gates, monkeypatch):
    torch.manual_seed(0)
    model, x = Smooth().double().eval(), torch.randn(1, 3, 6, dtype=torch.float64)
    whole = specxai.linearize(model, x, gates=gates)
    monkeypatch.setattr("specxai.affine.local.KEPT_VALUES", 0)
    light = specxai.linearize(model, x, gates=gates)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    held = [node.offset for node in light.graph.nodes.values() if node.offset is not None]
    assert {offset.data_ptr() for offset in held if offset.untyped_storage().nbytes() > 8} <= weights
    assert len(held) < sum(node.offset is not None for node in whole.graph.nodes.values())
    assert light.exactness == whole.exactness < 1e-14
    parts, wanted = light.bias_contributions(), whole.bias_contributions()
    assert parts.keys() == wanted.keys()
    assert all(torch.equal(parts[name], wanted[name]) for name in wanted)
    assert light.bias_contributions((1, 0)) == whole.bias_contributions((1, 0))


def test_offsets_of_weighted_layers_need_no_second_run(nothing_kept, monkeypatch):
    local = specxai.linearize(*build("skip"))
    monkeypatch.setattr(type(local), "_values", lambda local: pytest.fail("the values were computed again"))
    assert set(local.bias_contributions()) == {"stem", "body.1", "head", "sub"}
    assert local.exactness < 1e-12


def test_offsets_that_are_not_kept_belong_to_the_weights_of_then(nothing_kept):
    model, x = Smooth().double().eval(), torch.randn(1, 3, 6, dtype=torch.float64)
    local = specxai.linearize(model, x)
    model.first.weight.data[0, 0] += 1
    with pytest.raises(specxai.errors.StaleError, match=r"first\.weight has changed"):
        local.bias_contributions()


def test_nodes_hold_no_values(nothing_kept):
    """Every value of a large net would stay in memory with them."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(),
                          nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.randn(1, 3, 9, 9)
    captured, seen = specxai.capture(model, x), []
    run = captured.program.run

    def watched(*args):
        values = run(*args)
        seen.extend(weakref.ref(values[i]) for i in captured.program.active if isinstance(values[i], torch.Tensor))
        return values

    object.__setattr__(captured.program, "run", watched)
    local = captured.linearize(x)
    local.jacobian.to_dense()
    gc.collect()
    alive = [value().shape for value in seen if value() is not None]
    assert alive == [local.input.shape], "the input itself"
