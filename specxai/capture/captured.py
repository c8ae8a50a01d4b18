"""`capture(model, example)`: checked at the boundary, traced once, and verified against the model itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from specxai.capture.export import export_program, first_line
from specxai.capture.program import Program
from specxai.errors import CaptureError

NOT_FINITE = "the input holds NaN or infinity, where there is no affine map; give a finite one"


@dataclass(frozen=True, eq=False)
class Captured:
    """A model traced for one input shape and dtype; `linearize(x)` then costs one forward pass.

    The weights are the model's own tensors, not copies: a later in-place update is seen.
    """

    program: Program
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    model_name: str
    model: nn.Module | None = field(repr=False, default=None)
    verify: bool = True  # does `linearize` measure its agreement with the model where it is not told?

    def __repr__(self) -> str:
        return f"Captured({self.model_name}, {tuple(self.shape)}, {self.dtype}, {len(self.layers)} layers)"

    @property
    def layers(self) -> list[str]:
        """Names accepted by `split` and `explain`, in execution order."""
        return list(self.program.layers)

    def linearize(self, x: Tensor, gates: str = "tangent", backend: str = "auto", max_memory: int | None = None,
                  verify: bool | None = None):
        """The affine map at x; see `specxai.linearize`."""
        from specxai.local import Local

        self.check(x)
        return Local(self, x, gates=gates, backend=backend, max_memory=max_memory, verify=verify)

    def run_model(self, x: Tensor) -> Tensor:
        """The user's own model at x, as torch runs it: the output that is explained, with its autograd graph."""
        return _run(self.model, x)

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x is not what the model was captured for."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch tensor of shape {tuple(self.shape)}, got {type(x).__name__}")
        for what, got, wanted in (("shape", tuple(x.shape), tuple(self.shape)), ("dtype", x.dtype, self.dtype),
                                  ("device", x.device, self.device)):
            if got != wanted:
                raise ValueError(f"x has {what} {got}, but the model was captured for {wanted}; convert x, or capture "
                                 "the model again with an example like it")
        if not torch.isfinite(x).all():
            raise ValueError(NOT_FINITE)


def capture(model: nn.Module, example: Tensor, verify: bool = True) -> Captured:
    """Trace a model once for inputs like `example`, shape (1, ...).

    verify   hold the graph's output and its Jacobian against the model's, here and at every x that is linearised; see
             `Local.agreement`

    Raises ValueError for a model in training mode or a batch axis other than 1, CaptureError where the model cannot
    be traced or the graph does not reproduce it.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    >>> captured = specxai.capture(net, torch.zeros(1, 3))
    >>> captured.layers
    ['0', '1']
    >>> captured.linearize(torch.ones(1, 3)).jacobian.shape
    (4, 3)
    """
    model = _unwrap(model)
    _check_model(model)
    _check_example(model, example)
    _check_finite(model)
    example = example.detach()
    with torch.enable_grad():
        _run(model, example.clone().requires_grad_())  # its own error, where it fails
    captured = Captured(export_program(model, example), example.shape, example.dtype, example.device,
                        type(model).__name__, model, verify)
    if verify:
        captured.linearize(example, backend="reference")
    return captured


# model -> (shape, dtype, device) -> (what the model was then, its capture)
_RECALLED: WeakKeyDictionary[nn.Module, dict[tuple, tuple[Any, Captured]]] = WeakKeyDictionary()


def recall(model: nn.Module, x: Tensor) -> tuple[Captured, list | None]:
    """The capture made for an input like x before, if the model is as it was then, with every step's value at x; else
    a new one, kept, and None.

    Modules, their settings, parameters and buffers, and the output at x are compared: one pass of the model and the one
    of the graph that the values cost anyway.
    """
    model = _unwrap(model)
    _check_model(model)
    _check_example(model, x)
    key, state = (x.shape, x.dtype, x.device), _state(model)
    kept = _RECALLED.setdefault(model, {})
    if key in kept and kept[key][0] == state:
        captured = replace(kept[key][1], model=model)
        captured.check(x)
        with torch.no_grad():
            values, theirs = captured.program.run(x.detach()), _run(model, x.detach())
        # Whatever else may have changed in the model's code shows in its output.
        ours = values[captured.program.output]
        if ours.shape == theirs.shape and _difference(ours, theirs) <= 100 * torch.finfo(x.dtype).eps:
            return captured, values
    captured = replace(capture(model, x, verify=False), verify=True)  # the Local measures it
    kept[key] = state, replace(captured, model=None)  # a strong reference would keep the weak key alive
    return captured, None


