"""What a rule is: it turns one ATen call at its value into a linear node.

A node is z = Σ_i A_i z_i + offset over the values z_i that depend on the input.  Each A_i acts on blocks of k probes: a
block at a value of shape S is a tensor (k, *S).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from specxai.capture.checks import is_finite
from specxai.capture.program import Ref, Step, references
from specxai.rules.policy import STOPPED, Policy, behind_weights, strongest

Block = Callable[[Tensor], Tensor]


@contextmanager
def differentiating() -> Iterator[None]:
    """Autograd on, also where the caller is inside no_grad or inference mode; for this thread, and inside only."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def finite(z: Tensor) -> Tensor:
    """z with 0 for what is infinite: masked units, which no slope but 0 may read."""
    return z if is_finite(z) else torch.where(torch.isfinite(z), z, 0)


def unchanged(block: Tensor) -> Tensor:
    """The index map that keeps the units and their order."""
    return block


@dataclass(frozen=True)
class HeldProduct:
    """Matrices times held ones, stack by stack: z ↦ z · H, or H · z where the held one stands on the left.

    held   (stack, n, p), or (stack, m, n) on the left; the units of z are (stack, m, n), those of the product
           (stack, m, p)

    >>> HeldProduct(torch.ones(8, 64, 64), from_left=True).held.shape
    torch.Size([8, 64, 64])
    """

    held: Tensor
    from_left: bool


@dataclass(frozen=True)
class DiagonalPlusLowRank:
    """z ↦ d z + Σ_r left_r (right_rᵀ z) in each group of units: a diagonal plus a low rank.

    units            (groups, n) int32, the units of each group
    diagonal         d, which broadcasts to z's shape
    left, right      of each r, which broadcast to z's shape

    >>> centring = DiagonalPlusLowRank(torch.arange(6).reshape(2, 3), torch.ones(()), (-torch.ones(()),),
    ...                                (torch.full((), 1 / 3),))
    >>> centring.units.tolist(), centring.transposed.left[0]
    ([[0, 1, 2], [3, 4, 5]], tensor(0.3333))
    """

    units: Tensor
    diagonal: Tensor
    left: tuple[Tensor, ...]
    right: tuple[Tensor, ...]

    @property
    def transposed(self) -> DiagonalPlusLowRank:
        """The adjoint."""
        return DiagonalPlusLowRank(self.units, self.diagonal, self.right, self.left)


@dataclass(frozen=True)
class Term:
    """A_i and its adjoint: `apply` (k, *S_i) -> (k, *S), `adjoint` (k, *S) -> (k, *S_i).

    input    the step whose value z_i is multiplied
    flops    of one probe, a multiply-add counted as two
    picks    set where every output unit is one input unit times a factor, or zero: the same map without the factor, on
             numbers of any dtype
    factor   that factor, broadcast to the output
    entries  set where A_i is sparse: () -> (output units, input units, numbers), one entry each
    product  set for a product with held matrices
    low_rank set where A_i is a diagonal plus a low rank in groups of units: () -> what it is
    onto     set where the adjoint makes a tensor of its own, and may be added to another on the way: (block, total, may
             the total be overwritten?) -> total + adjoint(block)

    >>> double = Term(0, lambda block: 2 * block, lambda block: 2 * block, picks=unchanged, factor=2.0)
    >>> double.apply(torch.ones(1, 3))
    tensor([[2., 2., 2.]])
    """

    input: int
    apply: Block
    adjoint: Block
    flops: int = 0
    picks: Block | None = None
    factor: Tensor | float = 1.0
    entries: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    product: HeldProduct | None = None
    low_rank: Callable[[], DiagonalPlusLowRank] | None = None
    onto: Callable[[Tensor, Tensor, bool], Tensor] | None = None


@dataclass(frozen=True)
class Gate:
    """The state of a non-linearity at x.

    pattern   which linear piece each unit is on (any integer code), None for a smooth gate
    crossing  (z, direction dz), each (*S_in) -> smallest t > 0 per unit at which z + t dz leaves its piece, inf for
              never; z is given, since nodes that held it would hold every value of the network
    input     the step whose value z is gated

    >>> z = torch.tensor([1.0, -2.0])
    >>> gate = Gate(0, z > 0, lambda z, direction: torch.where(z * direction < 0, -z / direction, torch.inf))
    >>> gate.pattern.tolist(), gate.crossing(z, torch.tensor([-4.0, -1.0])).tolist()
    ([True, False], [0.25, inf])
    """

    input: int
    pattern: Tensor | None
    crossing: Callable[[Tensor, Tensor], Tensor] | None


