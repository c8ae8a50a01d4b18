"""The lens is the reference's, matrix by matrix; halves merge to the whole, and a fit that was killed goes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import specxai
from small import BLOCKS, CONTEXT, WIDTH, reference_lens, relative, small_gpt, some_prompts
from specxai.backends.composed import Composed
from specxai.errors import FileError
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearizer
from specxai.lens.sweep import rough_of, sweep, unit_rows
from specxai.zoo.gpt import GPT, Block

LENGTHS = (20, 20, 31, 20, 12)


@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("layers", [None, [1], [-2, 0]])
def test_it_is_the_reference_estimator(dtype, bound, layers):
    model, prompts = small_gpt(dtype), some_prompts(LENGTHS)
    L = specxai.lens.fit(model, prompts, layers=layers, skip_first=5)
    chosen = {None: [0, 1, 2], (1,): [1], (-2, 0): [0, 2]}[tuple(layers) if layers else None]
    wanted = reference_lens(model, model.blocks, prompts, chosen, skip_first=5)
    assert L.source_layers == chosen
    assert L.n_prompts == len(LENGTHS)
    for layer in chosen:
        assert L.J[layer].shape == (WIDTH, WIDTH)
        assert L.J[layer].dtype == dtype
        assert relative(L.J[layer], wanted[layer]) <= bound


def test_a_block_of_few_columns_gives_the_same(gpt):
    prompts = some_prompts((20,))
    whole = specxai.lens.fit(gpt, prompts, skip_first=5)
    narrow = specxai.lens.fit(gpt, prompts, skip_first=5, max_memory=300_000)
    assert relative(narrow.J[0], whole.J[0]) <= 1e-6


def test_prompts_are_cut_and_short_ones_left_out(gpt):
    prompts = some_prompts((30, 6, 20))
    with pytest.warns(UserWarning, match="prompt 1 is left out: it has 6 tokens"):
        L = specxai.lens.fit(gpt, iter(prompts), skip_first=5, max_length=18)
    wanted = reference_lens(gpt, gpt.blocks, [prompts[0], prompts[2]], [0], skip_first=5, max_length=18)
    assert L.n_prompts == 2
    assert relative(L.J[0], wanted[0]) <= 1e-4


def test_strings_are_read_by_the_tokenizer(gpt):
    def tokenizer(text):
        return {"input_ids": [ord(letter) % 40 for letter in text]}

    text = "a lens for a sentence"
    L = specxai.lens.fit(gpt, [text], skip_first=5, tokenizer=tokenizer)
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    assert relative(L.J[1], specxai.lens.fit(gpt, [ids], skip_first=5).J[1]) == 0


def test_halves_merge_to_the_whole(gpt):
    prompts = some_prompts(LENGTHS)
    whole = specxai.lens.fit(gpt, prompts, skip_first=5)
    first, second = (specxai.lens.fit(gpt, part, skip_first=5) for part in (prompts[:2], prompts[2:]))
    merged = first.merge(second)
    assert merged.n_prompts == 5
    for layer in whole.J:
        assert relative(merged.J[layer], whole.J[layer]) <= 1e-6
    with pytest.raises(ValueError, match="different skip_first cannot be merged: 5 and 4"):
        first.merge(specxai.lens.fit(gpt, prompts[2:], skip_first=4))


@pytest.mark.parametrize("killed", [1, 3, 4])
def test_a_killed_fit_goes_on(gpt, tmp_path, killed):
    prompts = some_prompts(LENGTHS)
    whole = specxai.lens.fit(gpt, prompts, skip_first=5)

    def until_killed():
        for number, prompt in enumerate(prompts):
            if number == killed:
                raise KeyboardInterrupt
            yield prompt

    file = tmp_path / "fit.pt"
    with pytest.raises(KeyboardInterrupt):
        specxai.lens.fit(gpt, until_killed(), skip_first=5, checkpoint=file, every=2)
    assert file.exists() == (killed > 1)
    resumed = specxai.lens.fit(gpt, prompts, skip_first=5, checkpoint=file)
    assert resumed.n_prompts == 5
    for layer in whole.J:
        assert torch.equal(resumed.J[layer], whole.J[layer])
    content = torch.load(file, weights_only=True)
    assert (content["n_done"], content["next_idx"], content["target_layer"], content["skip_first"]) == (5, 5, 3, 5)
    assert torch.equal(content["jacobian_sum"][1] / 5, whole.J[1])
    assert torch.equal(specxai.lens.load(file).J[1], whole.J[1])
    with pytest.raises(FileError, match="skip_first is 5 there and 4 here"):
        specxai.lens.fit(gpt, prompts, skip_first=4, checkpoint=file)
    with pytest.raises(FileError, match=r"layers is \[0, 1, 2\] there and \[1\] here"):
        specxai.lens.fit(gpt, prompts, layers=[1], skip_first=5, checkpoint=file)


def test_a_policy_of_held_factors_is_another_lens(gpt):
    prompts = some_prompts((20,))
    held = specxai.lens.fit(gpt, prompts, skip_first=5, gates={"base": "tangent", "softmax": "held"})
    assert relative(held.J[0], specxai.lens.fit(gpt, prompts, skip_first=5).J[0]) > 1e-3
    assert held.metadata["gates"] == "softmax=held norm=tangent activation=tangent product=tangent"


class Remembering(Block):
    """Puts down what it made, or adds what another has put down to its input, as models with a shared value do."""

    def __init__(self, box: list, adds: bool):
        super().__init__(WIDTH, 3)
        self.box, self.adds = box, adds

    def forward(self, x):
        out = super().forward(x + self.box[0] if self.adds else x)
        if not self.adds:
            self.box[:] = [out]
        return out


class Around(nn.Module):
    """Five blocks; what the second made goes around the third, too."""

    def __init__(self):
        super().__init__()
        box: list = []
        self.tokens = nn.Embedding(40, WIDTH)
        self.blocks = nn.ModuleList([Block(WIDTH, 3), Remembering(box, False), Block(WIDTH, 3), Remembering(box, True),
                                     Block(WIDTH, 3)])
        self.head = nn.Linear(WIDTH, 40)

    def forward(self, ids):
        h = self.tokens(ids)
        for block in self.blocks:
            h = block(h)
        return self.head(h)


def test_a_sweep_is_cut_where_nothing_goes_around():
    torch.manual_seed(0)
    model, prompts = Around().eval(), some_prompts((20,))
    found = Linearizer(Decoder(model), [0, 1, 2, 3], 5).at(prompts[0])
    if found.planned:
        steps = found.sources
        assert [(part.source, part.target, part.taps) for part in found.segments] == [
            (steps[3], found.target, ()), (steps[1], steps[3], steps[2:3]), (steps[0], steps[1], ())]
    wanted = reference_lens(model, model.blocks, prompts, [0, 1, 2, 3], skip_first=5)
    lens = specxai.lens.fit(model, prompts, skip_first=5)
    assert max(relative(lens.J[layer], wanted[layer]) for layer in wanted) < 1e-5


@pytest.mark.parametrize(("columns", "held"), [(5, 1), (5, 12 * WIDTH * 20 * 4), (48, 1 << 30)])
def test_blocks_and_groups_give_the_same(gpt, columns, held, monkeypatch):
    prompts = some_prompts((20,))
    wanted = reference_lens(gpt, gpt.blocks, prompts, [0, 2], skip_first=5)
    monkeypatch.setattr("specxai.lens.sweep.COLUMNS", columns)
    for module in ("sweep", "whole"):
        monkeypatch.setattr(f"specxai.lens.{module}.most_held", lambda max_memory: held)
    lens = specxai.lens.fit(gpt, prompts, [0, 2], skip_first=5)
    assert max(relative(lens.J[layer], wanted[layer]) for layer in wanted) < 1e-5


class Tuples(nn.Module):
    """A block that returns its residual stream with something else."""

    def __init__(self):
        super().__init__()
        self.inner = Block(WIDTH, 3)

    def forward(self, x):
        return self.inner(x), x.mean()


class Unlike(nn.Module):
    """Embeds, and adds to the middle of the stack what it looks up again; several lists, tuples and one last logit."""

    def __init__(self, again: bool):
        super().__init__()
        self.again = nn.Embedding(40, WIDTH) if again else None
        self.tokens = nn.Embedding(40, WIDTH)
        self.stack, self.other = (nn.ModuleList(Tuples() for _ in range(n)) for n in (4, 3))
        self.head = nn.Linear(WIDTH, 40)

    def forward(self, ids, use_cache=True):
        assert not use_cache
        x = self.tokens(ids)
        for number, block in enumerate(self.stack):
            x = block(x)[0]
            x = x + self.again(ids) if self.again is not None and number == 1 else x
        return {"logits": self.head(x[:, -1:])}


@pytest.mark.parametrize("again", [False, True])
def test_tuples_and_ids_that_are_read_twice(again):
    torch.manual_seed(0)
    model, prompts = Unlike(again).eval(), some_prompts((20, 20, 20))
    L = specxai.lens.fit(model, prompts, skip_first=5, stack="stack")
    wanted = reference_lens(model, model.stack, prompts, [0, 1, 2], skip_first=5, use_cache=False)
    for layer in wanted:
        assert relative(L.J[layer], wanted[layer]) <= 1e-4
    h = torch.randn(3, WIDTH)
    assert relative(L.readout(h, 1), model.head(h @ L.J[1].T)) <= 1e-6


class Padded(nn.Module):
    """Attention that does not look at the positions of token 0."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(40, WIDTH)
        self.stack = nn.ModuleList(Looks() for _ in range(3))

    def forward(self, ids):
        x = self.tokens(ids)
        for block in self.stack:
            x = block(x, ids == 0)
        return x


