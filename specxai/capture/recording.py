"""A recording: a model's program for one kind of input, made in one run, and made again when the model has changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from specxai.capture import checks
from specxai.capture.checks import first_line
from specxai.capture.feed import Feed
from specxai.capture.names import module_names
from specxai.capture.outputs import Selector, select, selector_key
from specxai.capture.program import Program, references
from specxai.capture.settings import Snapshot, changed, same, snapshot
from specxai.capture.trace import trace
from specxai.errors import CaptureError

# The recorder hangs hooks into the model, and two on one model would number each other's calls.
_RECORDING = threading.RLock()


KEPT_RECORDINGS = 8  # of one model: the last kinds of input
# model -> (class, shape, strides, dtype, device, output, the call) -> (what the model was then, what forward()
# changes, its recording)
_RECALLED: WeakKeyDictionary[nn.Module, dict[tuple, tuple[Snapshot, frozenset, Recording]]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Recording:
    """A model recorded for one input shape and dtype.

    The weights are the model's own tensors, not copies: a later in-place update is seen.

    output   what names the tensor that is explained in what the model returns
    feed     how the model is called with x
    verify   is what is made of it held against the model where nobody says otherwise?
    source   the model of which `model` is a copy, if it is one
    """

    program: Program
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    model_name: str
    model: nn.Module | None = field(repr=False, default=None)
    output: Selector = ()
    feed: Feed = field(repr=False, default_factory=Feed)
    verify: bool = True
    source: nn.Module | None = field(repr=False, default=None)

    @classmethod
    def of(cls, model: nn.Module, example: Tensor, output: Selector = None, feed: Feed | None = None) -> Self:
        """The recording of a model, not compared with it.

        Raises ValueError for a model in training mode or a batch axis other than 1, CaptureError where the model cannot
        be recorded.
        """
        model, feed = checks.unwrap(model), feed or Feed()
        checks.check_model(model)
        with torch.inference_mode(False), torch.no_grad(), _RECORDING:
            checks.check_example(model, example, feed.batched)
            checks.check_finite(model)
            own, example = _without_inference_tensors(checks.plain(model)), example.detach().clone()
            try:
                program, selector = trace(own, example, output, feed)
            except CaptureError:
                raise
            except Exception as error:
                _run(own, example, output, feed)  # where the model itself fails, this says so
                raise CaptureError(f"{type(model).__name__} could not be recorded: {first_line(error)}") from error
            made = cls(program, example.shape, example.dtype, example.device, type(model).__name__, own, selector,
                       feed)
            return made if own is model else _named_as(replace(made, source=model), model)

    @classmethod
    def recall(cls, model: nn.Module, x: Tensor, output: Selector = None, feed: Feed | None = None, *,
               renew: bool = False, compare: bool = True) -> tuple[Self, list | None]:
        """The recording made for an input like x before, if the model is as it was then, with every step's value at x;
        else a new one, kept, and None.

        renew     make a new one in any case: for a caller who found that the old one is not the model's any more
        compare   the output at x too, by a pass of the model; not needed where the caller measures the agreement

        Modules, their code and settings, and which tensors they hold are compared.
        """
        model, feed = checks.unwrap(model), feed or Feed()
        checks.check_model(model)
        checks.check_example(model, x, feed.batched)
        # Strides too: a model may ask for them.
        strides = torch.empty_like(x, device="meta").stride()  # of a copy
        key = cls, x.shape, strides, x.dtype, x.device, selector_key(output), feed.key()
        with _RECORDING:
            now, kept = snapshot(model), _RECALLED.setdefault(model, {})
            if not renew and key in kept and same(kept[key][0], now, kept[key][1]):
                found = kept[key][2]._with_feed(feed)
                found = replace(found, model=checks.plain(model), output=output if callable(output) else found.output)
                found.check(x)
                values = found.values_as_model(x) if compare else found.values_at(x)
                if values is not None and not torch.isnan(values[found.program.output]).any():  # else: which weight is?
                    return found, values
                now = snapshot(model)
            found = cls.of(model, x, output, feed)
            if not any(tensor.is_inference() for _, tensor in checks.tensors(model)):
                # A strong reference would keep the weak key alive, and so may what is the caller's.
                forgetful = replace(found, model=None, feed=Feed(), output=() if callable(output) else found.output)
                kept.pop(key, None)
                kept[key] = now, changed(now, snapshot(model)), forgetful
                while len(kept) > KEPT_RECORDINGS:
                    kept.pop(next(iter(kept)))
            return found, None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model_name}, {tuple(self.shape)}, {self.dtype}, {len(self.layers)} layers)"

    @property
    def layers(self) -> list[str]:
        """Names accepted by `split` and `explain`, in execution order."""
        return list(self.program.layers)

    @property
    def specialised(self) -> tuple[str, ...]:
        """Lines of the model's code, as 'file:line', that decided by a value that depends on the input, or took it out
        of torch.  At an input where the model then goes another way, it is recorded again."""
        return self.program.specialised

    def at(self, x: Tensor) -> tuple[Self, list | None]:
        """The recording that holds at x, this one or a new one, and every step's value there where they were needed to
        tell.  Raises ValueError where x is not what the model was recorded for."""
        self.check(x)
        if self.source is not None:  # whose weights, unlike the copy's, may have changed
            return replace(self.of(self.source, x, self.output, self.feed), verify=self.verify), None
        if not self.specialised or self.model is None:
            return self, None
        values = self.values_as_model(x)
        if values is None:
            return replace(self.of(self.model, x, self.output, self.feed), verify=self.verify), None
        return self, values

    def given(self, x: Tensor | None, args: Sequence | None = None,
              kwargs: Mapping[str, Any] | None = None) -> tuple[Self, Tensor]:
        """(the recording with the side inputs of a further call, x), x as `Feed.of` finds it: embeddings of ids."""
        feed, x = self.feed.again(self.source or self.model, x, args, kwargs)
        return (self if feed is self.feed else self._with_feed(feed)), x

    def _with_feed(self, feed: Feed) -> Self:
        return replace(self, feed=feed, program=self.program.with_sides(feed.copied().tensors()))

    def run_model(self, x: Tensor) -> Tensor:
        """The user's own model at x, as torch runs it: the output that is explained, with its autograd graph."""
        return _run(self.model, x, self.output, self.feed)

    def values_at(self, x: Tensor) -> list | None:
        """Every step's value at x; None where the program cannot run there, the shapes inside being another input's."""
        with torch.inference_mode(False), torch.no_grad():
            try:
                return self.program.run(x.detach().clone())
            except (RuntimeError, IndexError):
                return None

    def values_as_model(self, x: Tensor) -> list | None:
        """Every step's value at x, where the program's output is the model's; None where it is not."""
        if (values := self.values_at(x)) is None:
            return None
        with torch.inference_mode(False), torch.no_grad():
            theirs = self.run_model(x).detach()
            ours = values[self.program.output]
            if torch.equal(ours, theirs):
                return values  # infinities too
            if ours.shape == theirs.shape and _difference(ours, theirs) <= 100 * torch.finfo(theirs.dtype).eps:
                return values
        return None

    def in_double(self, x: Tensor) -> Self:
        """The recording of a copy of the model in float64.  Raises CaptureError where there is none."""
        try:
            return self.of(copy.deepcopy(self.model).double(), x.detach().double(), self.output,
                           self.feed.copied(torch.float64))
        except CaptureError:
            raise
        except Exception as error:  # whatever a model may raise in a dtype that it was not written for
            raise CaptureError(f"{self.model_name} does not run in float64: {first_line(error)}") from error

    def check(self, x: Tensor) -> None:
        """Raise ValueError where x is not what the model was captured for."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a torch tensor of shape {tuple(self.shape)}, got {type(x).__name__}")
        for what, got, wanted in (("shape", tuple(x.shape), tuple(self.shape)), ("dtype", x.dtype, self.dtype),
                                  ("device", x.device, self.device)):
            if got != wanted:
                raise ValueError(f"x has {what} {got}, but the model was captured for {wanted}; convert x, or capture "
                                 "the model again with an example like it")
        if not checks.is_finite(x):
            raise ValueError(checks.NOT_FINITE)

    def check_output(self, values: list) -> None:
        """Raise ValueError, naming where it comes from, where the output for these values of all steps holds NaN, or
        nothing finite.  Some infinities are masked logits, which are not explained."""
        index = self.program.output
        if checks.is_finite(values[index]):
            return
        finite = torch.isfinite(values[index])
        if finite.any() and not torch.isnan(values[index]).any():
            return
        while True:
            step = self.program.steps[index]
            before = [i for i in references((step.args, dict(step.kwargs))) if i in self.program.active
                      and isinstance(values[i], Tensor) and not checks.is_finite(values[i])]
            if not before:
                break
            index = before[0]
        where = f" ({step.source})" if step.source else ""
        raise ValueError(f"the model's output at this input holds NaN or infinity, where there is no affine map; they "
                         f"come from {step.target} in {step.layer!r}{where}.  Explain the value before that: logits "
                         "without the mask, say")


def _without_inference_tensors(model: nn.Module) -> nn.Module:
    """The model, or where it was made in inference mode, whose tensors autograd cannot use, a copy with plain ones."""
    plain = {id(tensor): tensor for _, tensor in checks.tensors(model)}
    if not any(tensor.is_inference() for tensor in plain.values()):
        return model
    for key, tensor in plain.items():
        if tensor.is_inference():
            clone = tensor.clone()
            plain[key] = nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone
    try:
        return copy.deepcopy(model, memo=dict(plain))
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} was made in inference mode, whose tensors autograd cannot use, and "
                           f"cannot be copied ({first_line(error)}); make it outside of inference mode") from error


def _named_as(recording: Recording, model: nn.Module) -> Recording:
    """The recording of a copy, with the modules of the original as layers too."""
    names = dict(recording.program.modules)
    for key, paths in module_names(model).items():
        names[key] = tuple(path.replace("._orig_mod", "").replace("_orig_mod.", "") for path in paths)
    return replace(recording, program=replace(recording.program, modules=names))


def _run(model: nn.Module, x: Tensor, output: Selector, feed: Feed) -> Tensor:
    """The model's own output.  Raises CaptureError where it fails."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x if x.requires_grad else x.detach()
        given = x.clone()  # a forward() may write to its input
        try:
            found = feed.copied().call(model, given)
        except CaptureError:
            raise
        except Exception as error:
            if other := checks.other_dtype(model, x):
                raise ValueError(f"{other} ({type(model).__name__} fails: {first_line(error)})") from error
            raise CaptureError(
                f"{type(model).__name__} itself fails on an input of shape {tuple(x.shape)}: {first_line(error)}. Give "
                "it the input that it is used with; what it takes beside x goes into args= and kwargs="
            ) from error
        return select(found, () if output is None else output)


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """‖ours − theirs‖ relative to theirs, absolute where theirs is zero."""
    scale = theirs.norm().item()
    return (ours - theirs).norm().item() / (scale or 1.0)
