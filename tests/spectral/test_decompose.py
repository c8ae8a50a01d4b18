"""One decomposition, any number of targets: counted products, what a Local keeps, what may be asked of it."""

import gc
import operator
import pickle
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import specxai
from specxai.affine.operator import LocalOperator
from specxai.spectral import Decomposition, Explanation, decompose, explain


@pytest.fixture
def solver():
    """The real one: overrides the dense stand-in."""


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 4, 3)
        self.relu = torch.nn.ReLU()
        self.head, self.round = torch.nn.Linear(64, 5), torch.nn.Linear(36, 5)

    def forward(self, x):
        return self.head(self.relu(self.stem(x)).flatten(1)) + self.round(x.flatten(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().double().eval(), torch.randn(1, 1, 6, 6, dtype=torch.float64)


@pytest.fixture
def local(model):
    return specxai.linearize(*model)


@pytest.fixture
def columns(monkeypatch):
    """How many columns have gone through operators of a network, in all."""
    counted = []

    def counting(product):
        def through(self, block, *rest):
            counted.append(block.shape[1])
            return product(self, block, *rest)

        return through

    for name in ("_matmat", "_rmatmat"):
        monkeypatch.setattr(LocalOperator, name, counting(getattr(LocalOperator, name)))
    return counted


def equal(a, b, names=("S", "alpha", "psi", "residuals", "right_vectors", "left_vectors")):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def alike(a, b):
    """Equal but for how the sums of ψ are rounded, which differs with the number of components."""
    torch.testing.assert_close(a.psi, b.psi)
    torch.testing.assert_close(a.alpha, b.alpha)
    return equal(a, b, ("S", "residuals", "right_vectors", "left_vectors"))


def test_three_targets_cost_one_decomposition(local, columns):
    local.bias, local.exactness  # noqa: B018  (of the Local, once)
    columns.clear()
    explanations, spent = [], []
    for target in (0, 1, torch.tensor([1.0, 0, 0, 0, -1])):
        explanations.append(explain(local, layer="relu", target=target, rank=6))
        spent.append(sum(columns))
        columns.clear()
    assert spent[0] > 50
    assert spent[1:] == [4, 4], "Lᵀw, Jᵀw, and two for the bypass"
    a, b, difference = explanations
    assert equal(a, b, ("S", "right_vectors", "left_vectors"))
    # y_0 − y_4 has the α of y_0 less those of y_4.
    fourth = explain(local, layer="relu", target=4, rank=6)
    torch.testing.assert_close(difference.alpha, a.alpha - fourth.alpha)
    assert all(e.completeness < 1e-12 for e in explanations)


def test_one_target_has_the_same_numbers_from_a_model_a_local_and_a_decomposition(model, local):
    first = explain(*model, layer="relu", target=2, rank=6)
    d = decompose(local, "relu", rank=6)
    for e in (explain(local, layer="relu", target=2, rank=6), explain(d, target=2),
              explain(d, layer="relu", target=2), explain(decompose(*model, layer="relu", rank=6), target=2)):
        assert equal(e, first)
        assert (e.output, e.bias, e.bypass, e.remainder) == (first.output, first.bias, first.bypass, first.remainder)
        assert e.settings == first.settings
        assert e.bias_contributions == first.bias_contributions


def test_the_parts(model, local):
    d = decompose(local, layer="relu", rank=6, method="krylov", tol=1e-9)
    dense = local.split("relu").right.to_dense()
    x = model[1].flatten()
    torch.testing.assert_close(d.U * d.S @ d.V.T @ d.V, dense @ d.V)
    torch.testing.assert_close(d.S, torch.linalg.svdvals(dense)[:6])
    torch.testing.assert_close(d.projections, d.V.T @ x)
    torch.testing.assert_close(d.image, dense @ x)
    assert (d.projections >= 0).all()
    assert (d.layer, d.input_shape, d.layer_shape) == ("relu", (1, 6, 6), (4, 4, 4))
    assert (d.method, d.seed, d.gates, d.converged, len(d)) == ("krylov", 0, "tangent", True, 6)
    assert float(torch.linalg.norm(dense - d.U * d.S @ d.V.T)) <= d.error
    assert d.norm == pytest.approx(float(torch.linalg.norm(dense)), rel=0.5)
    assert d.worst_residual == float(d.residuals.max() / d.S[0])
    assert d.worst_residual < 1e-8
    assert d.settings["tol"] == 1e-9
    assert d.backends.keys() == {"decomposition"}
    assert d.local is local


@pytest.mark.parametrize("key", [slice(2, 5), 3, [4, 0], np.arange(6) < 2])
def test_slices(local, key):
    d = decompose(local, "relu", rank=6)
    part, kept = d[key], torch.arange(6)[torch.as_tensor(key) if isinstance(key, np.ndarray) else key].reshape(-1)
    assert part.indices.tolist() == kept.tolist()
    assert torch.equal(part.V, d.V[:, kept])
    assert torch.equal(part.U, d.U[:, kept])
    dense = local.split("relu").right.to_dense()
    assert float(torch.linalg.norm(dense - part.U * part.S @ part.V.T)) <= part.error
    assert part.estimate >= d.estimate
    e = explain(part, target=1)
    assert e.indices.tolist() == kept.tolist()
    assert e.completeness < 1e-12
    assert alike(e, explain(d, target=1)[kept])
    assert part.worst_residual == pytest.approx(float(part.residuals.max() / d.S[0]))
    with pytest.raises(IndexError, match="component 6 does not exist"):
        d[6]


def test_a_larger_rank_serves_a_smaller_one(local, columns):
    whole = explain(local, layer="relu", target=1, rank=8)
    columns.clear()
    part = explain(local, layer="relu", target=1, rank=3)
    assert sum(columns) == 4
    assert alike(part, whole[:3])
    assert part.error == whole[:3].error
    assert part.settings["rank"] == 3
    assert part.settings == explain(local, layer="relu", target=1, rank=3).settings
    explain(local, layer="relu", target=1, rank=9)
    assert sum(columns) > 50, "more are found afresh"


@pytest.mark.parametrize("other", [{"tol": 1e-3}, {"method": "subspace"}, {"seed": 1}, {"rank": None, "tol": 0.5},
                                   {"max_products": 5000}])
def test_another_request_is_computed(local, columns, other):
    decompose(local, "relu", rank=8)
    columns.clear()
    decompose(local, "relu", **{"rank": 4, **other})
    assert sum(columns) > 10


def test_all_triplets_serve_every_rank_but_no_tolerance(local, columns):
    decompose(local, "relu", rank=None)
    columns.clear()
    assert len(decompose(local, "relu", rank=5)) == 5
    assert len(decompose(local, "relu")) == decompose(local, "relu", rank=None).S.shape[0]
    assert sum(columns) == 0
    decompose(local, "relu", tol=1e-2)
    assert sum(columns) > 0
    few = decompose(local, "relu", tol=0.5, method="krylov")
    columns.clear()
    decompose(local, "relu", rank=len(few) - 1, tol=0.5, method="krylov")
    assert sum(columns) > 0, "tol means another thing with a rank"


def test_what_has_not_converged_serves_only_its_own_request(local, columns):
    options = {"method": "krylov", "tol": 1e-15, "max_products": 40, "block_size": 4}
    assert not decompose(local, "relu", rank=8, **options).converged
    columns.clear()
    decompose(local, "relu", rank=8, **options)
    assert sum(columns) == 0
    decompose(local, "relu", rank=4, **options)
    assert sum(columns) > 0


def test_a_decomposition_changed_in_place_is_found_again(local):
    d = decompose(local, "relu", rank=4)
    before = d.V.clone()
    e = explain(local, layer="relu", target=0, rank=4)
    e.right_vectors.zero_()
    assert torch.equal(decompose(local, "relu", rank=4).V, before), "an explanation has copies"
    d.V.zero_()
    assert torch.equal(decompose(local, "relu", rank=4).V, before)


def test_a_kept_decomposition_is_not_given_for_changed_weights(local, monkeypatch):
    """Looking it up makes no product that would notice."""
    d = decompose(local, "relu", rank=4)

    def stale(self):
        raise RuntimeError("stem.weight has changed")

    monkeypatch.setattr(LocalOperator, "ensure_current", stale, raising=False)
    with pytest.raises(RuntimeError, match="has changed"):
        decompose(local, "relu", rank=4)
    assert len(d) == 4


@pytest.mark.parametrize(("chosen", "label"), [
    (None, None), ((), None), ("logits", "logits"), (1, "1"), (("heads", 0), "heads.0"), (torch.nn.Module.eval,
                                                                                         "Module.eval"),
])
def test_the_chosen_output_is_named(local, monkeypatch, chosen, label):
    monkeypatch.setattr(local, "captured", SimpleNamespace(**{**vars(local.captured), "output": chosen,
                                                              "layers": local.layers}))
    d = decompose(local, "relu", rank=1)
    assert d.settings["output"] == label
    assert ("(output" in repr(d)) == (label is not None)


def test_agreement_is_the_local_s(local, tmp_path):
    for value, words in ((3.2e-8, "agreement 3.2e-08"), (0.0, "agreement 0.0e+00"), (None, "agreement not checked")):
        local.decompositions.clear()
        seen = SimpleNamespace(**{name: getattr(local, name) for name in dir(local) if not name.startswith("__")})
        seen.agreement = value
        e = explain(seen, layer="relu", target=1, rank=2)
        e.save(tmp_path / "e.safetensors")
        for found in (e, e[:1], Explanation.load(tmp_path / "e.safetensors"), decompose(seen, "relu", rank=2)):
            assert found.agreement == value
            assert words in repr(found)


def test_locals_are_freed_with_what_they_keep(model):
    gc.disable()
    try:
        local = specxai.linearize(*model)
        d, e = decompose(local, "relu", rank=4), explain(local, layer="relu", target=1, rank=4)
        gone = weakref.ref(local.decompositions), weakref.ref(d.V)
        del local, d, e
        assert [ref() for ref in gone] == [None, None], "no cycle that waits for the collector"
    finally:
        gc.enable()


def test_a_neighbour_to_start_from(model, local):
    net, x = model
    near = specxai.linearize(net, x * 1.001)
    options = {"rank": 6, "method": "subspace", "tol": 1e-6}
    cold = decompose(near, "relu", **options)
    near.decompositions.clear()
    warm = decompose(near, "relu", start=decompose(local, "relu", **options), **options)
    assert warm.products < cold.products
    torch.testing.assert_close(warm.S, cold.S, rtol=1e-8, atol=0)
    assert decompose(near, "relu", **options).products == warm.products, "start is no part of the request"


def test_files(local, tmp_path, model):
    d = decompose(local, "relu", rank=6)
    d.save(tmp_path / "d.safetensors")
    read = Decomposition.load(tmp_path / "d.safetensors")
    assert all(torch.equal(value, getattr(read, name)) if isinstance(value, torch.Tensor)
               else value == getattr(read, name) for name, value in vars(d).items() if name != "local")
    assert repr(read) == repr(d)
    assert repr(read[:2]) == repr(d[:2])
    with pytest.raises(ValueError, match=r"has no Local.*pass local="):
        explain(read, target=1)
    e = explain(read, target=1, local=specxai.linearize(*model))
    assert equal(e, explain(d, target=1))
    d.save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as file:
        assert np.array_equal(file["V"], d.V.numpy())


def test_a_local_of_something_else_is_refused(local, model):
    net, x = model
    d = pickle.loads(pickle.dumps(decompose(local, "relu", rank=3)))
    torch.manual_seed(1)
    for other, words in [
        (specxai.linearize(net, x + 1), "another input"), (specxai.linearize(net, x, gates="frozen"), "gates='frozen'"),
        (specxai.linearize(Net().double().eval(), x), "other weights"),
    ]:
        with pytest.raises(ValueError, match=words):
            explain(d, local=other)
    with pytest.raises(TypeError, match="pass a Local as the first"):
        explain(local, layer="relu", local=local)


@pytest.mark.parametrize(("kwargs", "error", "words"), [
    ({"rank": 3}, TypeError, "a Decomposition and rank: it is decomposed already"),
    ({"tol": 0.1, "seed": 2}, TypeError, "tol, seed: it is decomposed already; leave those out"),
    ({"x": torch.ones(1, 1, 6, 6)}, TypeError, "a Decomposition and x"),
    ({"gates": "tangent"}, TypeError, "a Decomposition and gates"),
    ({"layer": "stem"}, ValueError, "layer='stem', but the Decomposition is of layer 'relu'"),
    ({"target": 5}, IndexError, "out of range"),
])
def test_what_a_decomposition_does_not_take(local, kwargs, error, words):
    d = decompose(local, "relu", rank=4)
    with pytest.raises(error, match=words):
        explain(d, **kwargs)


@pytest.mark.parametrize("call", [explain, decompose])
@pytest.mark.parametrize(("kwargs", "error", "words"), [
    ({"gates": "frozen"}, ValueError, r"made with gates='tangent': leave gates out, or pass specxai.linearize"),
    ({"backend": "native"}, ValueError, "made with backend='reference': leave backend out"),
    ({"output": "logits"}, ValueError, "output='logits', but a Local has its output chosen: leave output out"),
    ({"layer": None}, TypeError, "needs layer=.*this model has stem, relu"),
    ({"rank": 0}, ValueError, "rank=0 is out of range"),
    ({"tol": -1.0}, ValueError, "tol=-1.0"),
])
def test_a_local_is_not_asked_for_what_it_is_not(model, call, kwargs, error, words):
    local = specxai.linearize(*model, backend="reference")
    with pytest.raises(error, match=words):
        call(local, **{"layer": "relu", **kwargs})
    assert call(local, layer="relu", rank=2, gates="tangent", backend="reference").backend == "reference"
    assert call(local, layer="relu", rank=2, backend="auto").backend == "reference"


def test_options_of_the_solver_are_checked(local):
    with pytest.raises(TypeError, match=r"max_products=2\.5 is no integer"):
        decompose(local, "relu", max_products=2.5)


def test_each_part_says_what_ran_it(model):
    if specxai.linearize(*model).backend != "native":
        pytest.skip("the compiled kernels do not run here")
    said = {backend: explain(*model, layer="relu", rank=4, backend=backend).backends
            for backend in ("auto", "native", "reference")}
    assert said == {
        "auto": {"decomposition": "native", "targets": "reference"},  # single columns are not worth a plan
        "native": {"decomposition": "native", "targets": "native"},
        "reference": {"decomposition": "reference", "targets": "reference"},
    }


def test_results_travel_to_and_from_another_process(local):
    d = decompose(local, "relu", rank=4)
    e = explain(d, target=0)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        part = pool.submit(operator.getitem, d, slice(2)).result(timeout=60)
        there = pool.submit(operator.getitem, e, slice(2)).result(timeout=60)
    assert torch.equal(part.V, d.V[:, :2])
    assert part.local is None
    assert there.local is None
    assert there.completeness < 1e-12
    assert d.local is local, "what stays here keeps its Local"


def test_inside_inference_mode(model):
    """Results are ordinary tensors, as those that were found outside."""
    outside = explain(*model, layer="relu", target=1, rank=4)
    local = specxai.linearize(*model)
    with torch.inference_mode():
        e = explain(local, layer="relu", target=1, rank=4)
    assert equal(e, outside)
    assert not e.right_vectors.is_inference()
