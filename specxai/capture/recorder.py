"""The recorder: one eager run of a model on real tensors, seen call by call below autograd.

Every ATen call becomes a step.  What a tensor is at the time it is read is found through its storage: a write counts
the storage's version up, and a tensor that is older is read again, out of the storage's content as a flat value.  Where
gradients stop is what autograd itself says: a value that depends on the input and does not require a gradient.
"""

from __future__ import annotations

import operator
from types import CodeType
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo import eval_frame
from torch._ops import OpOverload
from torch.autograd.function import BackwardCFunction
from torch.utils._python_dispatch import TorchDispatchMode

from specxai.capture.frames import frames, in_function, where
from specxai.capture.functional import (
    functional,
    is_by_value,
    is_composite,
    is_random,
    is_view_in_place,
    writes_nothing,
    written,
)
from specxai.capture.program import Ref, references
from specxai.capture.storage import Known, Storage, address, place_of
from specxai.capture.tape import Tape
from specxai.errors import CaptureError

aten = torch.ops.aten
# The same tensor: whether the gradient stops there is what autograd says of the result.
_ALIASES = {aten.detach.default, aten.detach_.default, aten.alias.default, aten.lift_fresh.default, aten.lift.default}
# The call that users know, for the first result of the one that also returns what a backward pass needs.
_FIRST = {
    aten.native_layer_norm.default: (aten.layer_norm.default, lambda *args: args),
    aten.native_group_norm.default: (aten.group_norm.default, lambda x, weight, bias, n, c, hw, groups, eps: (
        x, groups, weight, bias, eps)),
    aten.log_sigmoid_forward.default: (aten.log_sigmoid.default, lambda *args: args),
}
_PLAIN = {aten._softmax.default: aten.softmax.int, aten._log_softmax.default: aten.log_softmax.int}
# Change which memory a tensor names.
_MEMORY = {"aten::resize_", "aten::resize_as_", "aten::resize_as_sparse_", "aten::set_"}
# Say something of a tensor that is the same for every input of its shape.
_METADATA = {aten.is_same_size.default, aten.is_pinned.default}
_ATTENTION = {getattr(aten, name).default for name in (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable") if hasattr(aten, name)}


class Recorder(TorchDispatchMode):
    """Records the calls of one thread on its `tape` while it is entered, and knows which tensor is which step."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # it would import all of the compiler; below is enough

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.tape = Tape()
        self._names = names
        self._compiled: set[CodeType] = set()
        self._below = 0
        self._known: dict[int, Known] = {}
        self._storages: dict[int, Storage] = {}

    # What a tensor is

    def start(self, x: Tensor) -> None:
        """Make x the input."""
        step = self.tape.append("x", "input")
        self.tape.active.add(step)
        self.tape.varying.add(step)
        self._learn(x, step)

    def give(self, tensor: Tensor) -> int:
        """Make a tensor a side input: a constant whose value may be another in the next run; its step."""
        step = self.tape.append("side", "constant")
        self.tape.constants[step] = tensor
        self.tape.varying.add(step)
        self._learn(tensor, step, constant=True)
        return step

    def step_of(self, tensor: Tensor) -> int:
        """The step of a tensor's value now, with its gradient stopped where autograd stops it."""
        known = self._current(tensor)
        step = known.step
        if step in self.tape.constants and self.tape.specialised and isinstance(tensor.grad_fn, BackwardCFunction):
            raise CaptureError(
                f"the custom autograd.Function {type(tensor.grad_fn).__name__.removesuffix('Backward')} computed its "
                f"result outside of torch, from values that left it at {', '.join(self.tape.specialised)}: its "
                "derivative is not in what was recorded. Write its forward() with torch operators instead of NumPy")
        if step not in self.tape.active or step in self.tape.detached or not self._is_stopped(known):
            return step
        return self.tape.stopped(step)

    def knows(self, tensor: Tensor) -> bool:
        """Was the tensor, or the memory that it names, seen in a call?"""
        return id(tensor) in self._known or address(tensor) in self._storages

    def read(self, tensor: Tensor) -> None:
        """A value leaves for Python."""
        if self.knows(tensor):
            self.tape.specialise(self._current(tensor).step)

    def _current(self, tensor: Tensor) -> Known:
        known = self._known.get(id(tensor)) or self._unknown(tensor)
        if known.storage is not None and known.version != known.storage.version:
            known.step, known.version = self._reread(known), known.storage.version
        return known

    def _is_stopped(self, known: Known) -> bool:
        """Does the value depend on the input without a gradient?  A leaf that requires one was cut off to be one."""
        if known.tensor.requires_grad:
            return known.tensor.is_leaf
        return not (known.inside and self._in_function())

    def _in_function(self) -> bool:
        """Is autograd off because its own code is running?"""
        return self._below > 0 or in_function()

    def _learn(self, tensor: Tensor, step: int, constant: bool = False) -> Known:
        key = address(tensor)
        storage = self._storages.get(key) if key else None
        if key and storage is None:
            storage = self._storages[key] = Storage(
                tensor.untyped_storage().nbytes() // tensor.itemsize, tensor.dtype, tensor.device,
                (step, place_of(tensor)), constant)
        known = self._known[id(tensor)] = Known(tensor, step, storage, storage.version if storage else 0,
                                             self._in_function())
        return known

    def _unknown(self, tensor: Tensor) -> Known:
        """A tensor that no recorded call made: a constant, or the same memory under another name."""
        storage = self._storages.get(address(tensor))
        if storage is not None and not storage.constant:
            known = self._learn(tensor, -1)
            known.version = -1
            return known
        name = self._names.get(id(tensor), "constant")
        step = self.tape.append(name, "constant")
        self.tape.constants[step] = tensor.clone() if tensor.is_inference() else tensor
        known = self._learn(tensor, step, constant=True)
        if known.version:
            known.version = -1
        return known

    # Views and writes

    def _reread(self, known: Known) -> int:
        """The values of a tensor whose storage was written to through another one."""
        storage = known.storage
        if known.tensor.dtype != storage.dtype:
            raise CaptureError(f"{where()} writes to the bits of a {storage.dtype} tensor that is also read as "
                               f"{known.tensor.dtype}; copy it before")
        return storage.read(place_of(known.tensor), self.tape.emit)

    def _write(self, known: Known, step: int) -> None:
        """The tensor's values are now those of `step`, and its storage's with them."""
        storage, place = known.storage, place_of(known.tensor)
        if storage is not None and known.tensor.dtype != storage.dtype:
            raise CaptureError(f"{where()} writes to a {storage.dtype} tensor as {known.tensor.dtype}; copy it "
                               "before")
        known.step = step
        known.inside = self._in_function()
        if storage is None:
            return
        storage.write(step, place)
        known.version = storage.version

    def _keep(self, known: Known) -> None:
        """The model's own tensors are constants of the program, but for those that its forward() writes to."""
        storage = known.storage
        if storage is None or not storage.constant:
            return
        for step, tensor in self.tape.constants.items():
            if self._storages.get(address(tensor)) is storage:
                self.tape.constants[step] = tensor.detach().clone()
        if not storage.is_filled_by(storage.whole[1]):
            storage.flat = self.tape.append("memory", "constant")
            self.tape.constants[storage.flat] = known.tensor.detach().as_strided([storage.count], [1], 0).clone()

    # Calls

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not isinstance(func, OpOverload):
            return self._higher_order(func, args)
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func in _ALIASES:
            return self._alias(func, args, kwargs)
        if func in _ATTENTION:
            return self._attention(func, args, kwargs)
        if func._schema.is_mutable and not writes_nothing(func, args, kwargs):
            return self._mutation(func, args, kwargs)
        if func is aten.as_strided.default:
            return self._as_strided(func, args, kwargs)
        given = self._template(args), self._template(kwargs)
        result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            if func in _PLAIN and not given[1]:
                func, given = _PLAIN[func], (given[0][:2], {})
            if id(result) not in self._known:
                self._learn(result, self.tape.call(func, *given, result))
        elif isinstance(result, (list, tuple)):
            call = self.tape.call(func, *given, result)
            if func in _FIRST:
                form, arrange = _FIRST[func]
                self._learn(result[0], self.tape.emit(form, arrange(*given[0]), value=result[0]))
            for position, item in enumerate(result):
                if isinstance(item, Tensor) and not (position == 0 and func in _FIRST):
                    self._learn(item, self.tape.emit(operator.getitem, (Ref(call), position), value=item))
        if is_by_value(func, args) or (not isinstance(result, (Tensor, list, tuple)) and func not in _METADATA):
            self.tape.specialise(*references(given))
        return result

    def _alias(self, func, args, kwargs):
        step = self._current(args[0]).step
        result = func(*args, **kwargs)
        if result is not args[0]:
            self._learn(result, step)
        return result

    def _as_strided(self, func, args, kwargs):
        """Reads memory, not values: so it does here."""
        self._current(args[0])
        result = func(*args, **kwargs)
        known = self._learn(result, -1)
        known.step = self._reread(known)
        return result

    def _mutation(self, func, args, kwargs):
        names = written(func)
        targets = [args[position] if 0 <= position < len(args) else kwargs.get(name) for position, name in names]
        if len(targets) != 1 or not isinstance(targets[0], Tensor):
            raise CaptureError(f"{where()} writes to its arguments ({func}), which has no form without; replace "
                               "it by operations that return what they compute")
        tensor = targets[0]
        if func._schema.name in _MEMORY:
            self._formless(func)
        known = self._current(tensor)
        if is_view_in_place(func):
            form = functional(func) or self._formless(func)
            step = self.tape.emit(form, self._template(args), self._template(kwargs))
            func(*args, **kwargs)
            known.step = step
            return tensor
        step = self._written_value(func, tensor, args, kwargs)
        self._keep(known)
        shape = tensor.shape
        result = func(*args, **kwargs)
        if tensor.shape != shape or (known.storage is not None and self._storages.get(address(tensor))
                                     is not known.storage):
            if not func._schema.arguments[names[0][0]].is_out:
                self._formless(func)
            self._learn(tensor, step)  # out= a tensor of another size: memory of its own from now on
            return result
        self._write(known, step)
        return result

    def _written_value(self, func, tensor: Tensor, args, kwargs) -> int:
        """The step of what a call writes."""
        if func is aten.zero_.default:
            return self.tape.emit(aten.zeros_like.default, (Ref(self.step_of(tensor)),), value=tensor)
        if func is aten.fill_.Scalar:
            return self.tape.emit(aten.full_like.default, (Ref(self.step_of(tensor)), args[1]), value=tensor)
        if func in (aten.copy_.default, aten.fill_.Tensor):
            source, step = args[1], self.step_of(args[1])
            if source.dtype != tensor.dtype or source.device != tensor.device:
                step = self.tape.emit(aten._to_copy.default, (Ref(step),),
                                      {"dtype": tensor.dtype, "device": tensor.device})
            if source.shape != tensor.shape:
                step = self.tape.emit(aten.expand.default, (Ref(step), list(tensor.shape)))
            return step
        if is_random(func):
            step = self.tape.emit(aten.zeros_like.default, (Ref(self.step_of(tensor)),), value=tensor)
            self.tape.draws(step, func)
            return step
        form = functional(func) or self._formless(func)
        given = {name: value for name, value in kwargs.items() if value is not tensor or name not in
                 {name for _, name in written(func)}}
        return self.tape.call(form, self._template(args), self._template(given), tensor)

    def _formless(self, func):
        raise CaptureError(f"{where()} changes a tensor in place by {func}, which has no form without; replace "
                           "it by operations that return what they compute")

    def _attention(self, func, args, kwargs):
        """Fused attention in its plain form, whose parts are linear maps and a softmax."""
        given = {argument.name: argument.default_value for argument in func._schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        result = func(*args, **kwargs)
        q, k, v = given["query"], given["key"], given["value"]
        self._below += 1
        with self:
            plain, _ = aten._scaled_dot_product_attention_math.default.decompose(
                q, k, v, given.get("attn_mask", given.get("attn_bias")), given["dropout_p"], given["is_causal"],
                scale=given["scale"], enable_gqa=q.shape[-3] != k.shape[-3])
        step = self.step_of(plain)
        self._below -= 1
        result[0].copy_(plain)  # the strides are the fused kernel's, which a later view may need
        self._learn(result[0], step)
        return result

    def _higher_order(self, func, args):
        self._compiled |= {frame.f_code for frame in frames() if "_higher_order_ops" in frame.f_code.co_filename}
        if func is torch.ops.higher_order.cond:
            predicate, chosen, other, operands = args
            with self:
                return (chosen if predicate else other)(*operands)
        raise CaptureError(f"{where()} calls {func}, which cannot be looked into; call what it wraps "
                           "directly")

    def finish(self) -> None:
        """Let the compiler, which torch.cond calls, forget that it has seen its code under a mode: it would leave that
        code alone from now on, and fail at what is inside."""
        for code in self._compiled:
            eval_frame.reset_code(code)

    # Arguments

    def _template(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(self.step_of(value))
        if isinstance(value, (list, tuple)):
            items = [self._template(item) for item in value]
            return tuple(items) if isinstance(value, tuple) else items
        if isinstance(value, dict):
            return {key: self._template(item) for key, item in value.items()}
        return value


# Inside of torch.cond and compiled functions the compiler would take this, and what it calls, for the user's code.
eval_frame.set_code_exec_strategy(Recorder.__torch_dispatch__.__code__, eval_frame._FrameExecStrategy(
    eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP))
