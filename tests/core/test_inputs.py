"""What a model gets beside x: arguments by position and name, token ids, several analysed inputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import specxai
from specxai.capture import recording
from specxai.errors import CaptureError

IDS = torch.tensor([[0, 1, 2]])
MASK = torch.tensor([[1.0, 0.0, 1.0]])


class Tokens(nn.Module):
    """Token and position embeddings, a mask, and keywords as a language model has them."""

    def __init__(self):
        super().__init__()
        self.position, self.token = nn.Embedding(9, 4), nn.Embedding(9, 4)
        self.mix, self.head = nn.Linear(4, 4), nn.Linear(4, 9)
        self.cached = None

    def forward(self, input_ids=None, mask=None, inputs_embeds=None, scale=1.0, use_cache=True, past_key_values=None):
        self.cached = use_cache
        h = self.token(input_ids) if inputs_embeds is None else inputs_embeds
        h = self.mix(h + self.position(torch.arange(h.shape[1])[None])).tanh() * scale
        if mask is not None:
            if mask.sum() > 2:
                h = h + 1
            h = h * mask[..., None]
        return {"loss": None, "logits": self.head(h)}


class Pair(nn.Module):
    """Two inputs and a number."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(3, 5), nn.Linear(2, 5)

    def forward(self, x, y, power=1):
        return self.one(x).tanh() * self.other(y) ** power


def make(cls, dtype=torch.float64):
    torch.manual_seed(0)
    return cls().to(dtype).eval()


def jacobian(function, *inputs):
    parts = torch.autograd.functional.jacobian(function, inputs)
    return torch.cat([part.reshape(-1, x.numel()) for part, x in zip(parts, inputs, strict=True)], 1)


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.fixture
def traces(monkeypatch):
    seen, trace = [], recording.trace
    monkeypatch.setattr(recording, "trace", lambda model, *args: (seen.append(model), trace(model, *args))[1])
    return seen


# Arguments beside x


def test_arguments_by_position_and_by_name():
    model, x, y = make(Pair), torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    for options in ({"args": (y, 2)}, {"args": (y,), "kwargs": {"power": 2}}, {"kwargs": {"y": y, "power": 2}}):
        local = specxai.linearize(model, x, **options)
        close(local.jacobian.to_dense(), jacobian(lambda x: model(x, y, 2), x))
        assert local.agreement < 1e-12
        close(local.output, model(x, y, 2).detach())


@pytest.mark.parametrize("verify", [True, False])
def test_other_values_of_a_side_input_are_never_stale(traces, verify):
    model, x, y = make(Pair), torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    for scale in (1.0, -2.0, 0.0):
        for power in (1, 2):
            local = specxai.linearize(model, x, kwargs={"y": scale * y, "power": power}, verify=verify)
            close(local.jacobian.to_dense(), jacobian(lambda x, s=scale, p=power: model(x, s * y, p), x))
    assert len(traces) == 2  # one for each power


def test_a_side_input_that_decides_what_runs():
    model, mask = make(Tokens), MASK.double()
    captured = specxai.capture(model, IDS, kwargs={"mask": mask})
    assert captured.specialised
    for other in (mask, mask / 2, mask + 1):
        for found in (captured.linearize(IDS, kwargs={"mask": other}),
                      specxai.linearize(model, IDS, kwargs={"mask": other}, verify=False)):
            close(found.output, model(IDS, mask=other)["logits"].detach())


def test_a_side_input_that_its_owner_writes_to():
    model, x, y = make(Pair), torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    local = specxai.linearize(model, x, args=(y,))
    before = y.clone()
    wanted = jacobian(lambda x: model(x, before), x)
    y.zero_()
    close(local.jacobian.to_dense(), wanted)
    close(local.bias.flatten() + wanted @ x.flatten(), local.output.flatten())


def test_a_captured_model_keeps_what_it_was_given():
    model, x, y = make(Pair), torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    captured = specxai.capture(model, x, args=(y,), kwargs={"power": 2})
    close(captured.linearize(2 * x).output, model(2 * x, y, 2).detach())
    close(captured.linearize(x, args=(3 * y,)).output, model(x, 3 * y, 2).detach())
    with pytest.raises(ValueError, match="in more than the values of tensors; capture the model again"):
        captured.linearize(x, kwargs={"power": 3})


def test_a_side_input_that_forward_writes_to():
    class Writes(nn.Module):
        def forward(self, x, mask):
            mask.mul_(2)
            return x * mask

    x, mask = torch.ones(1, 3), torch.tensor([1.0, 2.0, 3.0])
    for _ in range(2):
        local = specxai.linearize(Writes().eval(), x, args=(mask,))
        assert torch.equal(local.jacobian.to_dense(), torch.diag(2 * mask))
    assert mask.tolist() == [1.0, 2.0, 3.0]


