"""The affine map of a model at one input: f(x) = J x + b, split at a layer as J = L·R + bypass.  Eqs. (4)-(9), (16)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from specxai._blocks import default_memory
from specxai._fork import survive_fork
from specxai._kept import Kept
from specxai._once import once
from specxai.affine import regions
from specxai.affine.agreement import Agreement, certify, cotangent
from specxai.affine.frozen import frozen_pull_back
from specxai.affine.nodes import linear_nodes, offset_is_large
from specxai.affine.offsets import offset_layers, pushed, weighed
from specxai.affine.operator import LocalOperator
from specxai.affine.positions import End, Positions, between
from specxai.affine.report import report
from specxai.affine.snapshot import Snapshot
from specxai.affine.target import resolve_target
from specxai.affine.witness import Pullback
from specxai.backends import PLAN_FROM, choose, make
from specxai.capture.recording import Recording
from specxai.errors import CaptureError
from specxai.graph import Graph
from specxai.operators import LinearOperator, ZeroOperator, plain
from specxai.precision import full_precision
from specxai.rules import Gate
from specxai.rules.dtypes import widest
from specxai.rules.policy import Gates, Policy

DECOMPOSITIONS, DECOMPOSITION_BYTES = 4, 512 << 20  # the last ones of a Local, and the bytes of all of them
KEPT_VALUES = 16 << 20  # bytes; larger values at x, and offsets, are computed again where they are asked for


@dataclass(frozen=True)
class Split:
    """J = left @ right + bypass at a layer.

    right    (m_s, n), from the input to the layer
    left     (m, m_s), from the layer to the output
    bypass   (m, n), the paths that go round the layer; `bypass.is_zero` where there are none
    shape    of the layer's output
    """

    layer: str
    right: LinearOperator
    left: LinearOperator
    bypass: LinearOperator
    shape: torch.Size
    _find: Callable[[], Tensor] = field(repr=False)

    @once
    def value(self) -> Tensor:
        """The layer's output at x."""
        return self._find()

    def __repr__(self) -> str:
        around = "no bypass" if self.bypass.is_zero else "with a bypass"
        return f"Split({self.layer!r}, {tuple(self.shape)}: {self.left!r} @ {self.right!r}, {around})"


