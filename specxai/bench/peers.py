"""Who is measured: SpecXAI's backends and what one would write instead.

Products by `torch.func`, by autograd and by a chain of whole convolutions go through the same solver, `specxai.svd`;
`dense` builds the Jacobian with `jacrev` and hands it to `torch.linalg.svd`; ARPACK, PROPACK and skerch are solvers of
their own over the products of `torch.func`.  `Subject.check` compares each with the reference before it is timed.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

import specxai
from specxai.backends import describe
from specxai.bench.cases import CASES, COLUMNS, QUESTIONS, SOLVER_SEED, Case, Question
from specxai.bench.operators import AutogradBatch, GatedChain, TorchFunc, UpTo, chain_of
from specxai.bench.solvers import Triplets, has_skerch, residual, scipy_svds, skerch_svd
from specxai.operators import LinearOperator

REFERENCE, AUTO = "specxai reference", "specxai auto"
MATRIX_FREE, DENSE = "torch.func matrix-free", "torch.func dense"
AUTOGRAD, CHAIN = "autograd on a batch", "dense gated chain"
ARPACK, PROPACK, SKERCH = "scipy ARPACK", "scipy PROPACK", "skerch"
# Dense first: its singular values are the others' truth.
PEERS = (DENSE, MATRIX_FREE, AUTOGRAD, CHAIN, ARPACK, PROPACK, SKERCH, REFERENCE, AUTO)
SOLVERS = (ARPACK, PROPACK, SKERCH)  # asked for the leading triplets only

DENSE_COPIES = 4  # J, LAPACK's copy of it, the factors and its workspace
DENSE_BYTES = 4 << 30
CHECK = {torch.float32: 1e-3, torch.float64: 1e-10}  # a gate at rounding distance from zero may differ in float32


@dataclass(frozen=True)
class Answer:
    """Singular values and what is known of their error, relative to ‖R‖_F and λ₁; the same for every peer."""

    values: Tensor
    error: float | None
    estimate: float | None
    residual: float
    products: int
    converged: bool
    method: str


class Subject:
    """A case made ready: model and input built, captured once."""

    def __init__(self, case: Case, chunk: int | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.case, self._chunk = case, chunk
        model, x = case.make()
        self.model, self.x = model.to(dtype).requires_grad_(False), x.to(dtype)
        self.function = UpTo(self.model, case.layer)

    @cached_property
    def captured(self):
        return specxai.capture(self.model, self.x)

    @cached_property
    def reference(self) -> LinearOperator:
        return self.operator(REFERENCE)

    @cached_property
    def rows(self) -> Tensor:
        """Outputs that are not zero: at a layer that ends in a ReLU the others are zero rows of J."""
        return self.function(self.x).flatten().nonzero().flatten()

    @cached_property
    def chunk(self) -> int:
        """The width at which torch.func's adjoint is fastest per column, tried until it gets slower."""
        if self._chunk:
            return self._chunk
        best, fastest = 8, float("inf")
        operator = TorchFunc(self.function, self.x, COLUMNS, forward="jvp")
        operator.rmatmat(torch.ones(operator.shape[0], 1, dtype=self.x.dtype))
        for width in (8, 16, 32, 64):
            block = torch.randn(operator.shape[0], width, dtype=self.x.dtype)
            start = time.perf_counter()
            operator.rmatmat(block)
            if (spent := (time.perf_counter() - start) / width) > fastest:
                break
            best, fastest = width, spent
        return best

    def operator(self, peer: str, forward: str = "linearize") -> LinearOperator:
        """R with the gates fixed at x."""
        if peer in (MATRIX_FREE, DENSE, *SOLVERS):
            return TorchFunc(self.function, self.x, self.chunk, forward)
        if peer == AUTOGRAD:
            return AutogradBatch(self.function, self.x, self.chunk)
        if peer == CHAIN:
            return GatedChain(chain_of(self.model, self.case.layer), self.x, self.chunk)
        local = self.captured.linearize(self.x, backend=peer.removeprefix("specxai "))
        return local.jacobian if self.case.layer is None else local.split(self.case.layer).right

    def left_out(self, peer: str, question: str) -> str | None:
        """Why a peer cannot be run on this case, None where it can."""
        if peer in SOLVERS and not question.startswith(("first", "default")):
            return "finds the leading triplets by products of its own choice"
        if peer in (AUTOGRAD, CHAIN) and question == "exact":
            return "the same as matrix-free, slower"
        if peer == CHAIN and chain_of(self.model, self.case.layer) is None:
            return "the layers are not a sequence of convolutions"
        if peer == SKERCH and not has_skerch():
            return "not installed: pip install 'specxai[bench]'"
        if peer == DENSE:
            needed = DENSE_COPIES * len(self.rows) * self.x.numel() * self.x.itemsize
            return f"does not fit: {needed / 1e9:.0f} GB" if needed > DENSE_BYTES else None
        if peer == AUTO:
            return next((why for name, ok, why in describe(self.x.device, self.x.dtype) if name == "native" and not ok),
                        None)
        return None

    def check(self, peer: str) -> float:
        """Relative difference between the peer's products and the reference's; AssertionError where it is too large."""
        if peer == REFERENCE:  # against torch.autograd when captured, against its peers here
            return 0.0
        m, n = self.reference.shape
        generator = torch.Generator().manual_seed(SOLVER_SEED)
        X, Y = (torch.randn(size, 1, generator=generator).to(self.x) for size in (n, m))
        operator = self.operator(peer, forward="jvp")
        worst = max(_difference(operator.matmat(X), self.reference.matmat(X)),
                    _difference(operator.rmatmat(Y), self.reference.rmatmat(Y)))
        assert worst <= CHECK[self.x.dtype], f"{peer} differs from the reference by {worst:.1e} on {self.case.name}"
        return worst

    def solver(self, peer: str, question: Question):
        """() -> result, the work that is timed.  What the question does not time is done here."""
        if peer == DENSE:
            return self.dense
        if peer == MATRIX_FREE and question.name == "exact":
            # Without a cut all triplets take min(m, n) columns: what one can have instead is the leading 50.
            settings = QUESTIONS["equal"].settings
        else:
            settings = question.settings
        if peer in SOLVERS:
            return lambda: self._solved(peer, settings)
        if question.name.startswith("default") and peer in (REFERENCE, AUTO):
            # A model of its own each time, as a capture would be found again.
            chosen = {} if peer == AUTO else {"backend": "reference"}
            return lambda: specxai.explain(copy.deepcopy(self.model), self.x, self.case.layer, rank=settings["rank"],
                                           seed=SOLVER_SEED, progress=False, **chosen)
        if question.timed_from == "input":
            # jvp: tracing by linearize would cost more than the forward passes that it saves.
            return lambda: specxai.svd(self.operator(peer, "jvp"), seed=SOLVER_SEED, progress=False, **settings)
        operator = self.operator(peer)
        return lambda: specxai.svd(operator, seed=SOLVER_SEED, progress=False, **settings)

    def _solved(self, peer: str, settings: dict) -> Triplets:
        rank, tol = settings["rank"], settings["tol"]
        if peer == SKERCH:
            return skerch_svd(self.operator(peer, "jvp"), rank, tol, SOLVER_SEED, settings.get("max_products", 4096))
        # One vector at a time: the traced tangent map is then the faster one.
        return scipy_svds(self.operator(peer), rank, tol, peer.removeprefix("scipy ").lower(), SOLVER_SEED)

    def jacobian(self) -> Tensor:
        """The rows of J that are not zero, (rows, n)."""
        J = torch.func.jacrev(lambda x: self.function(x).flatten()[self.rows], chunk_size=self.chunk)(self.x)
        return J.detach().reshape(len(self.rows), -1)

    def dense(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """J, U, S, Vᵀ."""
        J = self.jacobian()
        return J, *torch.linalg.svd(J, full_matrices=False)

    def answer(self, result) -> Answer:
        if isinstance(result, specxai.Explanation):
            solver, worst = result.settings["svd"], float(result.residuals.max())
            return Answer(result.S, _ratio(result.error, solver["norm"]), _ratio(solver["estimate"], solver["norm"]),
                          _ratio(worst, result.S[0]), result.products, solver["converged"], result.method)
        if isinstance(result, Triplets):
            worst = residual(self.reference, result)
            return Answer(result.S, None, None, worst, result.products, result.converged, result.method)
        if not isinstance(result, tuple):
            return Answer(result.S, result.relative_error, _ratio(result.estimate, result.norm),
                          _ratio(result.residuals.max(), result.S[0]), result.products, result.converged, result.method)
        J, U, S, Vt = result
        forward, adjoint = (J @ Vt.T - U * S).norm(dim=0).max(), (J.T @ U - Vt.T * S).norm(dim=0).max()
        error = _ratio((J - U * S @ Vt).norm(), J.norm())
        return Answer(S, error, error, _ratio(max(forward, adjoint), S[0]), J.shape[0], True, "gesdd")


def find(case: str, chunk: int | None = None) -> Subject:
    return Subject(CASES[case], chunk)


def capture(subject: Subject):
    return specxai.capture(subject.model, subject.x)


def export(subject: Subject):
    """What other tools pay for a graph: a bare torch.export, decomposed into the ATen ops that the rules know."""
    return torch.export.export(subject.model, (subject.x,), strict=False).run_decompositions({})


def values_error(values: Tensor, truth: Tensor) -> float:
    """max |λ_k − true λ_k| / λ₁."""
    return float((values.double() - truth[: len(values)]).abs().max() / truth[0])


def _difference(got: Tensor, want: Tensor) -> float:
    return _ratio((got - want).norm(), want.norm())


def _ratio(part: Tensor | float, whole: Tensor | float) -> float:
    return float(part) / float(whole) if float(whole) else float(part)