def test_a_function_for_the_output_made_anew_is_traced_once(traces):
    model = make(Tokens)
    for position in (0, 0, 1):
        local = specxai.linearize(model, IDS, output=lambda out, p=position: out["logits"][:, p])
        close(local.output, model(IDS)["logits"][:, position].detach())
    for _ in range(2):
        specxai.linearize(model, IDS, output=lambda out: out["logits"][:, -1])
    assert len(traces) <= 4


def test_explain_takes_keywords():
    model = make(Tokens)
    e = specxai.explain(model, IDS, layer="mix", target=(0, 2, 1), rank=None, kwargs={"scale": 2.0})
    assert e.output == pytest.approx(float(model(IDS, scale=2.0)["logits"][0, 2, 1].detach()))
    with pytest.raises(ValueError, match="a Local has its kwargs chosen"):
        specxai.explain(specxai.linearize(model, IDS), layer="mix", kwargs={"scale": 2.0})


# Token ids


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_of_token_ids_the_embeddings_are_x(dtype):
    model = make(Tokens)
    local = specxai.linearize(model, IDS.to(dtype))
    assert model.cached is False
    assert torch.equal(local.input, model.token(IDS).detach())
    close(local.jacobian.to_dense(), jacobian(lambda x: model(inputs_embeds=x)["logits"], local.input))
    assert local.layers[0] == "token"
    assert local.split("token").right.shape == (12, 12)


def test_further_token_ids_trace_nothing(traces):
    model = make(Tokens)
    captured = specxai.capture(model, IDS)
    for ids in (IDS, IDS.flip(1), IDS + 5):
        for local in (captured.linearize(ids), specxai.linearize(model, ids)):
            close(local.output, model(ids)["logits"].detach())
    assert len(traces) == 2
    x = torch.randn(1, 3, 4, dtype=torch.float64)  # embeddings themselves
    close(captured.linearize(x).output, model(inputs_embeds=x)["logits"].detach())


def test_ids_that_are_read_elsewhere_too():
    """A padding mask and a second embedding come from the ids, and the first that reads them is x."""
    class Padded(Tokens):
        def forward(self, ids):
            ids = ids.view(-1, ids.shape[-1])
            h = self.token(ids) * (ids != 0)[..., None] + self.position(ids)
            return self.head(self.mix(h).relu())

    model = make(Padded)
    captured = specxai.capture(model, IDS)
    for ids in (IDS, torch.tensor([[3, 0, 0]])):
        local = captured.linearize(ids)
        close(local.output, model(ids).detach())
        assert local.input.equal(model.token(ids).detach())
        assert local.agreement < 1e-12


def test_an_embedding_that_is_no_module_of_torch():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Parameter(torch.randn(9, 4))

        def forward(self, ids):
            return self.rows[ids]

    model = nn.Sequential(Table(), nn.Linear(4, 3), nn.ReLU()).eval()
    local = specxai.linearize(model, IDS)
    assert local.input.equal(model[0](IDS).detach())
    assert local.exactness < 1e-5
    model.get_input_embeddings = lambda: model[0]
    assert specxai.linearize(model, IDS).input.equal(local.input)


def test_hooks_of_the_users_see_x():
    model = make(Tokens)
    model.token.register_forward_hook(lambda module, args, output: 3 * output)
    local = specxai.linearize(model, IDS)
    close(local.output, model(IDS)["logits"].detach())
    assert torch.equal(local.input, model.token.weight[IDS].detach())


def test_ids_as_a_keyword():
    model = make(Tokens)
    for local in (specxai.linearize(model, kwargs={"input_ids": IDS}, wrt="input_ids"),
                  specxai.linearize(model, IDS, wrt="input_ids")):
        close(local.output, model(IDS)["logits"].detach())
        assert local.input.shape == (1, 3, 4)


