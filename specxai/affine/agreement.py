"""`agreement`: the Jacobian of a `Local` against the user's own model run by torch, by one random probe each way.

Reverse: Jᵀu, vector for vector, against g = ∇(u·f) by autograd through the real module.  Forward: while Jᵀu is made,
every node's apply is held against its adjoint, ⟨A z, c⟩ = ⟨z, Aᵀc⟩ at the tangent z and the cotangent c of the probes,
so that a fault of one layer is measured against that layer, and ⟨J v, u⟩ against ⟨v, g⟩.  Both are relative and
scale-free.  What rounding may explain follows from the dtypes of the graph; only where a disagreement is larger is it
asked how far the sums at this x cancel, and after that what central differences of the model say.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.affine.probes import FEW_DIGITS, HALVES, Probe, aligned, halves, run_probe, shaken, tangents
from specxai.affine.witness import Difference, Pullback, difference, probe, pull_back, relative
from specxai.backends.reference import pull, push
from specxai.capture.recording import Recording
from specxai.errors import CaptureError, PrecisionWarning
from specxai.graph import Graph
from specxai.operators import LinearOperator as Operator
from specxai.precision import full_precision
from specxai.rules import Term

ROUNDINGS = 8.0  # tolerance, in roundings of the nodes added up as independent errors
SHAKE = 16.0  # times rounding: the noise that shows how far sums cancel
SHAKES = NEARBY = 3
CERTAIN = 0.1  # a tolerance above this tells nothing any more: float64 is asked
# torch's own derivative holds a single-precision constant: 1/6.
INEXACT = {torch.ops.aten.hardsigmoid.default: 1e-7}
REMEDY = "linearize(..., verify=False) goes on regardless"


@dataclass(frozen=True)
class Agreement:
    """How far J is from the model's own derivative at x.  `float()` is the larger of both directions.

    forward        J v: the largest disagreement of a node's apply with its adjoint, or of J v with the witness
    reverse        Jᵀu against the witness
    tolerance      what rounding explains at this x
    witness        "autograd", "frozen gates" for these, "central difference" where torch's own derivative is in doubt,
                   or "float64", the model's copy, where sums cancel or numbers are too small for the dtype
    cancellation   how much larger than the result the terms are that cancel in it; 1.0 where nothing made us ask
    note           what else there is to know
    """

    forward: float
    reverse: float
    tolerance: float
    witness: str = "autograd"
    cancellation: float = 1.0
    note: str = ""

    def __float__(self) -> float:
        return max(self.forward, self.reverse)


def certify(captured: Recording, graph: Graph, x: Tensor, output: Tensor, dtypes: Mapping[int, torch.dtype],
            nearby: Callable[[Tensor], Graph], in_double: Callable[[], tuple[Operator, float] | None],
            frozen: Callable[[Tensor], Pullback] | None = None) -> Agreement:
    """The agreement of the graph's Jacobian with the model at x.

    output   of the program at x
    dtypes   of the values at x
    nearby   the graph at another input
    in_double   J of the model's copy in float64, and its own agreement; None where there is no such copy or where it
             disagrees
    frozen   where gates are: what the model with its gates as constant factors makes of an input

    Raises CaptureError where rounding explains neither the output nor J.
    """
    theirs = pull_back(captured, x, cotangent)
    wanted = theirs if frozen is None else frozen(x)
    path = graph.between([graph.input], [captured.program.output])
    tolerance = _tolerance(captured, path, dtypes, x.dtype)
    _check_output(captured, x, output, theirs.output, tolerance)
    u = cotangent(output).to(graph.dtype)
    v = tangents(graph, path, x, wanted.gradient).to(graph.dtype)
    found = run_probe(captured, graph, path, u, v)
    if _is_faint(found.pulled):  # all of J is as small, or nothing is left of it
        found = run_probe(captured, graph, path, u, v, digits=True)
    _check_finite(captured, graph, path, found, v)
    name = "autograd" if frozen is None else "frozen gates"
    if wanted.gradient is None or not torch.isfinite(wanted.gradient).all():
        reverse = math.inf
    else:
        reverse = relative(found.pulled, wanted.gradient)
    result = Agreement(max(found.gap, aligned(found, u, v, wanted.gradient)), reverse, tolerance, name)
    if float(result) <= tolerance:
        return result
    lost = float(result)
    coarsest = max((dtypes[step] for step in path), key=lambda dtype: torch.finfo(dtype).eps, default=x.dtype)
    result, found = _cancelling(captured, graph, path, result, found, u, v,
                         [(nearby(y), (pull_back(captured, y, cotangent) if frozen is None else frozen(y)).gradient)
                          for y in (shaken(x, 1.0, draw) for draw in range(NEARBY))], wanted.gradient, coarsest)
    if float(result) > result.tolerance and frozen is None and wanted.gradient is not None:
        result = _with_torchs_rounding(captured, x, wanted.gradient, result)
    limit = max(CERTAIN if min(torch.finfo(dtypes[step]).bits for step in path) >= 32 else 1.0, tolerance)
    if float(result) > result.tolerance or result.tolerance > limit:
        # The model's copy in float64 is asked where digits are the question, as it costs another capture.
        digits = result.tolerance > limit or _is_faint(found.pulled) or _is_faint(found.pushed)
        twin = in_double() if digits and x.dtype is not torch.float64 else None
        if twin is not None:
            result = _against(twin, result, found, u, v)
        elif (strict := _node_by_node(captured, graph, path, u, v, result)) is not None and strict <= tolerance:
            result = replace(result, forward=strict, tolerance=tolerance,
                             note="⟨J v, u⟩ is lost to cancellation: J v was held against Jᵀu node by node only")
        elif float(result) > result.tolerance:
            result = _decide(captured, x, u, v, found, wanted, result)
        else:
            raise CaptureError(
                f"J cannot be certified here: the terms of its products cancel to the last digit of {x.dtype}, "
                "and the model's copy in float64 does not confirm it. Explain a value before the saturated softmax, "
                "sigmoid or norm (the logits), or use model.double() and x.double(); " + REMEDY)
    lost = {"float64": float(result), "central difference": 0.0}.get(result.witness, max(lost, result.tolerance))
    if lost > FEW_DIGITS and _accurate(x.dtype):
        warnings.warn(
            "cancellation: the derivative at this input is what is left of much larger terms, as behind a saturated "
            f"softmax, sigmoid or norm, and {str(x.dtype).removeprefix('torch.')} holds it to {lost:.0e} only. Explain "
            "the logits instead of the probabilities, or use model.double() and x.double()", PrecisionWarning,
            stacklevel=2)
    return result


def _is_faint(block: Tensor) -> bool:
    """Are all numbers so small that products on the way to them lost digits, or all?"""
    return not block.numel() or block.abs().max().item() < 2.0**24 * torch.finfo(block.dtype).tiny


def _node_by_node(captured: Recording, graph: Graph, path: list[int], u: Tensor, v: Tensor,
                  result: Agreement) -> float | None:
    """The largest of the reverse disagreement and the nodes' own, relative to their terms before they cancel.

    A saturated softmax loses the same digits here and in torch: Jᵀu agrees to the last while ⟨J v, u⟩ has none left.
    """
    if result.witness == "central difference" or not math.isfinite(result.reverse):
        return None
    return max(result.reverse, run_probe(captured, graph, path, u, v, [graph], 0.0, determined=True, digits=True).gap)


def _against(twin: tuple[Operator, float], result: Agreement, found: Probe, u: Tensor, v: Tensor) -> Agreement:
    """The result with J in float64, which agrees with the model's copy there, as the witness: what rounding costs."""
    J, agreement = twin
    pulled, pushed = J.rmatvec(u.double().flatten()), J.matvec(v[-1].double().flatten())
    return replace(result, forward=relative(found.pushed[-1], pushed), reverse=relative(found.pulled, pulled),
                   witness="float64", note=f"in float64 J and the model agree to {agreement:.0e}")


