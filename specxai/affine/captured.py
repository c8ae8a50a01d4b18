"""What users begin with: `capture(model, example)`, once for a kind of input, and `linearize(model, x)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from specxai.affine.local import Local
from specxai.capture.feed import Feed, Wrt
from specxai.capture.outputs import Selector
from specxai.capture.recording import Recording
from specxai.errors import CaptureError
from specxai.rules.policy import Gates

__all__ = ["Captured", "capture", "linearize"]


@dataclass(frozen=True, eq=False, repr=False)
class Captured(Recording):
    """A model recorded for one input shape and dtype; `linearize(x)` then costs one forward pass.

    The weights are the model's own tensors, not copies: a later in-place update is seen.  `output` names the tensor
    that is explained in what the model returns.
    """

    def linearize(self, x: Tensor | None = None, gates: Gates = "tangent", backend: str = "auto",
                  max_memory: int | None = None, verify: bool | None = None, args: Sequence | None = None,
                  kwargs: Mapping[str, Any] | None = None) -> Local:
        """The affine map at x; see `specxai.linearize`.

        args, kwargs   what the model gets beside x, where it differs from the capture's: in the values of tensors only
        """
        found, x = self.given(x, args, kwargs)
        holds, values = found.at(x)
        return Local(holds, x, gates=gates, backend=backend, max_memory=max_memory, values=values, verify=verify)


def capture(model: nn.Module, example: Tensor | None = None, verify: bool = True, output: Selector = None,
            args: Sequence = (), kwargs: Mapping[str, Any] | None = None, wrt: Wrt = None) -> Captured:
    """Record a model once for inputs like `example`, shape (1, ...), or for token ids (1, T).

    verify   hold the program's output and its Jacobian against the model's, here and at every x that is linearised;
             see `Local.agreement`
    output   which tensor is explained where the model returns several: a key or the name of a field, an index, a tuple
             of these from the outside in, or a function of what the model returns.  By default the first floating-point
             tensor that depends on the input
    args, kwargs, wrt   what the model gets beside x, and where x goes; see `specxai.linearize`

    Raises ValueError for a model in training mode or a batch axis other than 1, CaptureError where the model cannot
    be recorded or the program does not reproduce it.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()).eval()
    >>> captured = specxai.capture(net, torch.zeros(1, 3))
    >>> captured.layers
    ['0', '1']
    >>> captured.linearize(torch.ones(1, 3)).jacobian.shape
    (4, 3)
    """
    feed, x = Feed.of(model, example, args, kwargs, wrt)
    captured = replace(Captured.of(model, x, output, feed), verify=verify)
    if verify:
        captured.linearize(x, backend="reference")
    return captured


def linearize(model: nn.Module | Captured, x: Tensor | None = None, gates: Gates = "tangent", backend: str = "auto",
              max_memory: int | None = None, output: Selector = None, verify: bool | None = None,
              args: Sequence | None = None, kwargs: Mapping[str, Any] | None = None, wrt: Wrt = None) -> Local:
    """The affine map of `model` at `x`.

    model        an nn.Module in eval mode, or what `specxai.capture` made of one.  A module is traced once per input
                 shape, dtype and device, and again when it has changed
    x            the model's input, shape (1, ...).  Of token ids (1, T), integers, the map is from their embeddings
                 (1, T, d), what the model's embedding returns for them: these are `local.input`
    gates        "tangent": slope σ'(z), J is the true Jacobian (15); "frozen": (σ(z) − σ(0))/z, offset σ(0) (14), with
                 softmax patterns, norm scales and the gates of products held; or by kind, over a base:
                 {"base": "tangent", "softmax": "held", "norm": "held", "product": "half"}, see `specxai.rules.policy`
    backend      "auto", "reference", "native", "torch", "cuda"
    max_memory   bytes that one block product may hold (default 2 GiB, on a GPU a quarter of what is free); wider blocks
                 run in chunks
    output       which tensor is explained where the model returns several; see `specxai.capture`
    verify       measure `agreement`, by one pass of the model each way and one product with J each way; None: as the
                 capture was made, which is True
    args, kwargs further arguments of the model, positional behind x and by name; tensors among them are constants
    wrt          where x goes: the name of a keyword input, or a position; a list of them for several analysed inputs,
                 whose units are then x (1, N), one after the other.  By default the first positional input

    Raises CaptureError where J disagrees with the model's own derivative by more than rounding explains, ValueError for
    an input or an option that is out of range, TypeError for `output=` of what was captured.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)).eval()
    >>> x = torch.tensor([[1.0, -1.0]])
    >>> local = specxai.linearize(net, x)
    >>> torch.allclose(local.output.flatten(), local.jacobian @ x.flatten() + local.bias.flatten())
    True
    """
    if isinstance(model, Captured):
        for name, value in (("output", output), ("wrt", wrt)):
            if value is not None:
                raise TypeError(f"{name}= belongs to specxai.capture(model, example, {name}=...): what was captured "
                                "has one")
        return model.linearize(x, gates, backend, max_memory, verify, args, kwargs)
    feed, x = Feed.of(model, x, () if args is None else args, kwargs, wrt)
    return local_at(model, x, feed, output, gates=gates, backend=backend, max_memory=max_memory, verify=verify)


def local_at(model: nn.Module, x: Tensor, feed: Feed, output: Selector, *, verify: bool | None = None,
             **options) -> Local:
    """The affine map of a module that is called as `feed` says; x may be what `Feed.of` found, or a batch."""
    options["verify"] = verify
    captured, values = Captured.recall(model, x, output, feed, compare=verify is False)
    try:
        return Local(captured, x, values=values, **options)
    except CaptureError:
        if values is None:  # a new capture
            raise
        # Nothing sees all that a capture depends on: the one made before may be out of date.
        return Local(Captured.recall(model, x, output, feed, renew=True)[0], x, **options)
