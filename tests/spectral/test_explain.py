"""The additive identity, the sign convention, and slices, on a dense network with a skip."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specxai._kept import Kept
from specxai.operators import ZeroOperator
from specxai.spectral import Explanation, explain


def total(e):
    return float(e.alpha.sum()) + e.bias + e.bypass + e.remainder


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("rank", [None, 1, 5, 1000])
def test_additive_identity(dtype, tolerance, skip, rank, dense_net):
    net = dense_net(dtype=dtype, skip=skip)
    e = explain(net, layer="relu", target=2, rank=rank)
    assert e.output == pytest.approx(float(net.output[0, 2]), rel=1e-6)
    assert e.completeness < tolerance
    assert (e.bypass != 0) == skip
    assert sum(e.bias_contributions.values()) == pytest.approx(e.bias, abs=10 * tolerance)
    if rank is None:
        assert abs(e.remainder) < 10 * tolerance
    elif rank < 18:
        assert len(e) == rank


def test_alpha_is_the_path_through_the_component(net, exact):
    """α_k = w·L(u_k λ_k φ_k·x), written out."""
    x = net.input.flatten()
    for k in range(len(exact)):
        through = exact.left_vectors[k].flatten() * exact.S[k] * (exact.right_vectors[k].flatten() @ x)
        assert float(exact.alpha[k]) == pytest.approx(float((net.left @ through)[1]), abs=1e-12)


def test_signs_do_not_depend_on_the_solver(net):
    runs = [explain(net, layer="relu", target=1, rank=None, seed=seed) for seed in range(4)]
    live = runs[0].S > 1e-9
    for e in runs:
        assert (e.projections >= 0).all()
        torch.testing.assert_close(e.projections, torch.einsum("kchw,chw->k", e.right_vectors, e.x).abs())
        torch.testing.assert_close(e.right_vectors[live], runs[0].right_vectors[live])
        rebuilt = torch.einsum("ki,k,kj->ij", e.left_vectors.flatten(1), e.S, e.right_vectors.flatten(1))
        torch.testing.assert_close(rebuilt, net.right)


def test_zero_projection_has_a_definite_sign(dense_net):
    """x = 0 decides no sign; the largest entry of φ does."""
    net = dense_net()
    blank = type(net)(torch.zeros_like(net.input), net.weights)
    runs = [explain(blank, layer="relu", target=0, rank=3, seed=seed) for seed in range(3)]
    assert all(torch.equal(e.right_vectors, runs[0].right_vectors) for e in runs)
    assert runs[0].alpha.tolist() == [0.0] * 3
    assert runs[0].completeness < 1e-13


def test_zero_operator(net):
    dead = type(net)(net.input, {**net.weights, "b1": torch.full((18,), -1e3, dtype=torch.float64)})
    e = explain(dead, layer="relu", target=0, rank=None)
    assert float(e.alpha.abs().sum()) == 0
    assert e.completeness < 1e-13
    assert len(e.reduce()) == 0
    assert "Explanation" in repr(e)
    assert e.symbolic().text()


def test_shapes_and_record(exact):
    k = len(exact)
    assert exact.right_vectors.shape == (k, 3, 4, 5)
    assert exact.left_vectors.shape == (k, 2, 3, 3)
    assert exact.gradient.shape == exact.bypass_gradient.shape == exact.x.shape == (3, 4, 5)
    assert (exact.layer, exact.target_label, exact.gates, exact.backend) == ("relu", "output[1]", "tangent", "fake")
    assert {"specxai", "torch", "model", "rank", "tol", "bypass"} <= set(exact.settings)
    assert exact.settings["model"] == "DenseNet"


def test_default_target_is_the_predicted_class(net):
    e = explain(net, layer="relu")
    assert e.output == pytest.approx(float(net.output.max()))


def test_logit_difference_is_linear(net):
    a, b = (explain(net, layer="relu", target=t, rank=None) for t in (0, 3))
    d = explain(net, layer="relu", target=torch.tensor([1.0, 0, 0, -1.0, 0]), rank=None)
    assert d.target_label == "output[0] - output[3]"
    torch.testing.assert_close(d.alpha, a.alpha - b.alpha)
    assert d.bias == pytest.approx(a.bias - b.bias)


def test_remainder_gradient_times_x_is_the_remainder(truncated):
    assert float((truncated.remainder_gradient * truncated.x).sum()) == pytest.approx(truncated.remainder)


def test_result_does_not_alias_the_input(net):
    e = explain(net, layer="relu", target=0)
    before = e.x.clone()
    net.input.zero_()
    assert torch.equal(e.x, before)


def test_integers_of_numpy(exact):
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    e = explain(net, torch.ones(1, 4), layer="1", rank=np.int64(2), seed=np.int64(3), target=np.int64(1))
    assert len(e) == 2
    assert exact.contract(dim=np.int64(0)).shape == exact.contract(dim=0).shape
    assert exact.surgery(keep={0, 3}).kept == [0, 3]


@given(positions=st.lists(st.integers(-18, 17), unique_by=lambda i: i % 18))
@settings(deadline=None)
def test_slices_keep_the_sum(positions, dense_net):
    e = explain(dense_net(), layer="relu", target=1, rank=None)
    part = e[positions]
    assert isinstance(part, Explanation)
    assert len(part) == len(positions)
    assert part.indices.tolist() == [i % 18 for i in positions]
    assert total(part) == pytest.approx(total(e))
    assert part.completeness < 1e-12
    dense = (e.left_vectors.flatten(1).T * e.S) @ e.right_vectors.flatten(1)
    kept = (part.left_vectors.flatten(1).T * part.S) @ part.right_vectors.flatten(1)
    assert torch.linalg.norm(dense - kept) <= part.error
    torch.testing.assert_close(part.contract(), e.contract()[positions] if positions else torch.empty(0, 4, 5).double())


@pytest.mark.parametrize(("key", "expected"), [(2, [2]), (-1, [17]), (slice(0, 3), [0, 1, 2]), ([5, 1], [5, 1]),
                                           (torch.arange(18) < 2, [0, 1])])
def test_slice_forms(exact, key, expected):
    part = exact[key]
    assert part.indices.tolist() == expected
    assert part[0].indices.tolist() == expected[:1], "a slice of a slice keeps its place in the spectrum"


@pytest.mark.parametrize(("key", "error"), [
    (18, IndexError), ([0, 0], IndexError), ([0, -18], IndexError), (0.5, TypeError),
    (torch.ones(3, dtype=torch.bool), IndexError),
])
def test_slice_errors(exact, key, error):
    with pytest.raises(error):
        exact[key]


def test_top(exact):
    assert exact.top(3) == [0, 1, 2]
    by_alpha = exact.top(3, by="alpha")
    assert by_alpha[0] == int(exact.alpha.abs().argmax())
    assert exact.top(2, by="reduced") == exact.reduce().dominant[:2]
    with pytest.raises(ValueError, match="by='size'"):
        exact.top(1, by="size")
    with pytest.raises(ValueError, match="negative"):
        exact.top(-1)


def test_table_and_summary(exact, truncated):
    rows = exact.table()
    assert list(rows[0]) == ["k", "lambda", "psi", "projection", "alpha", "share", "residual"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    text = truncated.summary(n=2)
    assert "… 2 more" in text
    for word in ("sum of alpha", "bias", "bypass", "remainder", "completeness", "exactness", "seed 0"):
        assert word in text


@pytest.mark.parametrize(("kwargs", "error", "words"), [
    ({"layer": None}, TypeError, "this model has relu"),
    ({"layer": "relu", "x": torch.ones(1, 3)}, TypeError, "a Local already belongs to one input"),
    ({"layer": "relu", "rank": -1}, ValueError, "rank=-1 is out of range"),
    ({"layer": "relu", "rank": 0}, ValueError, "rank=0 is out of range"),
    ({"layer": "relu", "rank": 2.0}, ValueError, "rank=2.0"),
    ({"layer": "relu", "tol": 0.0}, ValueError, "tol=0.0"),
    ({"layer": "relu", "target": 5}, IndexError, r"shape \(1, 5\)"),
])
def test_errors(net, kwargs, error, words):
    with pytest.raises(error, match=words):
        explain(net, **kwargs)


def test_solver_certificates_are_recorded(net, solver):
    def unconverged(*args, **kwargs):
        result = solver.dense(*args, **kwargs)
        result.converged, result.norm, result.settings = False, 2.0, {"block": 16, "odd": object}
        return result

    solver.use(unconverged)
    e = explain(net, layer="relu")
    assert e.settings["svd"] | {"odd": None} == {"converged": False, "norm": 2.0, "block": 16, "odd": None,
                                                 "lambda_1": float(e.S[0]), "precision": None}
    assert "tolerance NOT reached" in repr(e)


def test_threads_that_ask_at_once_decompose_once(net, solver):
    net.decompositions = Kept(4, 1 << 20)
    runs, barrier, found = [], threading.Barrier(4), []
    solver.use(lambda *a, **kw: runs.append(1) or solver.dense(*a, **kw))

    def work(target):
        barrier.wait(10)
        found.append(explain(net, layer="relu", target=target, rank=6).target_label)

    threads = [threading.Thread(target=work, args=(target,)) for target in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(found) == [f"output[{target}]" for target in range(4)]
    assert len(runs) == 1


def test_results_stay_on_the_cpu_under_any_default_device_or_dtype(net, exact, tmp_path):
    part = exact[[0, 3]]
    before = (part.contract(), part.reduce().values, part.symbolic(reduced=True).maps, part.remainder_gradient,
              part.surgery(drop=[1]).factors, part.symbolic().text(), part.summary())
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            part = exact[[0, 3]]
            part.save(tmp_path / "e.safetensors")
            after = (part.contract(), part.reduce().values, part.symbolic(reduced=True).maps, part.remainder_gradient,
                     part.surgery(drop=[1]).factors, part.symbolic().text(), part.summary())
            read = Explanation.load(tmp_path / "e.safetensors")
            assert len(part[[]].reduce()) == len(part[:0].symbolic().maps) == 0
    finally:
        torch.set_default_dtype(default)
    assert torch.equal(read.right_vectors, part.right_vectors)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b


def test_names_are_printed_on_one_line_without_control_characters(net):
    e = explain(net, layer="relu", target=1, rank=2)
    evil = "a\nb\x1b[2J\x9b\u202e"
    e = dataclasses.replace(e, layer=evil, target_label=evil, method=evil, gates=evil, backends={"targets": evil},
                            local=None, settings={**e.settings, "model": evil, "output": evil})
    for text, lines in ((repr(e), len(repr(explain(net, layer="relu", target=1, rank=2)).split("\n"))),
                        (repr(e.symbolic()), 1), (e.symbolic().latex(), 1), (repr(e.surgery(drop=0)), 4)):
        assert len(text.split("\n")) == lines
        assert text.replace("\n", "").isprintable()
        assert r"a\nb\x1b[2J\x9b\u202e" in text


def test_signs_are_fixed_on_a_copy(net, solver):
    """One column transposed is contiguous already."""
    kept = []
    solver.use(lambda *a, **kw: kept.append(solver.dense(*a, **kw)) or kept[-1])
    for seed in range(4):
        explain(net, layer="relu", rank=1, seed=seed)
        assert torch.equal(kept[-1].V, solver.dense(net.split("relu").right, rank=1, seed=seed).V)


def test_module_needs_an_input():
    with pytest.raises(TypeError, match="needs x="):
        explain(torch.nn.Linear(2, 2), layer="0")


def test_completeness_reports_a_wrong_split(net):
    """The remainder is not defined by the sum, so a split that misses a path is seen."""
    whole = net.split
    none = ZeroOperator(net.input.shape, net.output.shape, net.input.dtype)
    net.split = lambda layer: SimpleNamespace(**{**vars(whole(layer)), "bypass": none})
    assert explain(net, layer="relu", target=1).completeness > 1e-3


def test_the_summary_says_in_which_numbers_products_were():
    e = explain(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval(), torch.ones(1, 4), "0",
                backend="torch")
    assert e.settings["svd"]["precision"] == "float32"
    assert "products in float32, decomposition on torch" in e.summary()
