"""The witness for a policy that holds factors: the program under autograd, with every held factor detached.

Eq. (14) in torch's own terms.  What the rules make of an op is not used, and what is a gate is decided here again, from
the ops' names and from which values require a gradient; only the policy's four words are shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specxai.affine.witness import Pullback
from specxai.capture.program import Program, Step, is_getitem, references, substitute
from specxai.rules.base import differentiating
from specxai.rules.policy import Policy

aten = torch.ops.aten


def _set(names: str) -> frozenset[str]:
    return frozenset(names.split())


SECANTS = _set("sigmoid tanh silu gelu elu softplus hardswish mish exp log sqrt rsqrt reciprocal erf selu celu "
               "log_sigmoid sin cos tan expm1 exp2 log1p log2 log10 atan asin acos sinh cosh asinh erfc softshrink "
               "hardshrink threshold square hardsigmoid relu6 hardtanh pow clamp clamp_min clamp_max")
CLIPPED = _set("relu6 hardtanh clamp clamp_min clamp_max")
ACTIVATED = SECANTS | _set("relu leaky_relu prelu _prelu_kernel abs log_softmax _log_softmax maximum minimum atan2 "
                           "hypot logaddexp xlogy fmax fmin remainder fmod nan_to_num copysign sign sgn floor ceil "
                           "round trunc heaviside")
SOFTMAX = _set("softmax _softmax _safe_softmax")
STATISTICS = _set("var var_mean std std_mean linalg_vector_norm norm amax amin max min logsumexp prod")
WEIGHTED = _set("linear addmm mm matmul bmm mv dot addmv baddbmm _sparse_mm conv1d conv2d conv3d conv_transpose1d "
                "conv_transpose2d conv_transpose3d convolution")
FACTORS = {"mul": (0, 1), "mm": (0, 1), "matmul": (0, 1), "bmm": (0, 1), "mv": (0, 1), "dot": (0, 1),
           "addmm": (1, 2), "addmv": (1, 2), "baddbmm": (1, 2), "addcmul": (1, 2)}
_OF_SEVERAL = {aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor, aten.pow.Tensor_Tensor, aten.pow.Scalar}
STRENGTH = ["value", "activation", "behind weights", "softmax", "norm"]


def frozen_pull_back(program: Program, policy: Policy, x: Tensor, cotangent: Callable[[Tensor], Tensor]) -> Pullback:
    """The program's output at x, and ∇(u·f) with the held factors as constants."""
    with differentiating(), torch.autocast(x.device.type, enabled=False):  # the program has its conversions written out
        leaf = x.detach().clone().requires_grad_()
        values: list[Any] = [None] * len(program.steps)
        with torch.no_grad():
            plain = program.run(x.detach().clone())
        replay = _Replay(program, policy, values, plain)
        for step in program.steps:
            if step.kind == "call":
                value = values[step.index] = replay.value(step)
                if isinstance(value, Tensor) and value.requires_grad:
                    value.register_hook(_contiguous)
            else:
                values[step.index] = leaf if step.kind == "input" else program.constants[step.index].detach()
        output = values[program.output]
        gradient = None
        if output.requires_grad:
            gradient = torch.autograd.grad(output, leaf, cotangent(output.detach()), allow_unused=True)[0]
        return Pullback(output.detach(), torch.zeros_like(leaf) if gradient is None else gradient)


def _contiguous(gradient: Tensor | None) -> Tensor | None:
    """torch's backward of batch norm is wrong for some strides."""
    return None if gradient is None else gradient.contiguous()


def _stronger(gates: list[int]) -> int:
    """The strongest gate of several; a pattern behind weights is none beside anything else."""
    behind = STRENGTH.index("behind weights")
    return behind if set(gates) == {behind} else max([gate for gate in gates if gate != behind], default=0)


