"""Surgery: the local map's prediction, and the real network through the tail."""

import pytest
import torch

from specxai.spectral import explain


def test_linear_prediction(exact):
    s = exact.surgery(drop=[0, 3])
    assert s.delta_linear == pytest.approx(-float(exact.alpha[[0, 3]].sum()))
    assert s.output_linear == pytest.approx(exact.output + s.delta_linear)
    assert s.dropped == [0, 3]
    assert len(s.kept) == len(exact) - 2


def test_keep_is_the_complement_of_drop(exact):
    kept, dropped = exact.surgery(keep=slice(0, 5)), exact.surgery(drop=slice(5, None))
    assert kept.kept == dropped.kept == list(range(5))
    assert kept.output_linear == pytest.approx(dropped.output_linear)
    torch.testing.assert_close(kept.output, dropped.output)


def test_scale(exact):
    s = exact.surgery(scale={1: 3.0, -1: 0.5})
    assert s.delta_linear == pytest.approx(2 * float(exact.alpha[1]) - 0.5 * float(exact.alpha[-1]))
    both = exact.surgery(drop=0, scale={1: 0.0})
    assert both.dropped == [0, 1]


def test_real_network_moves_by_alpha_until_a_gate_flips(net, exact):
    """Spectral ablation: a small change at the layer moves the real output by exactly the linear prediction."""
    for k in range(4):
        s = exact.surgery(scale={k: 1 - 1e-4})
        assert s.delta == pytest.approx(-1e-4 * float(exact.alpha[k]), abs=1e-12)
        assert s.output.shape == net.output.shape
    far = exact.surgery(keep=[])
    assert far.output_target == pytest.approx(float(far.output[0, 1]))


def test_real_network_equals_the_tail_written_out(net, exact):
    u = exact.left_vectors.flatten(1)
    h = net.h - u[2] * exact.S[2] * exact.projections[2]
    torch.testing.assert_close(exact.surgery(drop=2).output, net.tail(h, net.input))


def test_network_that_is_linear_after_the_layer(net):
    weights = {**net.weights, "b2": torch.full((12,), 1e3, dtype=torch.float64)}  # all its later gates stay open
    e = explain(type(net)(net.input, weights), layer="relu", target=0, rank=None)
    s = e.surgery(keep=[1, 2])
    assert s.delta == pytest.approx(s.delta_linear)


def test_remainder_is_left_alone(truncated):
    assert truncated.surgery(keep=slice(None)).output_linear == truncated.output


@pytest.mark.parametrize(("kwargs", "error", "words"), [
    ({}, TypeError, "needs keep=, drop= or scale="),
    ({"keep": [0], "drop": [1]}, TypeError, "not both"),
    ({"drop": [0], "scale": {0: 2.0}}, ValueError, "removed and rescaled"),
    ({"drop": [99]}, IndexError, "component 99 does not exist"),
    ({"scale": {0: float("inf")}}, ValueError, "not finite"),
])
def test_errors(exact, kwargs, error, words):
    with pytest.raises(error, match=words):
        exact.surgery(**kwargs)


def test_repr(exact):
    assert "real network" in repr(exact.surgery(drop=0))