class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x, padding):
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return x + (x @ x.mT).masked_fill(later | padding[:, None], -1e9).softmax(-1) @ self.inner(x)


def test_prompts_with_other_padding_are_captured_anew():
    torch.manual_seed(0)
    model, prompts = Padded().double().eval(), [ids.clamp_min(1) for ids in some_prompts((20, 20, 20))]
    prompts[1][0, 7:11] = 0
    L = specxai.lens.fit(model, prompts, skip_first=5, stack="stack")
    wanted = reference_lens(model, model.stack, prompts, [0, 1], skip_first=5)
    for layer in wanted:
        assert relative(L.J[layer], wanted[layer]) <= 1e-10


def test_readout_is_the_models_end(gpt):
    L = specxai.lens.fit(gpt, some_prompts((20,)), skip_first=5)
    h = torch.randn(2, 35, WIDTH)
    wanted = gpt.head(gpt.norm(h @ L.J[1].T))
    assert relative(L.readout(h, 1), wanted) <= 1e-6
    assert relative(L.readout(h[0, 0], 1), wanted[0, 0]) <= 1e-6
    assert L.readout(h[:, :0], 1).shape == (2, 0, 40)
    ids = some_prompts((CONTEXT,))[0]
    found = specxai.lens.residuals(gpt, ids)
    assert sorted(found) == list(range(BLOCKS))
    assert relative(L.readout(found[BLOCKS - 1], BLOCKS - 1), gpt(ids)[0]) <= 1e-6


