"""What is refused before a model is run, and the words for it."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from specxai.errors import CaptureError

NOT_FINITE = "the input holds NaN or infinity, where there is no affine map; give a finite one"


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def plain(model: nn.Module) -> nn.Module:
    """The model without such wrappers inside, whose code no recorder sees: itself, or a copy of what is around them.

    The copy's modules share everything else with the model's.
    """
    twins: dict[int, nn.Module] = {}

    def twin(module: nn.Module) -> nn.Module:
        module = unwrap(module)
        if id(module) not in twins:
            twins[id(module)] = module
            inner = {name: child and twin(child) for name, child in module._modules.items()}
            if any(child is not module._modules[name] for name, child in inner.items()):
                twins[id(module)] = copied = copy.copy(module)
                copied._modules = inner
        return twins[id(module)]

    return twin(model)


def check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("a TorchScript module has no Python code left to trace; pass the module it was made from")
    training = [f"module {path!r}" if path else "the model"
                for path, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"{training[0]} is in training mode ({len(training)} modules are): dropout and batch norm "
                         "have no fixed map there; call model.eval() first")


def check_example(model: nn.Module, example: Tensor, batched: bool = False) -> None:
    if not isinstance(example, Tensor):
        raise TypeError(f"the input must be one floating-point tensor, got {type(example).__name__}; an array becomes "
                        "one by torch.from_numpy(x), a list by torch.tensor(x)")
    if example.is_complex():
        raise TypeError(f"the input is {example.dtype}, and complex maps have no rules here; give the model real and "
                        "imaginary parts as channels of a real tensor")
    if not example.is_floating_point():
        raise TypeError(f"the input is {example.dtype}, and nothing is linear in integers.  For tokens, pass ids of "
                        "torch.int64 to the model with its embedding layer, or embeddings; for pixels, pass "
                        "x.float() / 255")
    if example.layout is not torch.strided:
        raise TypeError(f"the input is a tensor of layout {example.layout}; pass x.to_dense()")
    if example.ndim == 0 or (example.shape[0] != 1 and not batched):
        raise ValueError(f"the input has shape {tuple(example.shape)}; its first axis must be a batch of 1: an affine "
                         "map belongs to one input (try x[:1]); specxai.explain_many takes several")
    for name, tensor in tensors(model):
        if is_lazy(tensor):
            raise ValueError(f"{name} has no values yet (a lazy module); run the model once on an input like this one")
        if tensor.is_complex():
            raise TypeError(f"{name} is {tensor.dtype}, and complex maps have no rules here")
        if tensor.device != example.device:
            raise ValueError(f"the input is on {example.device} but {name} is on {tensor.device}; move one: "
                             f"x.to({str(tensor.device)!r}) or model.to({str(example.device)!r})")
    if example.is_meta:
        raise ValueError("the input is on the meta device, where tensors hold no values; give one with values")
    if not is_finite(example):
        raise ValueError(NOT_FINITE)


def is_finite(tensor: Tensor) -> bool:
    """Are all numbers finite?  The sum mostly tells, and the extremes always, both at a small part of `isfinite`."""
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(torch.stack(tensor.to_dense().aminmax())).all())


def check_finite(model: nn.Module) -> None:
    """Weights and a norm's statistics are finite; other buffers may hold infinities, as masks do."""
    for name, tensor in tensors(model):
        if not tensor.is_floating_point() or is_finite(tensor):
            continue
        mask = name.startswith("buffer") and not name.endswith(("running_mean", "running_var"))
        if torch.isnan(tensor).any() or not mask:
            raise ValueError(f"{name} holds NaN or infinity; load weights that are finite")


def other_dtype(model: nn.Module, x: Tensor) -> str:
    """What to say of a parameter or buffer of another floating dtype than x where the model fails; '' for none."""
    for name, tensor in tensors(model):
        if tensor.is_floating_point() and tensor.dtype != x.dtype:
            return (f"the input is {x.dtype} but {name} is {tensor.dtype}; convert one: x.to({tensor.dtype}) or "
                    f"model.to({x.dtype})")
    return ""


def first_line(error: Exception) -> str:
    """What went wrong, without torch's further pages."""
    return (str(error).strip().split("\n")[0][:300].rstrip(".") or type(error).__name__)


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(what it is, tensor) of the model's parameters and buffers."""
    yield from ((f"parameter {name}", tensor) for name, tensor in model.named_parameters())
    yield from ((f"buffer {name}", tensor) for name, tensor in model.named_buffers())
