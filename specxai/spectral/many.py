"""Explanations of many inputs of one shape, taken together where the layer is narrow enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from specxai._blocks import as_integer, identity_blocks
from specxai._processes import spread
from specxai.affine.alone import each_alone
from specxai.affine.batch import Batch, MixedBatch
from specxai.affine.captured import linearize
from specxai.affine.local import Local, Split
from specxai.affine.target import resolve_target, resolve_targets
from specxai.backends.used import used
from specxai.errors import CaptureError, SpecXAIError, StaleError
from specxai.operators import LinearOperator
from specxai.precision import full_precision
from specxai.spectral.decompose import Request, joined
from specxai.spectral.explain import explain
from specxai.spectral.explanation import Explanation
from specxai.spectral.together import Found, Products, explanations
from specxai.svd.certify import HELD_OUT, safety_factor
from specxai.svd.dense import DenseSVDs, dense_svds
from specxai.svd.products import ProgressBar, gaussian, generator_of
from specxai.svd.solve import check_options

__all__ = ["explain_many"]

MATRICES = 256 << 20  # bytes of the R_i of a batch
WIDEST = 1024  # side of an R_i; wider ones are decomposed from products, one input after the other
MOST, MOST_ELSEWHERE = 256, 1024  # inputs of a batch on the CPU, and on devices, which wait for the host once a batch
SQUARES = 1e140  # entries of an R_i up to this, and from its inverse on, have squares whose sums float64 holds


def explain_many(model: nn.Module, inputs: Tensor | Sequence[Tensor], layer=None, target=None, *,
                 targets: Sequence | None = None, rank="auto", tol: float | None = None, method: str = "auto",
                 seed: int = 0, gates=None, backend: str | None = None, output=None, kwargs=None,
                 each: Mapping[str, Tensor] | None = None,
                 batch_size: int | None = None, devices: Sequence[str | torch.device] | None = None,
                 max_memory: int | None = None, progress: bool | None = None) -> Iterator[Explanation]:
    """The explanation of each of many inputs, one after the other: `explain` for a data set.

    Where the layer or the input has at most 1,024 units, a whole batch is linearised at once, and a product is one with
    the R_i of every input; R_i is then small enough to be multiplied out, and is decomposed exactly.  That each input
    is apart from the others is certified for every batch: products with one input's columns reach no other's, and its
    output and the layer's are those of the model's program for one input, which `torch.vmap` runs at each, so that none
    sees another.  One input, drawn by the seed, is given to the model itself; all are where the model's code decides by
    an input's values, or where an op does not run under vmap.  What the code decides by anything but its input (how
    often it ran, say) is seen at drawn inputs only, and what it does to the gradient alone at the first.  Where inputs
    are not apart, where the model runs with one input only, or where R_i is larger, each is explained alone.

    model      an nn.Module in eval mode
    inputs     (N, *input_shape), a data set's images, say, or token ids (N, T); or a list of inputs (1, *input_shape)
    layer      as for `specxai.explain`
    target     the same for all, as for `specxai.explain`: None explains each input's largest output
    targets    instead of it, one for each input: the labels of a data set
    rank, tol, method, seed, gates, backend, output, kwargs   as for `specxai.explain`; kwargs are the same for all
    each       further arguments by name of which every input has its own: tensors (N, ...), such as attention masks
    batch_size inputs that are taken together; by default as many as 256 MiB hold the R_i of and `max_memory` holds a
               product with one vector of, at most 256 on the CPU and 1,024 elsewhere
    devices    one process each, as ["cuda:0", "cuda:1"] or ["cpu", "cpu"]; the model and the options must be such as
               can be pickled, and a script needs `if __name__ == "__main__":`
    max_memory bytes that one product may hold
    progress   True or False forces the bar; None shows it on terminals, on runs longer than two seconds

    Yields an `Explanation` for each input, in order: `list(...)` keeps them all.  Its `local` is None; for surgery give
    it one, `dataclasses.replace(e, local=specxai.linearize(model, x))`.  Arguments are checked before the first.  All
    explanations are of the weights at the call: once they have changed, the next batch raises StaleError.

    Raises TypeError, ValueError or IndexError for an argument out of range, SpecXAIError where a process of `devices`
    ends, and what `specxai.explain` raises.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> many = list(specxai.explain_many(net, torch.randn(10, 4), "1", rank=None))
    >>> len(many), max(e.completeness for e in many) < 1e-5
    (10, True)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain_many needs an nn.Module, got {type(model).__name__}: a captured model and a Local "
                        "belong to one input")
    inputs = _stacked(inputs)
    if targets is not None and target is not None:
        raise TypeError("give target= for all inputs or targets= for each, not both")
    if targets is not None and not hasattr(targets, "__len__"):
        raise TypeError(f"targets={targets!r}: give one for each of {len(inputs)} inputs, as a list or a tensor; the "
                        "same for all is target=")
    if targets is not None and len(targets) != len(inputs):
        raise ValueError(f"targets has {len(targets)} entries for {len(inputs)} inputs: give one for each")
    size = None if batch_size is None else as_integer(batch_size)
    if batch_size is not None and (size is None or size < 1):
        raise ValueError(f"batch_size={batch_size!r} is out of range: give a positive integer")
    each = _each(each, kwargs, len(inputs))
    chosen = [target] * len(inputs) if targets is None else _targets(targets)
    options = {"gates": gates, "backend": backend, "max_memory": max_memory, "output": output, "kwargs": kwargs}
    options = {name: value for name, value in options.items() if value is not None}
    asked = {"rank": rank, "tol": tol, "method": method, "seed": seed}
    request = Request.of(**asked)
    check_options(tol, method, seed)
    if not len(inputs):
        return iter(())
    # The first input by itself: it shows what is wrong with the arguments, and how large things are.
    first = linearize(model, inputs[:1], **_with(options, each, slice(0, 1)))
    if layer is None:
        raise TypeError(f"explain_many needs layer=, the name of a module or the module itself; this model has "
                        f"{', '.join(first.layers[-8:])}")
    split = first.split(layer)
    _check_targets(chosen, first.output)
    m, n = split.right.shape
    most = size or (MOST if inputs.device.type == "cpu" else MOST_ELSEWHERE)
    if size is None:
        most = min(most, MATRICES // max(1, m * n * split.right.dtype.itemsize))
    if size is None or max_memory is not None:
        most = min(most, first.max_memory // max(1, first.jacobian.product_bytes))
    narrow = 0 < min(m, n) <= WIDEST and request.method in ("auto", "exact")
    together = max(1, most) if narrow else 1
    if devices is None:
        run = _Run(model, layer, request, asked, options, first)
        return run.explanations(inputs, each, chosen, together, progress)
    shared = model, split.layer, {**asked, **options, "batch_size": together}
    return _spread(shared, first, _devices(devices), inputs, each, chosen, together, progress)


def _stacked(inputs: Tensor | Sequence[Tensor]) -> Tensor:
    if isinstance(inputs, Tensor):
        if inputs.ndim < 2:
            raise ValueError(f"inputs has shape {tuple(inputs.shape)}: give (N, *input_shape), N inputs of one shape")
        return _finite(inputs)
    found = list(inputs) if isinstance(inputs, Sequence) else None
    if found is None or not all(isinstance(one, Tensor) and one.ndim and one.shape[0] == 1 for one in found):
        raise TypeError("inputs must be one tensor (N, *input_shape), or a list of tensors (1, *input_shape)")
    if len({(one.shape, one.dtype, one.device) for one in found}) > 1:
        raise ValueError("inputs differ in shape, dtype or device: explain those that are alike together")
    return _finite(torch.cat(found)) if found else torch.empty(0, 1)


def _finite(inputs: Tensor) -> Tensor:
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        bad = [i for i, one in enumerate(inputs) if not bool(torch.isfinite(one).all())]
        raise ValueError(f"input {bad[0]} holds NaN or infinity, where there is no affine map"
                         + (f", and so do {len(bad) - 1} more" if len(bad) > 1 else "") + "; give finite ones")
    return inputs


def _each(each: Mapping[str, Tensor] | None, kwargs: Mapping | None, count: int) -> dict[str, Tensor]:
    for name, tensor in (each or {}).items():
        if not isinstance(tensor, Tensor) or not tensor.ndim or len(tensor) != count:
            what = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"each[{name!r}] must be a tensor with one entry for each of {count} inputs; got {what}")
        if name in (kwargs or {}):
            raise ValueError(f"{name!r} is in kwargs and in each: give it once")
    return dict(each or {})


def _with(options: dict, each: dict[str, Tensor], part: slice) -> dict:
    """The options, with what the inputs of a part have of their own."""
    if not each:
        return options
    return {**options, "kwargs": {**options.get("kwargs", {}), **{name: own[part] for name, own in each.items()}}}


def _targets(targets: Sequence) -> list:
    """Labels as ints: an entry of a tensor of labels is a tensor."""
    if isinstance(targets, Tensor) and targets.ndim == 1 and targets.dtype in (torch.int64, torch.int32):
        targets = targets.tolist()
    numbers = [as_integer(one) for one in targets]
    return [one if number is None else number for one, number in zip(targets, numbers, strict=True)]


def _check_targets(targets: list, output: Tensor) -> None:
    """Raise what is wrong with a target of any input; what a callable returns only its own input shows."""
    numbers = {target for target in targets[1:] if isinstance(target, int)}
    others = {id(target): target for target in targets[1:] if target is not None and not isinstance(target, int)}
    for target in (targets[0], *numbers, *others.values()):
        if target is targets[0] or isinstance(target, Tensor) or not callable(target):
            resolve_target(target, output)


def _devices(devices: Sequence[str | torch.device]) -> list[torch.device]:
    if isinstance(devices, (str, torch.device)) or not len(devices):
        raise ValueError(f"devices={devices!r}: give a list, as ['cuda:0', 'cuda:1']")
    found = [torch.device(one) for one in devices]
    for one in found:
        if one.type == "cuda" and (one.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"devices: there is no {one}; this machine has {torch.cuda.device_count()} of CUDA's")
    return found


def _spread(shared: tuple, first: Local, devices: list[torch.device], inputs: Tensor, each: dict[str, Tensor],
            targets: list, size: int, progress: bool | None) -> Iterator[Explanation]:
    # Neither so small that a process begins again and again, nor so large that one is left with all of the work.
    size = max(size, min(16, -(-len(inputs) // (4 * len(devices)))))
    parts = [slice(at, at + size) for at in range(0, len(inputs), size)]
    tasks = ((inputs[part].cpu(), {name: own[part].cpu() for name, own in each.items()}, targets[part])
             for part in parts)
    bar = ProgressBar(progress, "explain", " inputs", len(inputs))
    try:
        for found in spread(_explained, shared, devices, tasks):
            _check_current(first)  # the processes have copies
            for e in found:
                bar.update(1)
                yield e
    finally:
        bar.close()


def _check_current(first: Local) -> None:
    """Raise StaleError where the weights have changed, and not only what a forward() keeps of its last batch."""
    try:
        first.ensure_current()
    except StaleError:
        first.captured.run_model(first.input)
        first.ensure_current()


def _explained(shared: tuple, device: torch.device, task: tuple) -> list[Explanation]:
    """What a process of `devices` does."""
    (model, layer, options), task = shared, tree_map_only(Tensor, lambda tensor: tensor.to(device), task)
    inputs, each, targets = task
    options = tree_map_only(Tensor, lambda tensor: tensor.to(device), options)
    return list(explain_many(model.to(device), inputs, layer, targets=targets, each=each, progress=False, **options))


@dataclass(frozen=True)
class _Run:
    """What is asked of every input."""

    model: nn.Module
    layer: Any
    request: Request
    asked: dict
    options: dict
    first: Local

    def explanations(self, inputs: Tensor, each: dict[str, Tensor], targets: list, size: int,
                     progress: bool | None) -> Iterator[Explanation]:
        bar = ProgressBar(progress, "explain", " inputs", len(inputs))
        try:
            start = 0
            while start < len(inputs):
                _check_current(self.first)
                part = slice(start, min(start + size, len(inputs)))
                found = None
                if size > 1:
                    try:
                        found = self.together(inputs, each, targets, part)
                    except MixedBatch:
                        size = 1
                        continue
                if found is None:
                    part = slice(start, start + 1)
                    found = [self.alone(inputs[part], _with(self.options, each, part), targets[start])]
                for e in found:
                    bar.update(1)
                    yield e
                start += len(found)
        finally:
            bar.close()

    def alone(self, x: Tensor, options: dict, target) -> Explanation:
        local = linearize(self.model, x, **options)
        return replace(explain(local, layer=self.layer, target=target, progress=False, **self.asked), local=None)

    def together(self, inputs: Tensor, each: dict[str, Tensor], targets: list, part: slice) -> list[Explanation]:
        """Raises MixedBatch where the inputs are not apart."""
        try:
            batch = Batch(self.model, inputs[part], **_with(self.options, each, part))
            batch.local.split(self.layer)
        except (CaptureError, ValueError) as error:
            raise MixedBatch("the model does not run with several inputs as with one") from error
        local = batch.local
        with local.checked(), full_precision(local.input.device):
            split = local.split(self.layer)
            self.check_values(batch, split.layer, inputs, each, part)
            shape = batch.per_input(split.shape, f"layer {split.layer!r}")
            w, labels = resolve_targets(targets[part], local.output)
            w = w.to(split.left.dtype)
            with used() as names:
                found = _decomposed(batch, split.right, self.request)
            backends = {"decomposition": joined(names, local)}
            with used() as names:
                products = _products(batch, split, w)
            backends["targets"] = joined(names, local)
            if part.start == 0:
                self.check_derivative(batch, products, w)
            return explanations(batch, self.request, split.layer, shape, found, w, labels, products, backends)

    def check_derivative(self, batch: Batch, products: Products, w: Tensor) -> None:
        """Raises MixedBatch where the first input's derivative is not that of the input alone, which no value shows:
        code may scale gradients by the size of the batch.
        """
        split = self.first.split(self.layer)
        for mine, operator in ((products.pulled, split.left), (products.gradient, self.first.jacobian)):
            batch.check_same(mine[:1], operator.reference.rmatmat(w[0, :, None]).T[None])

    def check_values(self, batch: Batch, layer: str, inputs: Tensor, each: dict[str, Tensor], part: slice) -> None:
        """Raises MixedBatch where an output, or what the layer makes, is not that of the input alone, which no
        derivative shows."""
        one, local, drawn = self.first.captured, batch.local, list(range(batch.count))
        steps = one.program.output, one.program.layers.get(layer, one.program.output)
        theirs = None if local.captured.specialised else each_alone(one, local.input, local.captured.feed.tensors(),
                                                                    steps)
        if theirs is not None:
            for mine, alone in zip((local.output, local.split(layer).value), theirs, strict=True):
                batch.check_same(mine, alone)
            drawn = [Random(f"{self.request.seed} {part.start}").randrange(batch.count)]
        for i in drawn:
            at = slice(part.start + i, part.start + i + 1)
            recording, x = one.given(inputs[at], kwargs=_with(self.options, each, at).get("kwargs"))
            with torch.no_grad():
                batch.check_same(local.output[i:i + 1], recording.run_model(x).detach()[None])


def _products(batch: Batch, split: Split, w: Tensor) -> Products:
    """Raises MixedBatch where what one input's weights give depends on another's."""
    local, wide = batch.local, w.double()
    pulled, gradient = batch.pulled(split.left, w), batch.pulled(local.jacobian, w)
    around = not split.bypass.is_zero
    back, bypass = torch.zeros_like(gradient), torch.zeros_like(wide[:, 0])
    if around:
        passed = split.bypass.matvec(local.input.reshape(-1).to(split.right.dtype))
        bypass, back = (wide * batch.parts(passed).double()).sum(1), batch.pulled(split.bypass, w)
    # Where a weight is zero an output may be infinite, as masked logits are.
    bias, output = (torch.where(w != 0, wide * batch.parts(value.flatten()).double(), 0).sum(1)
                    for value in (local.bias, local.output))
    return Products(pulled, gradient, bypass, back, output, bias, batch.bias_contributions(w), around)


def _decomposed(batch: Batch, right: LinearOperator, request: Request) -> Found:
    """The R_i, decomposed."""
    m, n = (size // batch.count for size in right.shape)
    tall, w = (right.T, m) if m <= n else (right, n)
    R = torch.empty(batch.count, max(m, n), w, dtype=right.dtype, device=right.device)
    for start, stop, block in identity_blocks(w, right.dtype, right.device):
        R[..., start:stop] = batch.parts(tall.matmat(batch.each(block)))
    # Products the other way, with columns of their own for each input: that R_i is R's, and of no other input.
    probes = gaussian(tall.shape[0], HELD_OUT, generator_of(request.seed), right)
    gap = (batch.parts(tall.rmatmat(probes)) - R.mT @ batch.parts(probes)).double()
    R = R.mT if tall is not right else R
    rounding = safety_factor(HELD_OUT) / math.sqrt(HELD_OUT) * torch.linalg.matrix_norm(gap)
    norms = torch.linalg.vector_norm(R, dim=(1, 2), dtype=torch.float64)
    if not bool(torch.isfinite(R).all()):
        raise ValueError("the products are not finite: the model's weights or an input hold inf or nan")
    largest = R.abs().amax((1, 2)).double()
    if bool(((largest > SQUARES) | ((largest > 0) & (largest < 1 / SQUARES))).any()):
        raise MixedBatch("numbers whose squares float64 cannot hold are scaled for each input alone")
    if not bool((rounding <= torch.finfo(R.dtype).eps ** 0.5 * norms.max()).all()):
        raise MixedBatch("the products with one input's columns reach another's")
    flat = batch.local.input.reshape(-1).to(right.dtype)
    image = batch.parts(right.reference.matmat(flat[:, None])[:, 0])
    rank = None if request.rank is None else min(request.rank, m, n)
    svds = dense_svds(R, rank, request.tol if request.rank is None else None, rounding)
    _check_reference(svds, image, batch.parts(flat), batch.local.backend)
    settings = {"rank": request.rank, "tol": request.tol, "width": min(m, n), "batch": batch.count,
                "precision": right.precision, "reason": f"a batch of {batch.count} inputs, multiplied out"}
    return Found(svds, image, min(m, n) + HELD_OUT, settings)


def _check_reference(svds: DenseSVDs, image: Tensor, x: Tensor, backend: str) -> None:
    """Raise SpecXAIError where u·(R x) by the reference is not σ (v·x), as `specxai.decompose` does."""
    gap = torch.einsum("bmk,bm->bk", svds.U.double(), image.double())
    gap = (gap - svds.S * torch.einsum("bnk,bn->bk", svds.V.double(), x.double())).abs()
    allowed = (2 * svds.residuals + 16 * svds.floors[:, None]) * torch.linalg.norm(x.double(), dim=1, keepdim=True)
    if bool((gap > allowed).any()):
        raise SpecXAIError(f"the {backend} backend's products of a batch are not those of the reference. This is an "
                           "error of SpecXAI's; backend='reference' goes round it, and a report of the model would "
                           "help")
