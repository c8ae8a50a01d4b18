"""A Local is a snapshot: weights that have changed, by whatever means, are refused; weights that have not never are."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import specxai
from specxai.affine import snapshot
from specxai.errors import StaleError
from specxai.operators.later import checked_later


def net(wide: int = 40) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, wide), nn.ReLU(),
                         nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 3)).eval()


def image() -> torch.Tensor:
    return torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def in_place(model):
    with torch.no_grad():
        model[4].bias.add_(1e-3)


def step_of(optimiser, **options):
    def step(model):
        model(image()).sum().backward()
        optimiser(model.parameters(), lr=0.1, **options).step()

    return step


def permuted(model):
    model[6].weight.data.copy_(model[6].weight.data.flip(0))


def one_number(model):
    model[6].weight.data[7, 11] += 1e-6


def by_numpy(model):
    model[1].running_mean.numpy()[2] = 0.125


def new_data(model):
    model[4].weight.data = 2 * model[4].weight.data


def transposed(model):
    model[6].weight.data = model[6].weight.data.T


def exchanged(model):
    model[4].weight = nn.Parameter(1.5 * model[4].weight.detach())


def loaded(model, **options):
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()}, **options)


CHANGES = {
    "in place": (in_place, "4.bias"), "sgd": (step_of(torch.optim.SGD, foreach=True), "0.weight"),
    "adam": (step_of(torch.optim.Adam, fused=True), "0.weight"), "loaded": (loaded, "0.weight"),
    "assigned": (lambda model: loaded(model, assign=True), "0.weight"),
    "data scaled": (lambda model: model[0].weight.data.mul_(2), "0.weight"),
    "data negated": (lambda model: model[0].weight.data.neg_(), "0.weight"), "data permuted": (permuted, "6.weight"),
    "one number of data": (one_number, "6.weight"), "numpy": (by_numpy, "1.running_mean"),
    "new data": (new_data, "4.weight"), "other strides": (transposed, "6.weight"), "exchanged": (exchanged, "4.weight"),
    "another dtype": (lambda model: model.double(), "0.weight"),
}
USES = {
    "product": lambda local, held: held @ torch.ones(72), "adjoint": lambda local, held: held.T @ torch.ones(64, 20),
    "new operator": lambda local, held: local.jacobian @ torch.ones(72), "svd": lambda local, held: specxai.svd(held),
    "bias": lambda local, held: local.bias, "exactness": lambda local, held: local.exactness,
    "contributions": lambda local, held: local.bias_contributions(), "tail": lambda local, held: local.run_tail(
        "2", torch.ones(64)), "flip": lambda local, held: local.first_flip(torch.ones(72)),
    "gates": lambda local, held: local.same_region(image()),
    "explanation": lambda local, held: specxai.explain(local, layer="2", rank=2),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused_wherever_it_would_mix_two_models(change, backend):
    model = net()
    local = specxai.linearize(model, image(), backend=backend)
    held = local.split("2").right
    held @ torch.ones(72, 20), held.T @ torch.ones(64), local.bias, local.exactness  # all that is kept is made
    alter, name = CHANGES[change]
    alter(model)
    for use in USES.values():
        with pytest.raises(StaleError, match=rf"^{name} has .* call specxai\.linearize\(model, x\) again$"):
            use(local, held)
    if change != "another dtype":  # a new one belongs to the new weights
        with torch.no_grad():
            assert torch.allclose(specxai.linearize(model, image()).output, model(image()), atol=1e-5)


def test_what_is_no_change_is_none():
    model = net()
    local = specxai.linearize(model, image())
    J, before = local.jacobian, local.jacobian @ torch.ones(72)
    state = copy.deepcopy(model.state_dict())
    for same in (lambda: model.load_state_dict(state), lambda: model.load_state_dict(state, assign=True),
                 model.share_memory, lambda: model.requires_grad_(False), lambda: model.to(torch.float32),
                 lambda: model(image()), lambda: setattr(model[4].weight, "data", model[4].weight.data.clone())):
        same()
        assert torch.equal(J @ torch.ones(72), before)
        assert local.exactness < 1e-5
    with torch.no_grad():  # there and back
        model[0].weight.neg_()
        model[0].weight.neg_()
    assert torch.equal(J @ torch.ones(72), before)


def test_weights_that_no_layer_reads_may_change():
    model = net()
    local = specxai.linearize(model, image())
    model[1].num_batches_tracked += 1
    model.extra = nn.Parameter(torch.ones(3))
    assert torch.isfinite(local.jacobian @ torch.ones(72)).all()


def test_a_captured_model_sees_the_new_weights():
    model = net()
    captured = specxai.capture(model, image())
    captured.linearize(image())
    in_place(model)
    with torch.no_grad():
        assert torch.allclose(captured.linearize(image()).output, model(image()), atol=1e-6)


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        with torch.inference_mode():
            self.register_buffer("shift", torch.ones(72))
        self.last = nn.Linear(72, 3)

    def forward(self, x):
        return self.last((x.flatten(1) + self.shift).relu())


def test_weights_made_in_inference_mode_are_copied_when_captured():
    model, x = Shifted().eval(), image()
    captured = specxai.capture(model, x)
    local = captured.linearize(x)
    before = local.jacobian.to_dense()
    with torch.inference_mode():
        model.shift -= 1
    assert torch.equal(local.jacobian.to_dense(), before)
    for later in (captured.linearize(x), specxai.linearize(model, x)):
        assert later.agreement < 1e-5
        torch.testing.assert_close(later.output, model(x))
        assert not torch.equal(later.jacobian.to_dense(), before)


@pytest.mark.parametrize("tensor", [
    torch.randn(3, 70_000), torch.randn(70_000, 3).T, torch.randn(2, 5, 8, 9).to(memory_format=torch.channels_last),
    torch.randn(9, 7)[:, 2:5], torch.randn(5, 1).expand(5, 4), torch.randn(7).bfloat16(), torch.tensor(2.0),
    torch.ones(13, dtype=torch.bool), torch.zeros(0, 4), torch.randn(9, dtype=torch.complex64),
    torch.randn(70_001).double()[1:],
], ids=lambda t: f"{tuple(t.shape)}{t.dtype}")
def test_contents_are_read_alike_on_every_device(tensor):
    memory, like = snapshot._Memory(tensor), snapshot._DeviceMemory(tensor)
    found = memory.sums(0, memory.blocks)
    assert np.array_equal(found, np.concatenate([memory.sums(b, 1) for b in range(memory.blocks)] or [found]))
    again = like.sums(0, like.blocks)
    assert np.array_equal(again, np.concatenate([like.sums(b, 1) for b in range(like.blocks)] or [again]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20 if tensor.numel() else 0):
        place = tuple(int(torch.randint(size, (), generator=generator)) for size in tensor.shape)
        one = tensor.clone()
        one[place] = ~one[place] if one.dtype is torch.bool else 1 - one[place]
        if not torch.equal(one, tensor):
            mine, other = snapshot._Memory(one), snapshot._DeviceMemory(one)
            assert not np.array_equal(mine.sums(0, mine.blocks), found)
            assert not np.array_equal(other.sums(0, other.blocks), again)


def test_large_weights_are_read_in_turn_and_whole_at_the_ends(monkeypatch):
    monkeypatch.setattr(snapshot, "WHOLE", 0)  # nothing is read whole before a product
    model = net(wide=300)
    local = specxai.linearize(model, image())
    model[6].weight.data[7, 13] += 1  # between the samples
    with pytest.raises(StaleError, match=r"^6\.weight"):
        local.ensure_current()
    with pytest.raises(StaleError, match=r"^6\.weight"):
        specxai.svd(local.jacobian, rank=1)
    with pytest.raises(StaleError, match=r"^6\.weight"):
        local._snapshot.check(seconds=60.0)  # whose share reads all there is
    model[6].weight.data[7, 13] -= 1
    model[6].weight.data.mul_(1.01)
    with pytest.raises(StaleError, match=r"^6\.weight"):
        local.jacobian @ torch.ones(72)


def test_on_a_device_a_solver_s_products_read_no_contents(monkeypatch):
    """Which would be a wait for each tensor: the solver reads everything at its end."""
    monkeypatch.setattr(snapshot, "_memory", snapshot._DeviceMemory)
    model = net()
    local = specxai.linearize(model, image())
    J = local.jacobian
    monkeypatch.setattr(J, "device", torch.device("meta"))
    looked, sample = [], snapshot._DeviceMemory.sample
    monkeypatch.setattr(snapshot._DeviceMemory, "sample", lambda self: looked.append(1) or sample(self))
    J._check()
    assert looked
    looked.clear()
    with checked_later():
        J._check()
        assert not looked
        in_place(model)  # which needs no look at the contents
        with pytest.raises(StaleError, match=r"^4\.bias"):
            J._check()


def test_inside_a_checked_block_everything_is_read_twice(monkeypatch):
    local, read = specxai.linearize(net(), image()), []
    sums = snapshot._sums
    monkeypatch.setattr(snapshot, "_sums", lambda *arguments: (read.append(1), sums(*arguments))[1])
    with local.checked():
        assert local.exactness < 1e-5
        local.bias_contributions()
        local.run_tail("2", torch.ones(64))
    assert len(read) == 2


def test_a_change_while_a_block_runs_is_refused_at_its_end():
    model = net()
    local = specxai.linearize(model, image())
    with pytest.raises(StaleError, match=r"^0\.weight"), local.checked():
        model[0].weight.data.mul_(2)


def test_locals_stay_in_their_process():
    local = specxai.linearize(net(), image())
    for thing in (local, local.jacobian):
        with pytest.raises(TypeError, match=r"cannot be pickled: .* call specxai\.linearize\(model, x\) there"):
            pickle.dumps(thing)
    assert copy.deepcopy(local) is local
    e = specxai.explain(local, layer="2", rank=2)
    there = pickle.loads(pickle.dumps(e))
    assert torch.equal(there.alpha, e.alpha)
    assert there.local is None
    assert e.local is local