def cotangent(output: Tensor) -> Tensor:
    """u, the random cotangent at the output; 0 where the output is not finite."""
    u = probe(output.shape, 1, 0, output)[0]
    return torch.where(torch.isfinite(output), u, 0)


def _tolerance(captured: Recording, path: list[int], dtypes: Mapping[int, torch.dtype], dtype: torch.dtype) -> float:
    """Rounding of every node on the path, as independent errors, and the constants that torch itself rounds."""
    rounding = math.sqrt(sum(torch.finfo(dtypes[step]).eps ** 2 for step in path) + torch.finfo(dtype).eps ** 2)
    floor = max((INEXACT.get(step.target, 0.0) for step in captured.program.steps), default=0.0)
    return ROUNDINGS * rounding + floor


def _accurate(dtype: torch.dtype) -> bool:
    return torch.finfo(dtype).eps < 1e-5


def _cancelling(captured: Recording, graph: Graph, path: list[int], result: Agreement, found: Probe, u: Tensor,
                v: Tensor, near: list[tuple[Graph, Tensor | None]], gradient: Tensor | None,
                coarsest: torch.dtype) -> tuple[Agreement, Probe]:
    """The result and the probe with the tolerance that the cancellation at this x calls for.

    Between nodes, rounding acts like noise on every block that a term reads or makes; such noise, a few times as large,
    shows what it does to Jᵀu.  Inside a node, and in torch's own backward functions, the digits that are lost to
    cancellation come out otherwise at an x one rounding away, and where a block is taken in two halves.

    near       (the graph, the witness's gradient) at such inputs
    coarsest   dtype of the values at x: the witness rounds to it, J does not
    """
    count, target = iter(range(1, 1 << 40)), captured.program.output

    def noisy(block: Tensor) -> Tensor:
        return shaken(block, SHAKE, next(count), coarsest)

    def with_noise(term: Term) -> Term:
        return replace(term, adjoint=lambda block: noisy(term.adjoint(noisy(block))))

    def in_halves(draw: int) -> Callable[[Term], Term]:
        return lambda term: replace(term, apply=lambda block: halves(term.apply, block, draw),
                                    adjoint=lambda block: halves(term.adjoint, block, draw))

    def changed(change: Callable[[Term], Term]) -> Graph:
        return Graph({step: replace(node, terms=tuple(map(change, node.terms)), together=None)
                      for step, node in graph.nodes.items()}, graph.shapes, graph.input, graph.dtype, graph.device)

    with torch.no_grad(), full_precision(v.device):
        pulled = pull(changed(with_noise), {target: torch.stack([u] * SHAKES)}, [graph.input])[0]
        noise = math.sqrt(sum(relative(row, found.pulled) ** 2 for row in pulled) / SHAKES) / SHAKE
        for cut in (changed(in_halves(draw)) for draw in range(HALVES)):
            noise = max(noise, relative(pull(cut, {target: u.unsqueeze(0)}, [graph.input])[0], found.pulled),
                        relative(push(cut, {graph.input: v}, [target])[0], found.pushed))
        for other, moved in near:
            again = pull(other, {target: u.unsqueeze(0)}, [graph.input])[0]
            noise = max(noise, relative(again, found.pulled))
            if moved is not None and gradient is not None:
                noise = max(noise, relative(moved, gradient))
    tolerance = max(result.tolerance, ROUNDINGS * min(noise, 1.0))
    if found.gap > result.tolerance:
        found = run_probe(captured, graph, path, u, v, [other for other, _ in near], ROUNDINGS / result.tolerance,
                          digits=found.digits)
    forward = max(found.gap, aligned(found, u, v, gradient))
    return replace(result, forward=forward, tolerance=tolerance, cancellation=tolerance / result.tolerance), found