@dataclass(frozen=True)
class FullyConnected:
    """y = W z with z the last axis, weight (out, in): what a plan runs instead of the terms.

    >>> FullyConnected(torch.ones(4, 3)).weight.shape
    torch.Size([4, 3])
    """

    weight: Tensor


@dataclass(frozen=True)
class Convolution:
    """A convolution's kernel and geometry, one number per spatial axis: what a plan runs instead of the terms.

    weight   (out, in / groups, *kernel), or (in, out / groups, *kernel) where transposed

    >>> Convolution(torch.ones(8, 3, 3, 3), (1, 1), (1, 1), (1, 1), groups=1, transposed=False).stride
    (1, 1)
    """

    weight: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool


@dataclass(frozen=True)
class LinearNode:
    """One linear node z = Σ A_i z_i + offset: the terms, the offset (*S), and the gate if it is a non-linearity.

    offset            of the op itself, a bias or a shift; None for zero
    fully_connected   set for a product with a weight over the last axis
    convolution       set for a convolution
    generic           the op's name where no rule exists and torch differentiates it
    resets            a weighted layer (convolution, linear): what lies before it makes no later factor a gate
    kind              what its value is as a factor of a product, a kind of the policy; "" where it is what its inputs
                      are
    scale             set where the node is diagonal
    view              the units of its one input, in the same order
    curved            its map changes with x although it is no gate: a product of two values, a stopped gradient
    joined            set for a concatenation: () -> (output units,) the unit that each one is, counted through the
                      terms' inputs one after the other, -1 for none
    narrow            the weight (out, in) of a product over the last axis, of fewer bits than blocks have, which terms
                      widen part by part
    together          all terms at once, where that is cheaper than their sum: the blocks of their inputs (None for
                      zero) -> the node's block
    back              all adjoints at once: the node's block -> one for each term

    >>> import specxai
    >>> graph = specxai.linearize(torch.nn.Linear(3, 2).eval(), torch.ones(1, 3)).graph
    >>> node = graph.nodes[max(graph.nodes)]
    >>> len(node.terms), node.offset.shape, node.fully_connected.weight.shape, node.flops
    (1, torch.Size([1, 2]), torch.Size([2, 3]), 12)
    """

    terms: tuple[Term, ...]
    offset: Tensor | None = None
    gate: Gate | None = None
    fully_connected: FullyConnected | None = None
    convolution: Convolution | None = None
    generic: str = ""
    resets: bool = False
    kind: str = ""
    scale: Tensor | None = None
    view: bool = False
    curved: bool = False
    joined: Callable[[], Tensor] | None = None
    together: Callable[[Sequence[Tensor | None]], Tensor] | None = None
    back: Callable[[Tensor], Sequence[Tensor]] | None = None
    narrow: Tensor | None = None

    @property
    def flops(self) -> int:
        """Operations of one probe through all terms, a multiply-add counted as two."""
        return sum(term.flops for term in self.terms)

    def factor_kind(self, kinds: Mapping[int, str]) -> str:
        """What its value is as a factor, given what its inputs are."""
        given = strongest(kinds.get(term.input, "") for term in self.terms)
        if STOPPED in (self.kind, given):
            return STOPPED
        if self.resets:
            return behind_weights(given)
        return strongest([self.kind, given]) if self.kind else given


