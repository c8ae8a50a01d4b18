"""Token spectra of small decoders against the dense Jacobian that autograd makes of the model, detached by hand."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import specxai
from specxai.errors import FileError
from specxai.operators import vstack
from specxai.spectral import Contributions, Tokens

T, D = 6, 8


class Decoder(nn.Module):
    """Embeddings (1, T, D) -> (1, T, out): causal attention and a gated MLP, with RMS norms and a head.

    detached   patterns, scales and activated factors are constants, as frozen gates have it
    """

    def __init__(self, out: int = 5, relu: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.gate, self.up, self.down = (nn.Linear(D, D) for _ in range(6))
        self.head, self.relu = nn.Linear(D, out), relu

    def forward(self, x, detached: bool = False):
        def held(value):
            return value.detach() if detached else value

        def norm(x):
            return x * held(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))

        h = norm(x)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (self.q(h) @ self.k(h).mT).masked_fill(later, float("-inf"))
        x = x + held(scores.softmax(-1)) @ self.v(h)
        h = norm(x)
        if self.relu:
            return self.head(x + self.down(torch.relu(self.up(h))))
        return self.head(x + self.down(held(nn.functional.silu(self.gate(h))) * self.up(h)))


@pytest.fixture
def model():
    return Decoder().double().eval()


@pytest.fixture
def x():
    return torch.randn(1, T, D, dtype=torch.float64)


def dense(model, x, positions, detached=True) -> torch.Tensor:
    """(T, m, D) by autograd."""
    J = torch.autograd.functional.jacobian(lambda x: model(x, detached=detached)[0, positions].flatten(), x)
    return J[:, 0].transpose(0, 1)


@pytest.mark.parametrize("position, positions", [(-1, [T - 1]), (2, [2]), (slice(1, 4), [1, 2, 3]), ([5, 0], [5, 0]),
                                                 (slice(None), list(range(T)))])
@pytest.mark.parametrize("method", ["exact", "range"])
def test_triplets_are_those_of_the_detached_model(model, x, position, positions, method):
    local = specxai.linearize(model, x, gates="frozen")
    t, J = specxai.tokens(local, position, rank=4, method=method), dense(model, x, positions)
    S = torch.linalg.svdvals(J)[:, :4]
    assert t.positions == tuple(positions)
    assert t.U.shape == (T, 5 * len(positions), 4)
    assert t.V.shape == (T, D, 4)
    assert (t.S - S).abs().max() <= 1e-10 * S.max()
    assert t.worst_residual <= 1e-10
    true = torch.maximum((J @ t.V - t.U * t.S[:, None]).norm(dim=1), (J.mT @ t.U - t.V * t.S[:, None]).norm(dim=1))
    assert (true <= t.residuals + 1e-14).all()
    for token in (0, -1):
        assert (t.jacobian[token] - J[token]).abs().max() <= 1e-10
    reach = torch.tensor([p <= max(positions) for p in range(T)])  # causal: later tokens bring nothing
    assert bool((t.S[~reach] == 0).all())
    assert bool((t.S[reach] > 0).any(1).all())
    along = (t.V * x[0, :, :, None]).sum(1)
    assert bool((along >= 0).all())


def test_tangent_gates_give_the_true_jacobian(x):
    model = Decoder(relu=True).double().eval()
    t = specxai.tokens(specxai.linearize(model, x), rank=3)
    S = torch.linalg.svdvals(dense(model, x, [T - 1], detached=False))[:, :3]
    assert (t.S - S).abs().max() <= 1e-10 * S.max()
    assert t.gates == "tangent"


def test_an_output_of_one_position(model, x):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x)[:, -1]

    t = specxai.tokens(specxai.linearize(Last().eval(), x, gates="frozen"), rank=2)
    assert (t.S - torch.linalg.svdvals(dense(model, x, [T - 1]))[:, :2]).abs().max() <= 1e-10


def test_a_wide_vocabulary_goes_through_the_narrowest_cut(x):
    """300 outputs at the last position through 8 hidden units there: 8 adjoint columns, not 300."""
    model = Decoder(out=300).double().eval()
    t, J = specxai.tokens(specxai.linearize(model, x, gates="frozen"), rank=3), dense(model, x, [T - 1])
    assert t.settings["width"] == D
    assert t.products < 100
    assert (t.S - torch.linalg.svdvals(J)[:, :3]).abs().max() <= 1e-10 * t.S.max()
    assert ((J.mT @ t.U) - t.V * t.S[:, None]).abs().max() <= 1e-10 * t.S.max()


@pytest.mark.parametrize("method", ["auto", "exact", "range"])
def test_an_output_behind_closed_gates_has_no_triplets(x, method):
    closed = nn.Sequential(nn.Linear(D, D), nn.Threshold(1e3, 0.0), nn.Linear(D, 5)).double().eval()
    t = specxai.tokens(specxai.linearize(closed, x), rank=3, method=method)
    assert t.S.shape == (T, 3)
    for zeros in (t.S, t.U, t.V, t.residuals, t.norms):
        assert not zeros.any()
    assert t.worst_residual == 0
    assert t.contributions(0).completeness <= 1e-15


@pytest.mark.parametrize("target", [None, 3, (2,), torch.tensor([1.0, 0.0, -1.0, 0.5, 0.0])])
def test_contributions_add_up_to_the_target(model, x, target):
    t = specxai.tokens(specxai.linearize(model, x, gates="frozen"), rank=2)
    found, y, J = t.contributions(target), model(x)[0, -1].detach(), dense(model, x, [T - 1])
    w = torch.nn.functional.one_hot(y.argmax(), 5).double() if target is None else torch.eye(5).double()[
        target] if not isinstance(target, torch.Tensor) else target.double()
    assert torch.allclose(found.alpha, torch.einsum("m,tmd,td->t", w, J, x[0]), atol=1e-10)
    assert abs(found.output - float(w.flatten() @ y)) <= 1e-10
    assert found.completeness <= 1e-10
    assert abs(float(found.alpha.sum()) + found.bias - found.output) <= 1e-10


def test_contributions_to_one_of_several_positions(model, x):
    t = specxai.tokens(specxai.linearize(model, x, gates="frozen"), [1, 4], rank=2)
    found = t.contributions((1, 2))
    assert abs(found.output - float(model(x).detach()[0, 4, 2])) <= 1e-10
    assert found.completeness <= 1e-10
    assert not found.alpha[5:].any()
    assert found.label == "output[1, 2]"


def test_less_memory_gives_the_same(model, x):
    local = specxai.linearize(model, x, gates="frozen")
    whole = specxai.tokens(local, rank=2)
    few = specxai.tokens(local, rank=2, max_memory=2 * 8 * (2 * T * (5 + D) + 2 * T * D * 41 + D * 8 * 3))
    assert few.products > whole.products
    assert torch.allclose(few.S, whole.S, rtol=1e-12, atol=1e-14)
    with pytest.raises(MemoryError, match="2 triplets of each of 6 tokens need at least"):
        specxai.tokens(local, rank=2, max_memory=1000)


def test_token_ids_are_read_through_their_embedding():
    class Ids(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.decoder = nn.Embedding(10, D), Decoder()

        def forward(self, ids):
            return self.decoder(self.embed(ids))

    model, ids = Ids().double().eval(), torch.tensor([[3, 1, 4, 1]])
    t = specxai.tokens(specxai.linearize(model, ids, gates="frozen"), rank=2)
    x = model.embed(ids).detach()
    S = torch.linalg.svdvals(dense(model.decoder, x, [3]))[:, :2]
    assert torch.equal(t.x, x[0])
    assert (t.S - S).abs().max() <= 1e-10


def test_files_and_pickles(model, x, tmp_path):
    local = specxai.linearize(model, x, gates="frozen")
    t = specxai.tokens(local, [0, 3], rank=2)
    t.save(tmp_path / "t.safetensors")
    for back in (Tokens.load(tmp_path / "t.safetensors"), pickle.loads(pickle.dumps(t))):
        assert torch.equal(back.U, t.U)
        assert back.positions == (0, 3)
        assert back.local is None
        assert repr(back) == repr(t)
        with pytest.raises(ValueError, match="no Local"):
            back.contributions((0, 0))
        assert replace(back, local=local).contributions((0, 0)).completeness < 1e-10
    replace(t, positions=(0, 1, 2)).save(tmp_path / "wrong.safetensors")
    with pytest.raises(FileError, match="3 positions"):
        Tokens.load(tmp_path / "wrong.safetensors")


def test_stacked_positions_agree_with_positions_of_their_own(model, x):
    """The Jacobian of two positions is that of one on top of that of the other."""
    local = specxai.linearize(model, x, gates="frozen")
    both = specxai.tokens(local, [1, 4], rank=3)
    J = vstack([local.operator(target_positions=p) for p in (1, 4)]).to_dense()
    assert torch.allclose(J.reshape(10, T, D)[:, 1], both.jacobian[1], atol=1e-12)


def test_contributions_without_terms():
    assert Contributions(torch.zeros(2), 0.0, 0.0, "output").completeness == 0


@pytest.mark.parametrize("kind, give, words", [
    (TypeError, lambda local, model: specxai.tokens(model), "needs a Local, got Decoder"),
    (ValueError, lambda local, model: specxai.tokens(local, rank=0), "rank=0"),
    (ValueError, lambda local, model: specxai.tokens(local, method="krylov"), "auto, exact, range"),
    (ValueError, lambda local, model: specxai.tokens(local, max_memory=-1), "max_memory"),
    (ValueError, lambda local, model: specxai.tokens(local, tol="a"), "tol is relative"),
    (ValueError, lambda local, model: specxai.tokens(local, tol=-1), "tol is relative"),
    (ValueError, lambda local, model: specxai.tokens(local, seed="a"), "seed must be an integer"),
    (IndexError, lambda local, model: specxai.tokens(local, 6), "position 6 does not exist"),
    (ValueError, lambda local, model: specxai.tokens(local, [0, -6]), "names a position twice"),
    (ValueError, lambda local, model: specxai.tokens(local, slice(3, 3)), "names no position"),
    (TypeError, lambda local, model: specxai.tokens(local, "last"), "neither an integer"),
    (IndexError, lambda local, model: specxai.tokens(local).jacobian[6], "token 6 does not exist"),
    (TypeError, lambda local, model: specxai.tokens(local).jacobian[1.5], "a token is an integer"),
    (IndexError, lambda local, model: specxai.tokens(local).contributions(5), "out of range"),
])
def test_bad_input_is_one_clear_line(model, x, kind, give, words):
    with pytest.raises(kind, match=words) as error:
        give(specxai.linearize(model, x, gates="frozen"), model)
    assert "\n" not in str(error.value)


def test_an_image_is_no_sequence_of_tokens():
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    with pytest.raises(ValueError, match=r"embeddings \(1, tokens, d\)"):
        specxai.tokens(specxai.linearize(conv, torch.randn(1, 1, 5, 5)))
    turned = nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ReLU()).eval()
    with pytest.raises(ValueError, match="choose it by linearize"):
        specxai.tokens(specxai.linearize(turned, torch.randn(1, 6, 4)))
