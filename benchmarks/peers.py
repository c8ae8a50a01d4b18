"""Who is measured: SpecXAI's backends and what one would write with torch.func instead.

`matrix-free` gives the same solver, `specxai.svd`, the products of `torch.func`; `dense` builds the Jacobian with
`jacrev` and hands it to `torch.linalg.svd`.  `Subject.check` compares each with the reference before it is timed.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from cases import CASES, COLUMNS, QUESTIONS, SOLVER_SEED, Case, Question
from torch import Tensor, nn

import specxai
from specxai.backends import describe
from specxai.operators import LinearOperator

REFERENCE, NATIVE = "specxai reference", "specxai native"
MATRIX_FREE, DENSE = "torch.func matrix-free", "torch.func dense"
PEERS = (DENSE, MATRIX_FREE, REFERENCE, NATIVE)  # dense first: its singular values are the others' truth

DENSE_COPIES = 4  # J, LAPACK's copy of it, the factors and its workspace
DENSE_BYTES = 4 << 30
CHECK = {torch.float32: 1e-3, torch.float64: 1e-10}  # a gate at rounding distance from zero may differ in float32


class _Reached(Exception):
    """Ends a forward pass at the layer."""


class UpTo:
    """x -> the activation at `layer` (the model's output for None); nothing after the layer runs."""

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        self.model, self.layer = model, layer

    def __call__(self, x: Tensor) -> Tensor:
        if self.layer is None:
            return self.model(x)
        seen: list[Tensor] = []

        def stop(module, inputs, output):
            seen.append(output)
            raise _Reached

        hook = self.model.get_submodule(self.layer).register_forward_hook(stop)
        try:
            self.model(x)
        except _Reached:
            pass
        finally:
            hook.remove()
        return seen[0]


class TorchFunc(LinearOperator):
    """R of `function` at x by torch.func, `chunk` columns at a time under vmap.

    forward   "linearize" traces the tangent map once (seconds), "jvp" repeats the forward pass for each chunk
    """

    def __init__(self, function, x: Tensor, chunk: int, forward: str = "linearize") -> None:
        value, pull = torch.func.vjp(function, x)
        super().__init__((value.numel(), x.numel()), x.dtype, x.device, block_size=chunk)
        self._input, self._output = x.shape, value.shape
        if forward == "linearize":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about get_attr nodes, from its constant folding
                push = torch.func.linearize(function, x)[1]
        else:
            def push(v):
                return torch.func.jvp(function, (x,), (v,))[1]
        self._push = torch.vmap(push)
        self._pull = torch.vmap(lambda u: pull(u)[0])

    def _matmat(self, X: Tensor) -> Tensor:
        return self._run(self._push, X, self._input)

    def _rmatmat(self, Y: Tensor) -> Tensor:
        return self._run(self._pull, Y, self._output)

    @torch.no_grad()
    def _run(self, product, block: Tensor, shape: torch.Size) -> Tensor:
        return product(block.T.reshape(-1, *shape)).flatten(1).T.contiguous()


@dataclass(frozen=True)
class Answer:
    """Singular values and what is known of their error, relative to ‖R‖_F and λ₁; the same for every peer."""

    values: Tensor
    error: float
    estimate: float
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
        if peer in (MATRIX_FREE, DENSE):
            return TorchFunc(self.function, self.x, self.chunk, forward)
        local = self.captured.linearize(self.x, backend=peer.removeprefix("specxai "))
        return local.jacobian if self.case.layer is None else local.split(self.case.layer).right

    def left_out(self, peer: str) -> str | None:
        """Why a peer cannot be run on this case, None where it can."""
        if peer == DENSE:
            needed = DENSE_COPIES * len(self.rows) * self.x.numel() * self.x.itemsize
            return f"does not fit: {needed / 1e9:.0f} GB" if needed > DENSE_BYTES else None
        if peer == NATIVE:
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
        if question.timed_from == "input":
            # jvp: tracing by linearize would cost more than the forward passes that it saves.
            return lambda: specxai.svd(self.operator(peer, "jvp"), seed=SOLVER_SEED, progress=False, **settings)
        operator = self.operator(peer)
        return lambda: specxai.svd(operator, seed=SOLVER_SEED, progress=False, **settings)

    def jacobian(self) -> Tensor:
        """The rows of J that are not zero, (rows, n)."""
        J = torch.func.jacrev(lambda x: self.function(x).flatten()[self.rows], chunk_size=self.chunk)(self.x)
        return J.detach().reshape(len(self.rows), -1)

    def dense(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """J, U, S, Vᵀ."""
        J = self.jacobian()
        return J, *torch.linalg.svd(J, full_matrices=False)

    def answer(self, result) -> Answer:
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
    """What a capture cannot do without: a bare torch.export, decomposed into the ATen ops that the rules know."""
    return torch.export.export(subject.model, (subject.x,), strict=False).run_decompositions({})


def values_error(values: Tensor, truth: Tensor) -> float:
    """max |λ_k − true λ_k| / λ₁."""
    return float((values.double() - truth[: len(values)]).abs().max() / truth[0])


def _difference(got: Tensor, want: Tensor) -> float:
    return _ratio((got - want).norm(), want.norm())


def _ratio(part: Tensor | float, whole: Tensor | float) -> float:
    return float(part) / float(whole) if float(whole) else float(part)