def test_a_tokenizer_returns_ids_in_any_form(gpt):
    prompt = some_prompts((20,))[0]
    wanted = specxai.lens.fit(gpt, [prompt], layers=[1], skip_first=5).J[1]
    forms = prompt, prompt[0], prompt[0].tolist(), {"input_ids": prompt.tolist()}, SimpleNamespace(input_ids=prompt)
    for ids in forms:
        read = specxai.lens.fit(gpt, ["some words"], [1], 5, tokenizer=lambda text, ids=ids: ids)
        assert torch.equal(read.J[1], wanted)
    assert torch.equal(specxai.lens.fit(gpt, [prompt[0].tolist()], [1], 5).J[1], wanted)


def test_texts_without_words_are_left_out(gpt):
    def tokenizer(text):
        return {"input_ids": [ord(letter) % 40 for letter in text]}

    with pytest.warns(UserWarning, match="prompt 1 is left out: it has 0 tokens"):
        L = specxai.lens.fit(gpt, ["twelve words", ""], [1], 5, tokenizer=tokenizer)
    assert L.n_prompts == 1


def test_residuals_of_chosen_blocks(gpt):
    ids = some_prompts((CONTEXT,))[0]
    every, some = specxai.lens.residuals(gpt, ids), specxai.lens.residuals(gpt, ids[0].tolist(), [-1, 0])
    assert list(some) == [-1, 0]
    assert torch.equal(some[-1], every[BLOCKS - 1])
    assert torch.equal(some[0], every[0])