def _with_torchs_rounding(captured: Recording, x: Tensor, gradient: Tensor, result: Agreement) -> Agreement:
    """The result with the tolerance that torch's own backward calls for, which may keep fewer digits than J.

    At a saturated value, where x one rounding away changes nothing, its gradient for u comes out otherwise than the sum
    of those for two halves of u.
    """
    noise = 0.0
    for draw in range(NEARBY):
        parts = []
        for side in (False, True):
            found = pull_back(captured, x, lambda output, side=side, draw=draw: cotangent(output) * (
                (probe(output.shape, 1, 200 + draw, output)[0] < 0) == side))
            parts.append(found.gradient)
        if all(part is not None for part in parts):
            noise = max(noise, relative(parts[0] + parts[1], gradient))
    tolerance = max(result.tolerance, ROUNDINGS * min(noise, 1.0))
    return replace(result, tolerance=tolerance, cancellation=result.cancellation * tolerance / result.tolerance)


def _check_output(captured: Recording, x: Tensor, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    if ours.shape == theirs.shape:
        finite = torch.isfinite(theirs)
        rest = torch.equal(torch.where(finite, 0, ours).nan_to_num(2.0), torch.where(finite, 0, theirs).nan_to_num(2.0))
        error = relative(torch.where(finite, ours, 0), torch.where(finite, theirs, 0)) if rest else math.inf
        if error > tolerance:  # how far rounding of x alone moves the output, if it is the same twice
            with torch.no_grad():
                again, moved = (captured.run_model(y).detach() for y in (x, shaken(x, SHAKE, 0)))
            if relative(torch.where(finite, again, 0), torch.where(finite, theirs, 0)) > tolerance:
                raise CaptureError("the model's output differs from one run to the next at the same input: randomness "
                                   "in forward(), or state that changes between calls. An affine map needs a model "
                                   "that is the same twice: seed it or fix that state; " + REMEDY)
            tolerance = max(tolerance, ROUNDINGS * relative(torch.where(finite, moved, 0), theirs.where(finite, 0)))
        if error <= tolerance:
            return
        far = f"by {error:.1e} (relative)"
    else:
        far = f"in shape: {tuple(ours.shape)} against {tuple(theirs.shape)}"
    raise CaptureError(f"the captured graph's output differs from the model's {far}. A setting that changed since the "
                       "capture, randomness in forward(), or state that changes between calls are the usual causes; "
                       + REMEDY)


def _check_finite(captured: Recording, graph: Graph, path: list[int], found: Probe, v: Tensor) -> None:
    """Raise CaptureError at the first node whose derivative is not finite."""
    if torch.isfinite(found.pulled).all() and torch.isfinite(found.pushed).all():
        return
    with torch.no_grad(), full_precision(v.device):
        for step in path:
            for term in graph.nodes[step].terms:
                ones = v.new_ones(1, *graph.shapes[term.input])
                bad = ~torch.isfinite(term.apply(ones))
                if bad.any():
                    at = captured.program.steps[step]
                    where = f" ({at.source})" if at.source else ""
                    raise CaptureError(
                        f"the derivative of {at.target} in layer {at.layer}{where} is infinite or NaN at "
                        f"{int(bad.sum())} of its {bad.numel()} units at this input, as that of sqrt is at 0: there "
                        "is no affine map here. Keep its argument away from that point (sqrt(z + eps)), or move x")
    raise CaptureError("the Jacobian's products overflow at this input: its numbers are too large for "
                       f"{v.dtype}; use model.double() and x.double()")


def _decide(captured: Recording, x: Tensor, u: Tensor, v: Tensor, found: Probe, wanted: Pullback,
            result: Agreement) -> Agreement:
    """What central differences say where J and torch's derivative of the model differ.

    They decide where torch cannot differentiate the model, and where its own backward may be wrong, which is known of
    batch norm.  A backward written by hand, or changed by a hook, is the model's own word, which J does not keep: that
    is refused.
    """
    program = captured.program
    measured = None
    if result.witness == "autograd":
        measured = difference(captured, x, v[-1])
    with_us = measured is not None and _sides_with_us(measured, found, u, v, wanted)
    doubtful = wanted.trouble or any("batch_norm" in str(step.target) for step in program.steps)
    if with_us and doubtful and found.gap <= result.tolerance and not wanted.custom:
        error = relative(found.pushed[-1], measured.value)
        backward = aligned(replace(found, pushed=measured.value.unsqueeze(0)), u, v[-1:], found.pulled)
        why = f"torch could not differentiate the model ({wanted.trouble})" if wanted.trouble else (
            "torch's own derivative of the model disagrees with central differences of its forward pass, and J agrees "
            "with them")
        limit = max(result.tolerance, 4 * measured.error, 1e-6 if measured.dtype is torch.float64 else 1e-2)
        if max(error, backward) <= limit:
            return replace(result, forward=max(found.gap, error), reverse=backward, tolerance=limit,
                           witness="central difference", note=why)
    rounding = f"where rounding explains {result.tolerance:.0e}"
    if found.gap > result.tolerance:
        at = program.steps[found.where]
        what = (f"product with J differs from the adjoint of its product with Jᵀ by {found.gap:.1e} at layer "
                f"{at.layer} ({at.target})")
    elif wanted.trouble:
        raise CaptureError(f"torch.autograd cannot differentiate the model: {wanted.trouble}. An in-place operation on "
                           "a value that a gradient needs is the usual cause, and central differences of its forward "
                           f"pass do not confirm J either; {REMEDY}")
    else:
        what = f"product with Jᵀ differs from the model's by {float(result):.1e}"
    if measured is None:
        side = "Central differences of the model could not be taken."
    elif with_us:
        side = ("Central differences of the model's forward pass side with J: the model's own backward is not its "
                "forward's derivative")
        side += f" ({', '.join(wanted.custom)})." if wanted.custom else "."
    else:
        side = "Central differences of the model's forward pass do not side with J."
    raise CaptureError(
        f"the captured graph's {what} (relative), {rounding}. {side} A custom autograd.Function or hook whose backward "
        "is not its forward's derivative (a straight-through estimator), randomness in forward(), state that changes "
        f"between calls, or an error in a rule of SpecXAI are the usual causes; {REMEDY}")


def _sides_with_us(measured: Difference, found: Probe, u: Tensor, v: Tensor, wanted: Pullback) -> bool:
    ours = relative(found.pushed[-1], measured.value)
    if wanted.gradient is None or not torch.isfinite(wanted.gradient).all():
        return ours <= 1e-3
    # Their J v is known along u only.
    along = (measured.value * u.double().flatten()).sum()
    theirs = (v[-1].double() * wanted.gradient.double()).sum()
    size = (measured.value * u.double().flatten()).norm()
    return ours <= 1e-2 and ours < 0.1 * ((along - theirs).abs() / size).item() if size else ours == 0