@dataclass(frozen=True)
class Call:
    """One call at one x: what a rule sees.  A node must not hold it, or it would hold the call's values;
    the generic node does, which calls again.

    step           of the program: the overload is `step.target`
    args, kwargs   the call's arguments as values
    value          (*S) the call's result, of output `output` where it has several
    policy         which kinds of factors are held
    active         the steps whose values depend on x
    kinds          step -> kind of factor that its value is, for those that are one
    offsets        else the node's offset is not wanted, and a rule may spare itself the work

    >>> from specxai.capture import Ref, Step
    >>> step = Step(1, "relu", "call", torch.ops.aten.relu.default, (Ref(0),))
    >>> call = Call(step, (torch.ones(1, 2),), {}, torch.ones(1, 2), Policy(), frozenset({0, 1}))
    >>> call.ref(0), call.only(0), call.arg(1, "inplace", False)
    (0, True, False)
    """

    step: Step
    args: tuple
    kwargs: dict[str, Any]
    value: Tensor
    policy: Policy
    active: frozenset[int]
    output: int = 0
    kinds: Mapping[int, str] = field(default_factory=dict)
    offsets: bool = True

    def ref(self, position: int) -> int | None:
        """Step of argument `position` where it depends on x, else None."""
        if position >= len(self.step.args):
            return None
        argument = self.step.args[position]
        return argument.index if isinstance(argument, Ref) and argument.index in self.active else None

    def kind(self, position: int) -> str:
        """The kind of factor that argument `position` is."""
        return self.kinds.get(self.ref(position), "")

    def live(self) -> list[int]:
        """The steps that the call depends on, each as often as it is read."""
        return [i for i in references((self.step.args, dict(self.step.kwargs))) if i in self.active]

    def only(self, *positions: int) -> bool:
        """Does the call depend on x through these arguments and nothing else?"""
        mine = [self.ref(position) for position in positions]
        return None not in mine and self.live() == mine

    def arg(self, position: int, name: str, default: Any = None) -> Any:
        """The argument at `position`, or of this name, or the default that the op has for it."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


Rule = Callable[[Call], LinearNode | None]
RULES: dict[Any, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen overloads, written as "relu.default".

    A rule may return None for arguments that it does not cover: the generic node then takes the call.

    Raises ValueError for an overload that has a rule already.

    >>> @rule("an_op_that_torch_lacks.default")
    ... def nothing(call: Call) -> LinearNode | None:
    ...     return None
    >>> nothing in RULES.values(), RULES[torch.ops.aten.relu.default].__name__
    (False, 'relu')
    """

    def register(function: Rule) -> Rule:
        for name in names:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet, None), overload, None)
            if operator is not None:  # an overload that this torch does not have needs no rule
                if operator in RULES:
                    raise ValueError(f"{name} has a rule already, {RULES[operator].__name__}")
                RULES[operator] = function
        return function

    return register


def one(call: Call, apply: Block, adjoint: Block, *, position: int = 0, flops: int = 0, picks: Block | None = None,
        entries: Callable | None = None, low_rank: Callable | None = None, **node: Any) -> LinearNode:
    """A node with the single term A at argument `position`."""
    term = Term(call.ref(position), apply, adjoint, flops, picks, entries=entries, low_rank=low_rank)
    return LinearNode((term,), **node)


def selection(call: Call, rows: Tensor, **node: Any) -> LinearNode:
    """A node whose unit i is unit `rows[i]` of its one input; further fields of the node by name."""
    own, shape = call.args[0].shape, call.value.shape

    def apply(block: Tensor) -> Tensor:
        return block.reshape(block.shape[0], -1).index_select(1, rows).reshape(block.shape[0], *shape)

    def adjoint(block: Tensor) -> Tensor:
        out = block.new_zeros(block.shape[0], own.numel())
        return out.index_add_(1, rows, block.reshape(block.shape[0], -1)).reshape(block.shape[0], *own)

    return one(call, apply, adjoint, picks=apply, **node)


def along_axes(shape: Sequence[int], axes: Sequence[int]) -> Tensor:
    """(groups, n) int32: the units of a value of this shape, those that differ along the axes in one group.

    >>> along_axes((2, 3), (0,)).tolist()
    [[0, 3], [1, 4], [2, 5]]
    """
    size = math.prod(shape)
    units = torch.arange(size, dtype=torch.int32, device="cpu").reshape(tuple(shape))
    behind = tuple(range(len(shape) - len(axes), len(shape)))
    return units.movedim(tuple(axes), behind).reshape(-1, math.prod(shape[axis] for axis in axes))


def per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A stride, padding, … as one number per spatial axis."""
    value = (value,) if isinstance(value, int) else tuple(value)
    return value * dims if len(value) == 1 else value


def expand_to(block: Tensor, shape: torch.Size) -> Tensor:
    """A block (k, *s) broadcast to (k, *shape) as torch broadcasts s to shape."""
    missing = len(shape) - (block.ndim - 1)
    return block.reshape(block.shape[0], *(1,) * missing, *block.shape[1:]).expand(block.shape[0], *shape)


def sum_to(block: Tensor, shape: torch.Size) -> Tensor:
    """The adjoint of `expand_to`: a block (k, *S) summed to (k, *shape)."""
    return block.sum_to_size(block.shape[0], *(1,) * (block.ndim - 1 - len(shape)), *shape).reshape(
        block.shape[0], *shape)