class Both(nn.Module):
    """An encoder and a decoder, each with token ids and an embedding of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.mix = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, input_ids, decoder_input_ids):
        return self.mix(self.first(input_ids)).tanh().mean(1, keepdim=True) * self.second(decoder_input_ids)


@pytest.mark.parametrize("order", [("input_ids", "decoder_input_ids"), ("decoder_input_ids", "input_ids")])
@pytest.mark.parametrize("theirs", [torch.tensor([[4, 5]]), IDS, IDS.clone()], ids=["others", "same", "equal"])
def test_each_place_has_the_embedding_that_reads_it(order, theirs):
    model = make(Both)
    for wrt in order:
        local = specxai.linearize(model, kwargs={"input_ids": IDS, "decoder_input_ids": theirs}, wrt=wrt)
        wanted = model.first(IDS) if wrt == "input_ids" else model.second(theirs)
        assert torch.equal(local.input, wanted.detach())
        close(local.output, model(IDS, theirs).detach())


# Which inputs are analysed


def test_embeddings_by_name():
    model, x = make(Tokens), torch.randn(1, 3, 4, dtype=torch.float64)
    wanted = jacobian(lambda x: model(inputs_embeds=x)["logits"], x)
    for local in (specxai.linearize(model, x, wrt="inputs_embeds"),
                  specxai.linearize(model, kwargs={"inputs_embeds": x}, wrt="inputs_embeds"),
                  specxai.capture(model, 0 * x, wrt="inputs_embeds").linearize(x)):
        close(local.jacobian.to_dense(), wanted)


@pytest.mark.parametrize("wrt, at", [("y", 1), (1, 1), (0, 0), (["x"], 0)])
def test_one_of_several_inputs(wrt, at):
    model, pair = make(Pair), [torch.randn(1, n, dtype=torch.float64) for n in (3, 2)]
    by_name = isinstance(wrt, (str, list))
    given = {"kwargs": dict(zip("xy", pair, strict=True))} if by_name else {"x": pair[0], "args": pair[1:]}
    local = specxai.linearize(model, wrt=wrt, **given)
    def of_one(x):
        return model(*(x if place == at else one for place, one in enumerate(pair)))
    close(local.jacobian.to_dense(), jacobian(of_one, pair[at]))


def test_several_inputs_at_once():
    model, x, y = make(Pair), torch.randn(1, 3, dtype=torch.float64), torch.randn(1, 2, dtype=torch.float64)
    local = specxai.linearize(model, x, args=(y,), wrt=[0, 1], kwargs={"power": 2})
    assert local.input.shape == (1, 5)
    assert local.agreement < 1e-12
    close(local.jacobian.to_dense(), jacobian(lambda x, y: model(x, y, 2), x, y))
    other = specxai.linearize(model, kwargs={"x": x, "y": y}, wrt=["y", "x"])
    close(other.jacobian.to_dense(), jacobian(lambda y, x: model(x, y), y, x))


# Bad input: one line each


@pytest.mark.parametrize("options, error, words", [
    ({"x": IDS, "kwargs": {"use_cache": True}}, ValueError, ("use_cache is True", "kwargs={'use_cache': False}")),
    ({"x": IDS, "kwargs": {"past_key_values": [1]}}, ValueError, ("past_key_values is given", "whole prompt")),
    ({"x": IDS, "args": MASK}, TypeError, ("args holds", "as a tuple; got Tensor")),
    ({"x": IDS, "kwargs": [1]}, TypeError, ("kwargs maps names", "got list")),
    ({"x": IDS, "kwargs": {"masks": MASK}}, CaptureError, ("itself fails", "masks", "kwargs=")),
    ({"x": IDS + 7}, CaptureError, ("fails on token ids (1, 3) from 7 to 9", "vocabulary")),
    ({"kwargs": {"input_ids": IDS}}, TypeError, ("x is None", "wrt='input_ids'")),
    ({"x": IDS, "wrt": "inputs_embeds"}, TypeError, ("inputs_embeds is torch.int64", "embeddings are wanted")),
    ({"x": IDS, "wrt": 3}, ValueError, ("wrt=3 is no input of this call",)),
    ({"x": IDS, "wrt": ["nothing"]}, ValueError, ("wrt='nothing' is no input", "use_cache by name")),
    ({"x": IDS, "wrt": 0.5}, TypeError, ("name the analysed inputs",)),
    ({"x": IDS, "wrt": [0, 0]}, ValueError, ("each analysed input once",)),
    ({"x": IDS, "args": (MASK.double(),), "wrt": [0, 1]}, TypeError, ("0 is torch.int64", "pass embeddings")),
    ({"x": MASK, "args": (MASK.double(),), "wrt": [0, 1]}, ValueError, ("1 is torch.float64", "convert one")),
])
def test_bad_input(options, error, words):
    model = make(Tokens)
    for function in (specxai.linearize, specxai.capture):
        given = dict(options)
        with pytest.raises(error) as raised:
            function(model, given.pop("x", None), **given)
        assert "\n" not in str(raised.value)
        for word in words:
            assert word in str(raised.value)


def test_further_ids_that_are_out_of_range():
    model = make(Tokens)
    specxai.linearize(model, IDS)
    with pytest.raises(CaptureError, match=r"'token' fails on token ids \(1, 3\) from 7 to 9: .*vocabulary's size$"):
        specxai.linearize(model, IDS + 7)


def test_what_was_captured_has_its_inputs():
    captured = specxai.capture(make(Tokens), IDS)
    with pytest.raises(TypeError, match="wrt= belongs to specxai"):
        specxai.linearize(captured, IDS, wrt=0)
