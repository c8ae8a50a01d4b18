"""A Local made of dense matrices and a dense SVD, so that these tests depend on the spectral layer alone."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from specxai.operators import DenseOperator, ZeroOperator
from specxai.spectral import explain


def dense_svd(operator, rank=None, tol=None, method="auto", seed=0, progress=None):
    """`specxai.svd` on a dense matrix, with signs scrambled by `seed` as a BLAS might."""
    matrix = operator.to_dense()
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    signs = torch.randint(0, 2, (len(s),), generator=torch.Generator().manual_seed(seed)).to(u.dtype) * 2 - 1
    residuals = torch.linalg.vector_norm(matrix @ vh.T - u * s, dim=0)
    return SimpleNamespace(U=u * signs, S=s, V=vh.T * signs, residuals=residuals, method="dense", products=0, seed=seed,
                           error=float(torch.linalg.matrix_norm(matrix - u * s @ vh)))


@dataclass
class DenseNet:
    """x -> h = relu(W1 x + b1), layer "relu" of shape `mid` -> y = W3 relu(W2 h + b2) + b3 + P x, as a Local at x."""

    input: torch.Tensor
    weights: dict[str, torch.Tensor]
    mid: tuple[int, ...] = (2, 3, 3)
    gates = "tangent"
    backend = "fake"
    model_name = "DenseNet"
    layers = ("relu",)
    exactness = 1e-16
    checked = staticmethod(nullcontext)  # its weights do not change

    def __post_init__(self):
        w, x = self.weights, self.input.flatten()
        self.h = torch.relu(w["W1"] @ x + w["b1"])
        self.open1, self.open2 = (self.h > 0).to(x), (w["W2"] @ self.h + w["b2"] > 0).to(x)
        self.right = self.open1[:, None] * w["W1"]
        self.left = w["W3"] @ (self.open2[:, None] * w["W2"])
        bypass = w.get("P", torch.zeros(self.left.shape[0], x.numel(), dtype=x.dtype))
        self.jacobian = DenseOperator(self.left @ self.right + bypass)
        self.output = self(self.input)
        self.bias = self.output - (self.jacobian.matvec(x))[None]

    def __call__(self, x):
        w = self.weights
        return self.tail(torch.relu(w["W1"] @ x.flatten() + w["b1"]), x)

    def tail(self, h, x):
        w = self.weights
        y = w["W3"] @ torch.relu(w["W2"] @ h.flatten() + w["b2"]) + w["b3"]
        return (y + w["P"] @ x.flatten() if "P" in w else y)[None]

    def bias_contributions(self, target=None):
        w = self.weights
        found = {"fc1": self.left @ (self.open1 * w["b1"]), "fc2": w["W3"] @ (self.open2 * w["b2"]), "fc3": w["b3"]}
        return {k: v[None] if target is None else float(target @ v) for k, v in found.items()}

    def split(self, layer):
        if layer != "relu":
            raise KeyError(f"no layer {layer!r}")
        around = DenseOperator(self.weights["P"]) if "P" in self.weights else ZeroOperator(
            self.input.shape, self.output.shape, self.input.dtype)
        return SimpleNamespace(layer="relu", right=DenseOperator(self.right), left=DenseOperator(self.left),
                               bypass=around, value=self.h.reshape(1, *self.mid), shape=(1, *self.mid))

    def run_tail(self, layer, value):
        return self.tail(value, self.input)


def make_net(seed=0, dtype=torch.float64, skip=True, shape=(3, 4, 5), outputs=5) -> DenseNet:
    g = torch.Generator().manual_seed(seed)
    n, m, hidden = torch.Size(shape).numel(), 18, 12

    def draw(*size):
        return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

    weights = {"W1": draw(m, n) / n**0.5, "b1": draw(m), "W2": draw(hidden, m) / m**0.5, "b2": draw(hidden),
               "W3": draw(outputs, hidden), "b3": draw(outputs)}
    if skip:
        weights["P"] = draw(outputs, n) / n**0.5
    return DenseNet(draw(1, *shape), weights)


@pytest.fixture(autouse=True)
def solver(monkeypatch):
    """`use(solve)` replaces the solver of decompositions, and has with `dense`, so that `svd` is not needed here."""
    module = importlib.import_module("specxai.spectral.decompose")  # the package's attribute is the function

    def use(solve):
        monkeypatch.setattr(module, "svd", solve)

    use(dense_svd)
    return SimpleNamespace(use=use, dense=dense_svd)


@pytest.fixture(scope="session")
def dense_net():
    """`make_net`, as a fixture since test modules cannot import from a conftest."""
    return make_net


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def exact(net):
    return explain(net, layer="relu", target=1, rank=None)


@pytest.fixture
def truncated(net):
    return explain(net, layer="relu", target=1, rank=4)
