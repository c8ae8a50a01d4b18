"""What is explained: a target resolved to a vector of weights over the flattened output."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch

__all__ = ["resolve_target", "resolve_targets", "without_batch"]


def resolve_target(target, output: torch.Tensor) -> tuple[torch.Tensor, str]:
    """Weights (m,) over the flattened `output` (1, *shape), in its dtype and on its device, and a label.

    target   None: the largest output (for a classifier, the predicted class); an int for an output of one axis;
             a tuple over the output's axes, with or without the batch axis; a tensor of weights of shape (m,) or of
             the output's shape (a difference of logits, say); or a callable that takes the output and returns one of
             these.  Negative indices count from the end.

    >>> resolve_target(-1, torch.tensor([[1.0, 3.0, 2.0]]))
    (tensor([0., 0., 1.]), 'output[2]')
    """
    if callable(target) and not isinstance(target, torch.Tensor):
        target = target(output.detach())
        if callable(target):
            raise TypeError("the target callable returned another callable: return an index or a tensor of weights")
    shape = without_batch(output.shape)
    if output.numel() == 0:
        raise ValueError(f"the output has shape {tuple(output.shape)} and no entry to explain")
    if target is None:
        # argmax counts nan as the largest value, which would then be explained as if it were a class.
        if torch.isnan(output).any():
            raise ValueError("the output contains nan, so no class is predicted; pass target= or look at the model "
                             "at this input")
        position = int(output.flatten().argmax())
        return _one_hot(position, output), _label(position, shape)
    index = _as_index(target)
    if index is not None:
        position = _position(index, target, output)
        return _one_hot(position, output), _label(position, shape)
    return _weights(target, output)


def resolve_targets(targets: Sequence, output: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Weights (B, m) and labels of a target for each of the outputs (B, *shape), as `resolve_target` finds them.

    A device is waited for once for all the largest, not for entries that are named, once for weights that several share
    and once for each other target.

    >>> resolve_targets([None, -1], torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]))[1]
    ['output[1]', 'output[2]']
    """
    one, rows = output[:1], output.detach().reshape(len(output), -1)
    shape, weights = without_batch(one.shape), torch.zeros_like(rows)
    largest = _largest(rows) if rows.numel() and any(target is None for target in targets) else [None] * len(rows)
    named, labels, found = {}, [], {}
    for i, target in enumerate(targets):
        index = None if target is None or callable(target) else _as_index(target)
        position = largest[i] if target is None else None if index is None else _position(index, target, one)
        if position is not None and rows.numel():
            named[i], label = position, _label(position, shape)
        else:
            key = i if target is None or callable(target) else id(target)
            if key not in found:
                found[key] = resolve_target(target, output[i:i + 1])
            weights[i], label = found[key]
        labels.append(label)
    if named:
        weights[list(named), list(named.values())] = 1
    return weights, labels


def _largest(rows: torch.Tensor) -> list[int | None]:
    """Where each row is largest; None where it holds NaN, which argmax counts as the largest."""
    found = torch.where(torch.isnan(rows).any(1), -1, rows.argmax(1)).tolist()
    return [None if position < 0 else position for position in found]


def without_batch(shape: torch.Size) -> torch.Size:
    """A value's shape without its batch axis of 1, if it has one.

    >>> without_batch(torch.Size([1, 10])), without_batch(torch.Size([4, 8]))
    (torch.Size([10]), torch.Size([4, 8]))
    """
    shape = torch.Size(shape)
    return shape[1:] if len(shape) and shape[0] == 1 else shape


def _as_index(target) -> tuple[int, ...] | int | None:
    """`target` as an int or a tuple of ints, or None if it is not an index."""
    if isinstance(target, tuple):
        try:
            return tuple(operator.index(i) for i in target)
        except TypeError:
            raise TypeError(f"target={target!r} is a tuple but not of integers: give one integer per output axis, or "
                            "a tensor for weights over the outputs") from None
    if isinstance(target, bool):
        raise TypeError(f"target={target!r} is a bool: give an index or a tensor of weights")
    if getattr(target, "ndim", 0) != 0 or isinstance(target, list):
        return None
    try:
        return operator.index(target)
    except TypeError:
        raise TypeError(f"target={target!r} ({type(target).__name__}) is not an index, a tensor of weights, a "
                        "callable or None") from None


def _position(index, target, output: torch.Tensor) -> int:
    """Flat position of an index in `output`, with the batch axis optional."""
    shape = tuple(without_batch(output.shape))
    batch = len(shape) < output.ndim
    if isinstance(index, int):
        if not shape and index in (0, -1):
            return 0
        if len(shape) != 1:
            raise ValueError(f"target={target!r} is one index, but the output has shape {tuple(output.shape)}: give a "
                             f"tuple of {len(shape)}, such as {(0,) * len(shape)}")
        index = (index,)
    if batch and len(index) == len(shape) + 1 and index[0] in (0, -1):
        index = index[1:]
    if len(index) != len(shape):
        raise ValueError(f"target={target!r} does not index an output of shape {tuple(output.shape)}: give a tuple of "
                         f"{len(shape)} integers" + (f" (or {len(shape) + 1} with a leading 0 for the batch axis)"
                                                     if batch else ""))
    position = 0
    for i, n in zip(index, shape, strict=True):
        if not -n <= i < n:
            raise IndexError(f"target={target!r} is out of range for an output of shape {tuple(output.shape)}"
                             + (f" (without its batch axis {shape})" if batch else ""))
        position = position * n + i % n
    return position


def _one_hot(position: int, output: torch.Tensor) -> torch.Tensor:
    weights = torch.zeros(output.numel(), dtype=output.dtype, device=output.device)
    weights[position] = 1
    return weights


def _label(position: int, shape: torch.Size) -> str:
    if not shape:
        return "output"
    index = []
    for n in reversed(shape):
        position, i = divmod(position, n)
        index.append(str(i))
    return f"output[{', '.join(reversed(index))}]"


def _weights(target, output: torch.Tensor) -> tuple[torch.Tensor, str]:
    given = target if isinstance(target, torch.Tensor) else torch.as_tensor(target, device="cpu")
    weights = given.detach().to(dtype=output.dtype, device=output.device)
    own = without_batch(output.shape)
    allowed = {(output.numel(),), tuple(output.shape), tuple(own)}
    if tuple(weights.shape) not in allowed:
        raise ValueError(f"target weights have shape {tuple(weights.shape)}, but the output has shape "
                         f"{tuple(output.shape)}: give one weight per output, {tuple(own)} or "
                         f"({output.numel()},); for a single output pass its index as an int or a tuple")
    weights = weights.flatten().clone()
    if not torch.isfinite(weights).all():
        raise ValueError("target weights contain nan or inf")
    used = weights.nonzero().flatten().tolist()
    if not used:
        raise ValueError("target weights are all zero, so there is nothing to explain: give at least one output a "
                         "non-zero weight")
    if len(used) <= 2 and all(abs(float(weights[i])) == 1 for i in used):
        used.sort(key=lambda i: -float(weights[i]))
        names = [_label(i, own) for i in used]
        signs = ["-" if float(weights[i]) < 0 else "+" for i in used]
        return weights, " ".join(f"{s} {n}" for s, n in zip(signs, names, strict=True)).removeprefix("+ ")
    return weights, "weights"