class _Replay:
    """Goes through the steps in order and notes what each value is as a factor: how strong a gate.

    plain   every step's value, as the program has it
    """

    def __init__(self, program: Program, policy: Policy, values: list[Any], plain: list[Any]) -> None:
        self._program, self._policy, self._values, self._plain = program, policy, values, plain
        self._gate: dict[int, int] = {}

    def value(self, step: Step) -> Any:
        args, kwargs = substitute(step.args, self._values), substitute(dict(step.kwargs), self._values)
        origin = self._program.steps[step.args[0].index] if is_getitem(step) else step
        name = origin.target._schema.name.partition("::")[2]
        read = [index for index in references((origin.args, dict(origin.kwargs)))
                if isinstance(self._values[index], Tensor) and self._values[index].requires_grad]
        given = self._strongest(read)
        is_statistic = (name in STATISTICS and origin.target not in (aten.max.dim, aten.min.dim)
                        and not (is_getitem(step) and step.args[1] == 1))
        if name in ("mean", "sum") and given == STRENGTH.index("activation"):
            is_statistic = True
        own = {"activation": name in ACTIVATED, "softmax": name in SOFTMAX, "norm": is_statistic}
        gate = _stronger([given, *(STRENGTH.index(kind) for kind, is_so in own.items() if is_so)])
        if is_getitem(step):
            self._gate[step.index] = gate
            return args[0][args[1]]
        if name in FACTORS or name in ("div", "addcdiv"):
            value, gate = self._product(step, name, args, kwargs, given)
        else:
            value = self._expression(step.target, name, given)(*args, **kwargs)
            if self._policy.norm == "held" and name in _NORMS:
                value = _anchored(value, self._plain[step.index])
            if name in WEIGHTED:
                gate = self._behind_weights(given)
        self._gate[step.index] = gate
        return value

    def _strongest(self, read: list[int]) -> int:
        return _stronger([self._gate.get(index, 0) for index in read])

    def _behind_weights(self, given: int) -> int:
        return STRENGTH.index("behind weights") if given == STRENGTH.index("softmax") else 0

    def _product(self, step: Step, name: str, args: tuple, kwargs: dict, given: int) -> tuple[Tensor, int]:
        """(value, how strong a gate it is)."""
        at = FACTORS.get(name, (0, 1) if name == "div" else (1, 2))
        a, b = (args[position] for position in at)
        live = [isinstance(part, Tensor) and part.requires_grad for part in (a, b)]
        gates = [self._gate.get(step.args[position].index, 0) if is_live else 0
                 for position, is_live in zip(at, live, strict=True)]
        summand = step.args[0] if at[0] == 1 and isinstance(args[0], Tensor) and args[0].requires_grad else None
        added = [] if summand is None else [self._gate.get(summand.index, 0)]

        def call(left: Any, right: Any, more: bool = True) -> Tensor:
            """The call with these factors; without the summand that some have."""
            arguments = list(args)
            arguments[at[0]], arguments[at[1]] = left, right
            if at[0] == 1 and not more:
                arguments[0] = torch.zeros_like(torch.as_tensor(arguments[0]))
            return step.target(*arguments, **kwargs)

        if name in ("div", "addcdiv"):
            if not live[1]:
                return call(a, b), given
            if not live[0]:
                if self._policy.activation == "held":
                    return _secant(lambda z: call(a, z, False), b) + call(a, b) - call(a, b, False), max(given, 1)
                return call(a, b), max(given, 1)
            if self._policy.product != "tangent" or self._strength(gates[1]):
                return call(a, b.detach()), max([gates[0], *added])
            return call(a, b), given
        if not all(live):
            is_weighted = name in WEIGHTED and any(live) and summand is None
            return call(a, b), self._behind_weights(given) if is_weighted else given
        strengths = [self._strength(gate) for gate in gates]
        if strengths[0] != strengths[1]:
            left_is_gate = strengths[0] > strengths[1]
            held = (a.detach(), b) if left_is_gate else (a, b.detach())
            return call(*held), max([gates[1 if left_is_gate else 0], *added])
        if self._policy.product == "tangent":
            return call(a, b), given
        halves, held = call(a, b.detach(), False) / 2 + call(a.detach(), b, False) / 2, (a.detach(), b.detach())
        return halves + (call(*held) - call(*held, False) if at[0] == 1 else 0), given

    def _strength(self, gate: int) -> int:
        """How strong a gate is under the policy: none where its kind is not held."""
        word = {"activation": self._policy.product, "norm": self._policy.norm}.get(STRENGTH[gate], self._policy.softmax)
        return gate if gate and word == "held" else 0

    def _expression(self, target: Any, name: str, given: int) -> Callable:
        """The call, with what its policy holds detached inside of it."""
        policy = self._policy
        if policy.activation == "held" and name in SECANTS and target not in _OF_SEVERAL:
            return lambda z, *args, **kwargs: _secant(lambda y: target(y, *args, **kwargs), z, name in CLIPPED)
        if policy.norm == "held" and name in _NORMS:
            return lambda *args, **kwargs: _NORMS[name](target, *args, **kwargs)
        if name == "as_strided_scatter":
            return _written
        if name == "glu":
            return lambda z, dim=-1: self._glu(z, dim, given)
        if policy.product != "tangent" and name in ("var", "var_mean"):
            return lambda z, *args, **kwargs: _half_variance(target, z, *args, **kwargs)
        return target

    def _glu(self, z: Tensor, dim: int, given: int) -> Tensor:
        a, b = z.chunk(2, dim)
        gate = _secant(torch.sigmoid, b) if self._policy.activation == "held" else b.sigmoid()
        mine, other = self._strength(given), self._strength(STRENGTH.index("activation"))
        if mine != other:
            return a.detach() * gate if mine > other else a * gate.detach()
        return a * gate if self._policy.product == "tangent" else (a * gate.detach() + a.detach() * gate) / 2


