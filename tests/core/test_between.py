"""Operators between layers and positions against torch's own derivative of the part between them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import LayerError

D, T, LAYERS = 8, 6, 4


class Block(nn.Module):
    """Causal attention and a gated MLP on a residual stream."""

    def __init__(self, as_tuple: bool = False):
        super().__init__()
        self.norm, self.other = nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.as_tuple = as_tuple

    def forward(self, h):
        q, k, v = self.qkv(self.norm(h)).reshape(1, -1, 3, 2, D // 2).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).reshape(h.shape))
        h = h + self.down(nn.functional.silu(self.up(self.other(h))))
        return (h, None, h.mean()) if self.as_tuple else h


class Decoder(nn.Module):
    def __init__(self, as_tuple: bool = False):
        super().__init__()
        self.embed = nn.Embedding(11, D)
        self.layers = nn.ModuleList(Block(as_tuple) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, 11, bias=False)

    def run(self, h, layers):
        for block in layers:
            h = block(h)
            h = h[0] if block.as_tuple else h
        return h

    def forward(self, ids):
        return self.head(self.norm(self.run(self.embed(ids), self.layers)))


def make(as_tuple=False):
    torch.manual_seed(0)
    model = Decoder(as_tuple).double().eval()
    return model, torch.randint(11, (1, T))


def dense(model, ids, source: int, target: int) -> torch.Tensor:
    """∂ layer `target` / ∂ layer `source` as (T, D, T, D), by autograd."""
    with torch.no_grad():
        h = model.run(model.embed(ids), model.layers[:source + 1])
    J = torch.autograd.functional.jacobian(lambda h: model.run(h, model.layers[source + 1:target + 1]), h)
    return J.reshape(T, D, T, D)


def close(op, wanted, m, n):
    assert op.shape == (m, n)
    torch.testing.assert_close(op.to_dense(), wanted.reshape(m, n), rtol=1e-11, atol=1e-12)
    X, Y = torch.randn(n, 3, dtype=torch.float64), torch.randn(m, 3, dtype=torch.float64)
    torch.testing.assert_close((op @ X * Y).sum(), (X * op.rmatmat(Y)).sum())


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
@pytest.mark.parametrize("source, target", [(0, 3), (1, 2), (2, 3)])
def test_between_layers_at_positions(source, target, backend):
    model, ids = make()
    local = specxai.linearize(model, ids, backend=backend)
    J = dense(model, ids, source, target)
    ends = f"layers.{source}", model.layers[target]
    close(local.operator(*ends), J, T * D, T * D)
    for chosen, of_them in [(-1, [5]), ([-1], [5]), ([0, 3], [0, 3]), (slice(1, None, 2), [1, 3, 5]),
                            (range(2), [0, 1]), (torch.tensor([4, 2]), [4, 2]), (torch.arange(T) > 3, [4, 5])]:
        n = len(of_them) * D
        shape = (D,) if isinstance(chosen, int) else (len(of_them), D)
        op = local.operator(*ends, source_positions=chosen)
        close(op, J[:, :, of_them], T * D, n)
        assert (op.input_shape, op.output_shape) == (shape, (1, T, D))
        op = local.operator(*ends, target_positions=chosen)
        close(op, J[of_them], n, T * D)
        assert (op.input_shape, op.output_shape) == ((1, T, D), shape)


@pytest.mark.parametrize("backend", ["auto", "reference", "torch"])
def test_sums_over_positions(backend):
    model, ids = make()
    local, J = specxai.linearize(model, ids, backend=backend), dense(model, ids, 0, 2)
    ends, some = ("layers.0", "layers.2"), specxai.summed(slice(1, -1))
    close(local.operator(*ends, target_positions="sum"), J.sum(0), D, T * D)
    close(local.operator(*ends, source_positions="sum"), J.sum(2), T * D, D)
    close(local.operator(*ends, source_positions=some, target_positions=some), J[1:-1, :, 1:-1].sum((0, 2)), D, D)
    op = local.operator(*ends, source_positions=[0], target_positions=specxai.summed())
    close(op, J[:, :, 0].sum(0), D, D)
    assert (op.input_shape, op.output_shape) == ((1, D), (D,))
    found = specxai.svd(local.operator(*ends, source_positions=some, target_positions=some), rank=3)
    torch.testing.assert_close(found.S, torch.linalg.svdvals(J[1:-1, :, 1:-1].sum((0, 2)))[:3])


def test_from_the_input_and_to_the_output():
    model, ids = make()
    local = specxai.linearize(model, ids, output=lambda logits: logits[:, -1])
    J = local.jacobian.to_dense().reshape(11, T, D)
    close(local.operator(source_positions=[2, 3]), J[:, 2:4], 11, 2 * D)
    close(local.operator(source="layers.1"), specxai.linearize(
        model, ids, output=lambda logits: logits[:, -1]).split("layers.1").left.to_dense(), 11, T * D)
    close(local.operator(target="layers.0", target_positions=-1), local.split("layers.0").right.to_dense()[-D:], D,
          T * D)
    assert local.operator("layers.3", source_positions=0).to_dense().abs().max() == 0  # causal


def test_the_first_of_what_a_layer_returns():
    model, ids = make(as_tuple=True)
    local = specxai.linearize(model, ids)
    close(local.operator("layers.0", model.layers[2]), dense(model, ids, 0, 2), T * D, T * D)
    close(local.split("layers.0").left, local.operator("layers.0").to_dense(), T * 11, T * D)  # its only tensor


def test_the_first_of_several_tensors():
    class Twice(nn.Module):
        def forward(self, x):
            return 3 * x, 5 * x

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = Twice()

        def forward(self, x):
            return sum(self.twice(x))

    local = specxai.linearize(Sum().eval(), torch.ones(1, 2))
    for layer in ("twice", local.captured.model.twice):
        assert torch.equal(local.operator(target=layer).to_dense(), 3 * torch.eye(2))
    with pytest.raises(LayerError, match="returns several tensors"):
        local.split("twice")


def test_a_layer_to_itself_is_the_identity():
    model, ids = make()
    op = specxai.linearize(model, ids).operator("layers.1", "layers.1", source_positions=[0, 1], target_positions=1)
    close(op, torch.eye(2 * D, dtype=torch.float64)[D:], D, 2 * D)


def test_wide_blocks_stay_within_the_memory():
    model, ids = make()
    wide = specxai.linearize(model, ids, backend="torch")
    op = wide.operator("layers.0", "layers.2", source_positions="sum", target_positions="sum")
    op.max_memory = op._bytes(op._products, 5)
    assert op.block_size == 5
    J = dense(model, ids, 0, 2).sum((0, 2))
    torch.testing.assert_close(op.matmat(torch.eye(D, dtype=torch.float64)), J)


@pytest.mark.parametrize("options, error, words", [
    ({"source": "layer.1"}, LayerError, ("no layer 'layer.1'", "did you mean", "layers.1")),
    ({"source": "layers.2", "target": "layers.1"}, LayerError, ("nothing leads from layer 'layers.2'", "before")),
    ({"target": nn.Linear(1, 1)}, LayerError, ("this Linear is not a layer",)),
    ({"source": "layers.1", "source_positions": 6}, ValueError, ("position 6 is out of range", "'layers.1'", "0 to 5")),
    ({"target_positions": [0, -7]}, ValueError, ("position -7 is out of range", "the output has 6")),
    ({"target_positions": [0, 0]}, ValueError, ("each once",)),
    ({"target_positions": []}, ValueError, ("at least one",)),
    ({"target_positions": "mean"}, ValueError, ("positions='mean'", "'sum'")),
    ({"target_positions": 0.5}, TypeError, ("positions=0.5", "integers")),
])
def test_bad_input(options, error, words):
    model, ids = make()
    local = specxai.linearize(model, ids)
    with pytest.raises(error) as raised:
        local.operator(**options)
    assert "\n" not in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_positions_of_what_has_none():
    local = specxai.linearize(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"layer '0' has shape \(1, 4\), and positions are those of axis 1"):
        local.operator(target="0", target_positions=0)


def test_cotangents_that_pass_layers_between():
    """One adjoint product gives every layer's block, summed over positions: what an operator from each layer has."""
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 12, dropout=0, batch_first=True, norm_first=True)
                          for _ in range(4))).double().eval()
    local = specxai.linearize(net, torch.randn(1, 5, 8, dtype=torch.float64))
    at = specxai.summed([1, 3])
    op = local.operator("0", "3", source_positions=at, target_positions=at, taps=["1", "2", "3"])
    assert op.shape == (8, 8)
    found = {}
    names = {local.captured.program.layer(name)[1]: name for name in "123"}

    def passed(step, cotangents):
        found[names[step]] = cotangents.reshape(5, 8, -1)[[1, 3]].sum(0)

    found["0"] = op.pull_back(torch.eye(8, dtype=torch.float64), passed)
    for name in "0123":
        alone = local.operator(name, "3", source_positions=at, target_positions=at) if name != "3" else None
        want = alone.rmatmat(torch.eye(8, dtype=torch.float64)) if alone else 2 * torch.eye(8, dtype=torch.float64)
        assert torch.allclose(found[name], want, rtol=1e-12, atol=1e-12), name


def test_a_block_to_pull_back_must_fit():
    local = specxai.linearize(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), torch.ones(1, 3))
    op = local.operator("0", "1", taps=["1"])
    with pytest.raises(ValueError, match=r"Y has shape \(3, 2\); an operator \(4, 4\) takes \(4, k\)"):
        op.pull_back(torch.ones(3, 2), print)
    op.block_size = 2
    with pytest.raises(ValueError, match="give them in blocks of block_size"):
        op.pull_back(torch.ones(4, 3), print)


def test_one_layer_to_hold_or_to_pass_is_a_list_of_one():
    local = specxai.linearize(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.ones(1, 3))
    step = local.captured.program.layer("1")[1]
    found = {}
    local.operator(taps="1").pull_back(torch.eye(2), lambda at, block: found.setdefault(at, block.clone()))
    assert list(found) == [step]
    assert not local.operator(held="1").to_dense().any()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_a_tap_that_lies_elsewhere_is_left_out(backend):
    local = specxai.linearize(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval(), torch.ones(1, 3),
                              backend=backend)
    found = []
    local.operator("1", "2", taps=["0"]).pull_back(torch.eye(3), lambda at, block: found.append(at))
    assert found == []