class Local:
    """The affine map at one input; made by `specxai.linearize`.

    It is a snapshot: once a weight of the model has changed, products, bias and all else that would mix old and new
    raise StaleError, which names the weight.  Solvers and explanations read all weights before and after; a product by
    itself reads the large ones in parts, so that a few numbers written through `.data` may show a few products later.
    Several threads may use one Local.

    Attributes: `input` x, `output` f(x), `gates` the policy, `backend` the one that runs, `captured` the program,
    `decompositions` the last ones made of it, at most 4 of at most 512 MiB together (`decompositions.clear()`).

    Raises TypeError or ValueError for `max_memory`, `gates` or `backend` that are none, CaptureError where J is not the
    model's derivative.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(2, 3)).eval()
    >>> local = specxai.linearize(net, torch.tensor([[1.0, -1.0]]))
    >>> local.layers, local.jacobian.shape, local.bias.shape, local.exactness < 1e-5
    (['0', '1'], (3, 2), torch.Size([1, 3]), True)
    >>> s = local.split("0")
    >>> s.left.shape, s.right.shape, s.bypass.is_zero
    ((3, 2), (2, 2), True)
    >>> local.first_flip(torch.tensor([[-2.0, 0.0]])), local.same_region(torch.tensor([[3.0, -2.0]]))
    (Flip(0.5, layer='0', unit=0), True)
    """

    def __init__(self, captured: Recording, x: Tensor, *, gates: Gates = "tangent", backend: str = "auto",
                 max_memory: int | None = None, values: list | None = None, verify: bool | None = None) -> None:
        if max_memory is not None and (isinstance(max_memory, bool) or not isinstance(max_memory, int)):
            raise TypeError(f"max_memory is a number of bytes, such as 2 << 30; got {max_memory!r}")
        self.policy = Policy.of(gates)
        self.captured, self.gates = captured, self.policy.name
        self.decompositions = Kept(DECOMPOSITIONS, DECOMPOSITION_BYTES)
        self.max_memory = default_memory(x.device) if max_memory is None else max_memory
        survive_fork()
        self._snapshot = Snapshot(captured.program, captured.model)  # before anything is read
        if torch.is_inference_mode_enabled():
            values = None  # they were made where autograd, which generic nodes need, can never see them
        with full_precision(x.device):
            # A copy: the values at x may be computed again when the caller has changed x.
            self.input = plain(x).clone()
            values = captured.program.run(self.input) if values is None else values
            dtype = widest(captured.program, values)
            self._dtype = torch.promote_types(x.dtype, torch.float32)  # of operators
            self.backend = choose(backend, x.device, dtype)
            size = sum(values[i].nbytes for i in captured.program.active if isinstance(values[i], Tensor))
            self._kept = values if size <= KEPT_VALUES else None
            nodes = linear_nodes(captured, values, self.policy, dtype, offsets=self._kept is not None)
            if backend == "auto" and any(node.narrow is not None for node in nodes.values()):
                self.backend = "reference"  # a plan would keep the weights in full
            shapes = {i: values[i].shape for i in (*nodes, captured.program.input)}
            self.graph = Graph(nodes, shapes, captured.program.input, dtype, x.device)
            self._backend = make(self.backend, self.graph, PLAN_FROM if backend == "auto" else 0, self.max_memory)
            self._dtypes = {i: values[i].dtype for i in shapes}
        captured.check_output(values)
        self.output: Tensor = values[captured.program.output].detach()
        self._decisions = regions.decisions(captured.program, values)
        # J's path holds every other operator's.
        needed = 0 if max_memory is None else self.jacobian.product_bytes
        if self.max_memory < needed:
            raise ValueError(f"max_memory is {self.max_memory:,} bytes, but one product with one vector needs "
                             f"{needed:,} ({needed / 2**20:.1f} MiB); give at least that")
        verify = captured.verify if verify is None else verify
        self.agreement_details = self._certify() if verify else None

    @property
    def plan_from(self) -> int:
        """Columns from which products run a plan; fewer run on the reference, as a plan costs more than they do."""
        return self._backend.plan_from

    @property
    def layers(self) -> list[str]:
        """Layer names in execution order."""
        return self.captured.layers

    @property
    def model_name(self) -> str:
        """The model's class, by name."""
        return self.captured.model_name

    @once
    def jacobian(self) -> LocalOperator:
        """J (m, n) over flattened inputs and outputs."""
        program = self.captured.program
        return self.operator([program.input], [program.output])

    @property
    def bias(self) -> Tensor:
        """The bias b = f(x) − J x, of the output's shape.  Eq. (9), left."""
        self.ensure_current()
        return self._bias

    @once
    def _bias(self) -> Tensor:
        flat = self.input.flatten().to(self.jacobian.dtype)
        return self.output - self.jacobian.matvec(flat).reshape(self.output.shape)

    @property
    def exactness(self) -> float:
        """‖f(x) − (J x + Σ_l β_l)‖ / ‖f(x)‖: the two independent ways to b against each other.

        Outputs that are infinite, masked logits, are left out: they are no affine function of x.
        """
        self.ensure_current()
        return self._exactness

    @property
    def agreement(self) -> float | None:
        """How far J is from the model's own derivative at x, relative: the larger of J v and Jᵀu for random v and u.

        None where it was not measured (`verify=False`).  `agreement_details` has both, the tolerance and the witness.
        """
        return None if self.agreement_details is None else float(self.agreement_details)

    @once
    def _exactness(self) -> float:
        return float(self.exactness_of(1))

    def exactness_of(self, inputs: int) -> Tensor:
        """`exactness` for each of so many inputs that x holds one after the other, (inputs,) float64 on the CPU."""
        every = [index for ids in self.offset_layers.values() for index in ids]
        total = self._from_offsets([every]).reshape(self.output.shape) if every else 0
        finite = torch.isfinite(self.output)
        error, scale = (torch.where(finite, value, 0).double().reshape(inputs, -1).norm(dim=1).cpu()
                        for value in (self._bias - total, self.output))
        return torch.where(scale > 0, error / scale, error)

    def ensure_current(self) -> None:
        """Raise StaleError, naming it, where a weight is not what it was when this Local was made.

        Everything is read.  Each product looks at versions, addresses, small weights and samples of large ones, too.
        """
        self._snapshot.check(full=True)

    def checked(self) -> AbstractContextManager[None]:
        """In a `with` statement: the weights are read before and after the block, not again by each call inside."""
        return self._snapshot.checked()

    def bias_contributions(self, target=None) -> dict[str, Tensor] | dict[str, float]:
        """β_l of every layer with a bias, shift or smooth-gate offset of its own.  Eq. (9), right.

        target   None for tensors in the output's shape; else as for `specxai.explain`, for numbers
        """
        self.ensure_current()
        names, output = self.offset_layers, self.captured.program.output
        if target is None:
            parts = self._from_offsets(list(names.values())) if names else []
            return {name: part.reshape(self.output.shape) for name, part in zip(names, parts, strict=True)}
        weights, _ = resolve_target(target, self.output)
        found = weighed(self.graph, output, names, self.offsets, plain(weights))
        return {name: float(part) for name, part in found.items()}

    def split(self, layer: str | nn.Module) -> Split:
        """J = L·R + bypass at a layer, given by name or as the module object.  Eq. (16).

        Raises LayerError (a ValueError) with near misses for a name that is not a layer.
        """
        name, step = self.captured.program.layer(layer)
        program = self.captured.program
        around = bool(self.graph.between([program.input], [program.output], [step]))
        if around and step not in (program.input, program.output):
            bypass = self.operator([program.input], [program.output], held=[step])
        else:
            bypass = ZeroOperator(self.input.shape, self.output.shape, self._dtype, self.input.device)
        return Split(name, self.operator([program.input], [step]), self.operator([step], [program.output]), bypass,
                     self.graph.shapes[step], lambda: self._values()[step].detach())

    def operator(self, source: End = None, target: End = None, held: Sequence[End] = (), *,
                 source_positions: Positions = None, target_positions: Positions = None,
                 taps: Sequence[End] = ()) -> LocalOperator:
        """The linear map from one layer's output to another's, at some positions of their token axis or at all.

        source, target   a layer's name or the module object, None for the input and for the output.  Of a layer that
                         returns several tensors, the first.  Steps of the program, or lists of them, also do
        held             layers whose value is kept at zero
        taps             layers between whose cotangents the operator's `pull_back` passes on
        *_positions      of a value (1, T, d): an index, negative ones from the end, a slice, several indices, "sum" for
                         the sum over all positions or `specxai.summed(indices)` over some.  The operator's side is then
                         (P, d), (d,) of one index or a sum: `input_shape`, `output_shape`

        Raises LayerError for a name that is not a layer, and where nothing leads from the source to the target;
        TypeError or ValueError for positions that the layer does not have.

        >>> import torch, specxai
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 4)).eval()
        >>> local = specxai.linearize(net, torch.ones(1, 5, 2))
        >>> op = local.operator("0", "2", source_positions=slice(1, 3), target_positions=-1)
        >>> op.shape, op.input_shape, op.output_shape
        ((4, 6), torch.Size([2, 3]), torch.Size([4]))
        """
        return between(self._backend, self.captured.program, (source, source_positions), (target, target_positions),
                       held, taps, dtype=self._dtype, max_memory=self.max_memory, snapshot=self._snapshot)

    def run_tail(self, layer: str | nn.Module, value: Tensor) -> Tensor:
        """The real network's output, gates and all, when the layer's output is `value` instead.

        Everything that does not pass through the layer is as at x.  `value` has the layer's shape, or is flat.

        Raises LayerError for a name that is not a layer, ValueError for a value of another size.
        """
        _, step = self.captured.program.layer(layer)
        own = self.graph.shapes[step]
        if value.numel() != own.numel():
            raise ValueError(f"value has shape {tuple(value.shape)}; the layer's output is {tuple(own)}")
        with self.checked(), torch.inference_mode(False), torch.no_grad():
            replaced = {step: plain(value).reshape(own).to(self.output.device, self._dtypes[step])}
            return self.captured.program.run(self.input, replaced)[self.captured.program.output]

    def same_region(self, x2: Tensor) -> bool:
        """Are all gates at x2, of x's shape, as at x, so that the same affine map holds?  Errors as of
        `differing_gates`.
        """
        return not self.differing_gates(x2)

    def differing_gates(self, x2: Tensor) -> dict[str, Tensor]:
        """{layer: flat indices of the gates that differ at x2, of x's shape}; empty in the same region.

        Raises ValueError where a gate is smooth or has no rule: then there are no regions.
        """
        self.ensure_current()
        other = self._by_reference(self.captured, x2, verify=False)
        return regions.differing(self.named_gates(), other.named_gates())

    def first_flip(self, direction: Tensor) -> regions.Flip:
        """Smallest t > 0 at which x + t·direction meets a gate: exact, as the map is affine until then.

        The result is a float that knows its `layer` and `unit`: inf where no gate is ever met, 0 where x lies on one,
        as in a max-pool over a constant background, whose ties a step breaks.  `direction` has x's shape, or is flat.

        Raises ValueError for a direction that is zero or not finite, and where a gate's crossing is not known.
        """
        self.ensure_current()
        with full_precision(self.input.device):
            return regions.first_flip(self.graph, self.named_gates(), plain(direction), self.input, self._values())

    def named_gates(self) -> list[tuple[str, Gate]]:
        """(layer, gate) of every non-linearity, product of values, stopped gradient and comparison."""
        steps = self.captured.program.steps
        gates = [(steps[i].layer, node.gate) for i, node in self.graph.nodes.items() if node.gate is not None]
        curved = [(steps[i].layer, Gate(i, None, None)) for i, node in self.graph.nodes.items() if node.curved]
        return gates + curved + self._decisions

    @property
    def generic_nodes(self) -> list[str]:
        """Ops that no rule covers, as 'layer: op (file:line)'."""
        steps = self.captured.program.steps
        return [f"{steps[i].layer}: {node.generic}" + (f" ({steps[i].source})" if steps[i].source else "")
                for i, node in self.graph.nodes.items() if node.generic]

    def report(self) -> str:
        """What was captured and how it runs, in a few lines of text."""
        return report(self)

    def __repr__(self) -> str:
        return (f"Local({self.model_name}, {tuple(self.input.shape)} -> {tuple(self.output.shape)}, "
                f"gates={self.gates!r}, backend={self.backend!r}, {len(self.layers)} layers)")

    def __reduce__(self):
        raise TypeError("a Local cannot be pickled: it runs on the model's tensors in this process; send the model and "
                        "x, and call specxai.linearize(model, x) there")

    def __copy__(self) -> Local:
        return self

    def __deepcopy__(self, memo: dict) -> Local:
        return self

    def _certify(self) -> Agreement | None:
        """The agreement with the model that was captured, None where that is no longer at hand."""
        if self.captured.model is None:
            return None

        def nearby(x: Tensor) -> Graph:
            return Local(self.captured, x, gates=self.policy, backend="reference", verify=False).graph

        def in_double() -> tuple[LinearOperator, float] | None:
            try:
                twin = self.captured.in_double(self.input)
                local = self._by_reference(twin, self.input.double(), verify=True)
            except (CaptureError, ValueError):
                return None
            return local.jacobian, local.agreement

        def frozen(x: Tensor) -> Pullback:
            return frozen_pull_back(self.captured.program, self.policy, x, cotangent)

        return certify(self.captured, self.graph, self.input, self.output, self._dtypes, nearby, in_double,
                       None if self.gates == "tangent" else frozen)

    def _by_reference(self, recording: Recording, x: Tensor, verify: bool) -> Local:
        """With the same gates, at an input where the recording may not hold."""
        holds, values = recording.at(x)
        return Local(holds, x, gates=self.policy, backend="reference", values=values, verify=verify)

    def _values(self) -> list:
        """Every step's value at x."""
        if self._kept is not None:
            return self._kept
        with self.checked(), torch.inference_mode(False), torch.no_grad():
            return self.captured.program.run(self.input)

    @once
    def offsets(self) -> dict[int, Tensor]:
        """{step: its node's offset, of the step's shape}; made again with the values where those are not kept."""
        nodes = self.graph.nodes
        if self._kept is None and any(map(offset_is_large, nodes.values())):
            with full_precision(self.input.device):
                nodes = linear_nodes(self.captured, self._values(), self.policy, self.graph.dtype)
        return {index: node.offset for index, node in nodes.items() if node.offset is not None}

    @once
    def offset_layers(self) -> dict[str, list[int]]:
        """{layer: its steps that have an offset on a path to the output}."""
        return offset_layers(self.graph, self.captured.program, self.offsets)

    def _from_offsets(self, rows: list[list[int]]) -> Tensor:
        """Offsets of each row of steps, added up and carried to the output: (rows, m)."""
        width = max(1, self.max_memory // self.jacobian.reference.product_bytes(1))
        return pushed(self.graph, self.captured.program.output, rows, self.offsets, width)