def _secant(function: Callable[[Tensor], Tensor], z: Tensor, clips: bool = False) -> Tensor:
    """σ(0) + h z with h = (σ(z) − σ(0)) / z held; σ(z) / z where σ(0) is not finite; σ itself where z is 0, and where
    it only `clips` and z is within its bounds."""
    if not isinstance(z, Tensor) or not z.requires_grad:
        return function(z)
    at_zero = function(torch.zeros_like(z))
    at_zero = torch.where(torch.isfinite(at_zero), at_zero, 0)
    value = function(z)
    slope = torch.where(z == 0, 0, (value - at_zero) / z).detach()
    moved = torch.where(torch.isfinite(z), z - z.detach(), 0)
    as_is = (z == 0) | (value == z) if clips else z == 0
    return torch.where(as_is, value, value.detach() + slope * moved)  # the value itself, to the last digit


def _anchored(value: Any, plain: Any) -> Any:
    """The derivative of one with the digits of the other: what is decided by equal numbers then stays decided."""
    if isinstance(value, tuple):
        return (_anchored(value[0], plain[0]), *value[1:])
    return plain.detach() + torch.where(torch.isfinite(value), value - value.detach(), 0)


def _standard(z: Tensor, dims: list[int], eps: float, centred: bool = True) -> Tensor:
    """(z − mean) / √(variance + ε) over axes, the root detached."""
    wide = z if z.itemsize >= 4 else z.float()
    if centred:
        wide = wide - wide.mean(dims, keepdim=True)
    return (wide / torch.sqrt(wide.detach().square().mean(dims, keepdim=True) + eps)).to(z.dtype)


def _written(z: Tensor, source: Tensor, size: list[int], stride: list[int], offset: int | None = None) -> Tensor:
    """z with the source written to a part of its memory; torch's own derivative keeps what is overwritten instead."""
    flat = z.reshape(-1)
    at = torch.arange(flat.numel(), device=z.device).as_strided(size, stride, offset or 0).reshape(-1)
    return flat.index_copy(0, at, source.reshape(-1)).reshape(z.shape)


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


def _by_channel(vector: Tensor | None, z: Tensor) -> Tensor | None:
    return None if vector is None else vector.reshape(1, -1, *(1,) * (z.ndim - 2))


def _layer(target, z, shape, weight=None, bias=None, eps=1e-5, *_):
    return _affine(_standard(z, list(range(-len(shape), 0)), eps), weight, bias)


def _root_mean_square(target, z, shape, weight=None, eps=None):
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    normed = _affine(_standard(z, list(range(-len(shape), 0)), eps, centred=False), weight, None)
    return (normed, None) if "_fused" in target._schema.name else normed


def _group(target, z, groups, weight=None, bias=None, eps=1e-5, *_):
    normed = _standard(z.reshape(z.shape[0], groups, math.prod(z.shape[1:]) // groups), [-1], eps).reshape(z.shape)
    return _affine(normed, _by_channel(weight, z), _by_channel(bias, z))


def _batch(target, z, weight, bias, *rest):
    running = len(rest) > 3  # mean and variance of the data, and then whether the batch's are used
    if "no_training" in target._schema.name or (running and not rest[2]):
        return target(z, weight, bias, *rest)
    normed = _standard(z, [0, *range(2, z.ndim)], rest[4] if running else rest[2])
    return _affine(normed, _by_channel(weight, z), _by_channel(bias, z)), None, None


_NORMS = {"layer_norm": _layer, "group_norm": _group, "rms_norm": _root_mean_square,
          "_fused_rms_norm": _root_mean_square, "native_batch_norm": _batch, "cudnn_batch_norm": _batch,
          "miopen_batch_norm": _batch, "_native_batch_norm_legit": _batch}


def _half_variance(target, z, *args, **kwargs):
    """The variance as deviations times held deviations, whose derivative is half."""
    found = target(z, *args, **kwargs)
    variance = found[0] if isinstance(found, tuple) else found
    half = variance / 2 + variance.detach() / 2
    return (half, found[1]) if isinstance(found, tuple) else half