class Closed(Block):
    """Its feed-forward units are ReLUs of which few are open."""

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.ln_1(x)).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(torch.relu(self.up(self.ln_2(x)) - 1))


@pytest.mark.parametrize("kind", [Block, Closed])
def test_feed_forward_blocks_go_through_by_position(kind, monkeypatch):
    """Some positions at a time with all columns, by one matrix each; not where so few units live that none pays."""
    monkeypatch.setattr("specxai.lens.segments.MATRICES", 6 * 48 * 48 * 4)
    monkeypatch.setattr("specxai.plan.chains.LEAST", 1)
    torch.manual_seed(0)
    model = GPT(vocabulary=40, width=48, heads=3, blocks=3, context=24)
    model.blocks = nn.ModuleList(kind(48, 3) for _ in range(3))
    model, prompts = model.eval(), some_prompts((20,))
    found = Linearizer(Decoder(model), [0, 1], 5).at(prompts[0])
    if not found.planned:
        pytest.skip("no compiled kernels, so no plans")
    cut = [segment for segment in found.segments if segment.chunks]
    assert len(cut) == (2 if kind is Block else 0)
    for segment in cut:
        assert [place for chunk in segment.chunks for place in chunk] == list(range(20))
        assert len(segment.chunks) == 4
    made, work = set(), Composed.work
    monkeypatch.setattr(Composed, "work", lambda self, *how: made.add(self) or work(self, *how))
    rows = unit_rows(found, 0, found.width)
    got = sweep(found, rows)
    assert len(made) == (6 if kind is Block else 0)  # the first chunk has no position that counts
    wanted = reference_lens(model, model.blocks, prompts, [0, 1], skip_first=5)
    assert max(relative(got[number], wanted[number]) for number in wanted) < 1e-5
    one = Linearizer(Decoder(model), [0], 5).at(prompts[0])  # both blocks behind it, in four parts
    assert [bool(segment.chunks) for segment in one.segments] == ([True, False] * 2 if kind is Block else [False])
    assert relative(sweep(one, rows)[0], wanted[0]) < 1e-5
    rough, name = rough_of(found)
    if name == "16-bit factors":
        assert 0 < relative(sweep(found, rows, rough), got) < 1e-2


@pytest.mark.parametrize("tokens", [3, 20])
def test_positions_are_never_cut_into_more_parts_than_there_are(tokens, monkeypatch):
    monkeypatch.setattr("specxai.lens.segments.MATRICES", 1)
    model, prompts = small_gpt(), some_prompts((tokens,))
    found = Linearizer(Decoder(model), [0], 0).at(prompts[0])
    if not found.planned:
        pytest.skip("no compiled kernels, so no plans")
    cut = [segment.chunks for segment in found.segments if segment.chunks]
    assert [len(chunks) for chunks in cut] == [min(tokens, 16)] * 3
    assert all(map(len, cut[0]))
    got = sweep(found, unit_rows(found, 0, found.width))
    assert relative(got[0], reference_lens(model, model.blocks, prompts, [0], skip_first=0)[0]) < 1e-5


class Rectified(nn.Module):
    """No residual stream, and every unit of some positions closed."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.up, self.down, self.bias = nn.Linear(width, 6), nn.Linear(6, width), bias

    def forward(self, x):
        return self.down(torch.relu(self.up(x) + self.bias))


def test_a_source_counts_where_nothing_leads_from_the_first():
    torch.manual_seed(0)
    model = GPT(vocabulary=40, width=8, heads=2, blocks=3, context=24)
    nn.init.normal_(model.tokens.weight)
    model.blocks = nn.ModuleList(Rectified(8, bias) for bias in (1, -0.9, 1))
    model, prompts = model.eval(), some_prompts((18,))
    middle = specxai.lens.residuals(model, prompts[0], [1])[1]
    closed = (middle == model.blocks[1].down.bias).all(-1).sum()
    assert 0 < closed < 18
    fitted = specxai.lens.fit(model, prompts, layers=[0, 1], skip_first=2)
    wanted = reference_lens(model, model.blocks, prompts, [0, 1], skip_first=2)
    assert max(relative(fitted.J[layer], wanted[layer]) for layer in wanted) < 1e-5
