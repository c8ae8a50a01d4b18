"""What users begin with: `capture(model, example)`, once for a kind of input, and `linearize(model, x)`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from specxai.affine.local import Local
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

    def linearize(self, x: Tensor, gates: Gates = "tangent", backend: str = "auto", max_memory: int | None = None,
                  verify: bool | None = None) -> Local:
        """The affine map at x; see `specxai.linearize`."""
        holds, values = self.at(x)
        return Local(holds, x, gates=gates, backend=backend, max_memory=max_memory, values=values, verify=verify)


def capture(model: nn.Module, example: Tensor, verify: bool = True, output: Selector = None) -> Captured:
    """Record a model once for inputs like `example`, shape (1, ...).

    verify   hold the program's output and its Jacobian against the model's, here and at every x that is linearised;
             see `Local.agreement`
    output   which tensor is explained where the model returns several: a key or the name of a field, an index, a tuple
             of these from the outside in, or a function of what the model returns.  By default the first floating-point
             tensor that depends on the input

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
    captured = replace(Captured.of(model, example, output), verify=verify)
    if verify:
        captured.linearize(example, backend="reference")
    return captured


def linearize(model: nn.Module | Captured, x: Tensor, gates: Gates = "tangent", backend: str = "auto",
              max_memory: int | None = None, output: Selector = None, verify: bool | None = None) -> Local:
    """The affine map of `model` at `x`.

    model        an nn.Module in eval mode, or what `specxai.capture` made of one.  A module is traced once per input
                 shape, dtype and device, and again when it has changed
    x            the model's input, shape (1, ...)
    gates        "tangent": slope σ'(z), J is the true Jacobian (15); "frozen": (σ(z) − σ(0))/z, offset σ(0) (14), with
                 softmax patterns, norm scales and the gates of products held; or by kind, over a base:
                 {"base": "tangent", "softmax": "held", "norm": "held", "product": "half"}, see `specxai.rules.policy`
    backend      "auto", "reference", "native", "torch", "cuda"
    max_memory   bytes that one block product may hold (default 2 GiB); wider blocks run in chunks
    output       which tensor is explained where the model returns several; see `specxai.capture`
    verify       measure `agreement`, by one pass of the model each way and one product with J each way; None: as the
                 capture was made, which is True

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
        if output is not None:
            raise TypeError("output= belongs to specxai.capture(model, example, output=...): what was captured has one")
        return model.linearize(x, gates=gates, backend=backend, max_memory=max_memory, verify=verify)
    options = {"gates": gates, "backend": backend, "max_memory": max_memory, "verify": verify}
    captured, values = Captured.recall(model, x, output, compare=verify is False)
    try:
        return Local(captured, x, values=values, **options)
    except CaptureError:
        if values is None:  # a new capture
            raise
        # Nothing sees all that a capture depends on: the one made before may be out of date.
        return Local(Captured.recall(model, x, output, renew=True)[0], x, **options)