def _state(model: nn.Module) -> tuple:
    """What a trace depends on: settings as the modules print them and as attributes, and which tensors they hold."""
    tensors = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    settings = [(path, name, value) for path, module in model.named_modules() for name, value in vars(module).items()
                if isinstance(value, bool | int | float | str | None)]
    return repr(model), settings, tensors


def _unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module has no Python code left to trace; pass the module it was made from")
    training = [f"module {path!r}" if path else "the model"
                for path, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"{training[0]} is in training mode ({len(training)} modules are): dropout and batch norm "
                         "have no fixed map there; call model.eval() first")


def _check_example(model: nn.Module, example: Tensor) -> None:
    if not isinstance(example, Tensor):
        raise TypeError(f"the input must be one floating-point tensor, got {type(example).__name__}; an array becomes "
                        "one by torch.from_numpy(x), a list by torch.tensor(x)")
    if example.is_complex():
        raise TypeError(f"the input is {example.dtype}, and complex maps have no rules here; give the model real and "
                        "imaginary parts as channels of a real tensor")
    if not example.is_floating_point():
        raise TypeError(f"the input is {example.dtype}, and nothing is linear in integers.  For tokens, wrap the part "
                        "of the model after its embedding layer and pass embeddings; for pixels, pass x.float() / 255")
    if example.layout is not torch.strided:
        raise TypeError(f"the input is a tensor of layout {example.layout}; pass x.to_dense()")
    if example.ndim == 0 or example.shape[0] != 1:
        raise ValueError(f"the input has shape {tuple(example.shape)}; its first axis must be a batch of 1: an affine "
                         "map belongs to one input (try x[:1])")
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            raise ValueError(f"{name} has no values yet (a lazy module); run the model once on an input like this one")
        if tensor.is_complex():
            raise TypeError(f"{name} is {tensor.dtype}, and complex maps have no rules here")
        if tensor.is_floating_point() and tensor.dtype != example.dtype:
            raise ValueError(f"the input is {example.dtype} but {name} is {tensor.dtype}; convert one: "
                             f"x.to({tensor.dtype}) or model.to({example.dtype})")
        if tensor.device != example.device:
            raise ValueError(f"the input is on {example.device} but {name} is on {tensor.device}; move one: "
                             f"x.to({str(tensor.device)!r}) or model.to({str(example.device)!r})")
    if example.is_meta:
        raise ValueError("the input is on the meta device, where tensors hold no values; give one with values")
    if not torch.isfinite(example).all():
        raise ValueError(NOT_FINITE)


def _check_finite(model: nn.Module) -> None:
    for name, tensor in _tensors(model):
        # The sum tells at a fraction of the cost, but for finite numbers that overflow together.
        if tensor.is_floating_point() and not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds NaN or infinity; load weights that are finite")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(what it is, tensor) of the model's parameters and buffers."""
    yield from ((f"parameter {name}", tensor) for name, tensor in model.named_parameters())
    yield from ((f"buffer {name}", tensor) for name, tensor in model.named_buffers())


def _run(model: nn.Module, x: Tensor) -> Tensor:
    """The model's own output: the first tensor that depends on x.  Raises CaptureError where it fails."""
    try:
        output = model(x.clone())  # not the leaf itself: an in-place first layer may write to it
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} itself fails on an input of shape {tuple(x.shape)}: {first_line(error)}. Give it "
            "the input that it is used with; a model of several inputs needs a wrapper that takes one tensor"
        ) from error
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if not tensors:
        raise CaptureError(f"{type(model).__name__} returns {type(output).__name__}, which holds no tensor to explain")
    return next((leaf for leaf in tensors if leaf.requires_grad), tensors[0])


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ relative to theirs, absolute where theirs is zero."""
    scale = theirs.norm().item()
    return (ours - theirs).norm().item() / (scale or 1.0)
