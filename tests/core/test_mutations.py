"""`agreement` sees every fault that is planted into a rule and changes J, and without a fault it never cries."""

from __future__ import annotations

import random
import warnings
from dataclasses import replace

import pytest
import torch

import specxai
import specxai.affine.local
from random_nets import random_net
from specxai.affine import nodes
from specxai.affine.witness import relative
from specxai.errors import CaptureError
from specxai.rules import LinearNode, Term

NETS, CHUNK, FAULTS_A_NET = 100, 10, 8  # nets for each dtype


def scaled(term: Term, by: float | torch.Tensor, sides: str = "both") -> Term:
    """The term with its output units multiplied, in one direction or both."""
    return replace(term, apply=(lambda b: term.apply(b) * by) if sides != "adjoint" else term.apply,
                   adjoint=(lambda b: term.adjoint(b * by)) if sides != "apply" else term.adjoint)


def all_terms(change):
    return lambda node, call: replace(node, terms=tuple(change(term, call) for term in node.terms), together=None)


def missing(node: LinearNode, call) -> LinearNode:
    return replace(node, terms=node.terms[1:], together=None) if len(node.terms) > 1 else None


def transposed(term: Term, call) -> Term:
    own, shape = _shape(term, call), call.value.shape
    if own is None or own.numel() != shape.numel():
        return term
    return replace(term, apply=lambda b: term.adjoint(b.reshape(-1, *shape)).reshape(-1, *shape),
                   adjoint=lambda b: term.apply(b.reshape(-1, *own)).reshape(-1, *own))


def _shape(term: Term, call):
    found = [value.shape for position, value in enumerate(call.args) if call.ref(position) == term.input]
    return found[0] if found else None


def without_factor(term: Term, call) -> Term:
    """The held factor dropped where there is one: a diagonal map becomes the identity, up to broadcasting."""
    if not isinstance(term.factor, torch.Tensor) or term.picks is None:
        return term
    factor = torch.where(term.factor == 0, 1, term.factor).to(call.value.dtype)
    return scaled(term, 1 / factor)


def one_unit(term: Term, call) -> Term:
    by = torch.ones(call.value.shape, dtype=call.value.dtype)
    by.view(-1)[by.numel() // 2] = 1.3
    return scaled(term, by)


FAULTS = {
    "slope": all_terms(lambda term, call: scaled(term, 1.3)),
    "slope in apply": all_terms(lambda term, call: scaled(term, 1.3, "apply")),
    "slope in adjoint": all_terms(lambda term, call: scaled(term, 1.3, "adjoint")),
    "sign": all_terms(lambda term, call: scaled(term, -1.0)),
    "sign in apply": all_terms(lambda term, call: scaled(term, -1.0, "apply")),
    "missing term": missing,
    "transposed": all_terms(transposed),
    "transposed in adjoint": all_terms(lambda term, call: replace(term, adjoint=transposed(term, call).adjoint)),
    "dropped factor": all_terms(without_factor),
    "dropped factor in apply": all_terms(lambda term, call: replace(term, apply=without_factor(term, call).apply)),
    "one unit": all_terms(one_unit),
}


def dense(local: specxai.affine.local.Local) -> torch.Tensor:
    """J by its forward products, and by its reverse ones below."""
    m, n = local.jacobian.shape
    eye = {"dtype": local.input.dtype}
    return torch.cat([local.jacobian.reference.matmat(torch.eye(n, **eye)),
                      local.jacobian.reference.rmatmat(torch.eye(m, **eye)).T])


@pytest.fixture
def plant(monkeypatch):
    """plant(step, fault): every linearisation from now on has the fault at that step."""
    original = nodes.linear_node
    monkeypatch.setattr(nodes, "_is_fixed", lambda *given: False)  # or sound nodes would stand in for faulty ones

    def planted(step, fault):
        def faulty(call):
            node = original(call)
            at = call.step.index if not call.output else None
            changed = fault(node, call) if fault is not None and at == step else None
            return node if changed is None else changed

        monkeypatch.setattr(nodes, "linear_node", faulty)

    return planted


@pytest.mark.parametrize("gates, start", [*(("tangent", start) for start in range(0, NETS, CHUNK)),
                                          *(("frozen", start) for start in range(0, NETS // 5, CHUNK))])
def test_every_planted_fault_is_seen(gates, start, dtype, plant):
    torch.set_num_threads(1)  # the tests' own fixture sets them again
    planted = effective = caught = cancelling = 0
    missed = []
    for seed in range(start, start + CHUNK):
        net, x = random_net(1000 * (dtype is torch.float64) + seed, dtype)
        captured, draw = specxai.capture(net, x, verify=False), random.Random(seed)
        plant(None, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # norms of norms do cancel in float32, now and then
            sound = captured.linearize(x, gates, backend="reference", verify=True)
        assert sound.agreement <= sound.agreement_details.tolerance
        cancelling += sound.agreement_details.cancellation > 1
        before, steps = dense(sound), list(sound.graph.nodes)
        for _ in range(FAULTS_A_NET):
            step, name = draw.choice(steps), draw.choice(list(FAULTS))
            plant(step, FAULTS[name])
            faulty = captured.linearize(x, gates, backend="reference", verify=False)
            planted += 1
            # A fault on a dead unit, or of a map that it leaves alone, changes nothing.
            half = len(before) // 2
            after = dense(faulty)
            changed = max(relative(after[:half], before[:half]), relative(after[half:], before[half:]))
            if changed <= 4 * sound.agreement_details.tolerance:
                continue
            effective += 1
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    got = captured.linearize(x, gates, "reference", verify=True).agreement_details
                missed.append((seed, name, captured.program.steps[step].target, changed, got))
            except CaptureError:
                caught += 1
    print(f"{planted} planted, {effective} change J, {caught} caught")
    assert not missed, missed
    assert cancelling <= 1, "a tolerance that grows is the exception"
    assert effective > planted // 4, "the faults are worth planting"
