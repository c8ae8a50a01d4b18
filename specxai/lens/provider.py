"""The backward step of another library's fit loop: TransformerLens' `BackwardProvider` protocol over our products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from specxai.backends.reference import pull
from specxai.lens.decoder import Decoder
from specxai.lens.linear import Linearised, Linearizer
from specxai.precision import full_precision
from specxai.rules.policy import Gates


class BackwardProvider:
    """`provider(target, sources, cotangent, retain_graph) -> gradients`, as `torch.autograd.grad` gives them.

    The loop runs the model on one prompt, replicated (k, T), and takes blocks' outputs (k, T, d) as target and sources;
    hooks of the provider see which they are and at which ids.  Gradients come from the linear map at that prompt, so
    that a policy of held factors, such as those of layer-wise relevance propagation, needs no changed model.

    Args:
        model: the model that the loop runs, in eval mode.
        stack: dotted name of its list of blocks; None: the one that `specxai.transformers.from_hf` finds.
        kwargs: further arguments of the model's forward.
        gates: the policy; "tangent" gives what autograd gives.
        max_memory: bytes that one block of columns may hold.

    `close()` removes the hooks; a `with` statement does so at its end.

    >>> import torch
    >>> from specxai.zoo.gpt import GPT
    >>> model, seen = GPT(vocabulary=9, width=8, heads=2, blocks=3, context=16).eval(), {}
    >>> for layer in (0, 2):
    ...     _ = model.blocks[layer].register_forward_hook(lambda m, i, out, layer=layer: seen.update({layer: out}))
    >>> with BackwardProvider(model) as provider:
    ...     _ = model(torch.arange(6).expand(4, -1))
    ...     provider(seen[2], [seen[0]], torch.ones(4, 6, 8), False)[0].shape
    torch.Size([4, 6, 8])
    """

    def __init__(self, model: nn.Module, stack: str | None = None, kwargs: Mapping[str, Any] | None = None,
                 gates: Gates = "tangent", max_memory: int | None = None) -> None:
        self._decoder = Decoder(model, stack, kwargs)
        self._options = {"gates": gates, "max_memory": max_memory}
        self._ids: Tensor | None = None
        self._seen: dict[int, int] = {}  # address of a block's output -> its number; a later one may take the place
        self._make: Linearizer | None = None  # of the last layers; its captures serve further prompts
        self._found: tuple[Tensor, list[int], Linearised] | None = None
        self._own = False
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self._handles += [block.register_forward_hook(self._end(number), prepend=True)
                          for number, block in enumerate(self._decoder.blocks)]

    def __call__(self, target: Tensor, sources: Sequence[Tensor], cotangent: Tensor, retain_graph: bool = True,
                 ) -> tuple[Tensor, ...]:
        """The cotangent (k, T, d) at the target, pulled back to every source, each (k, T, d).

        Raises ValueError for tensors that are no outputs of the last run's blocks, or where its prompts differ.
        """
        last, layers = self._number(target), [self._number(source) for source in sources]
        if last != len(self._decoder) - 1:
            raise ValueError(f"the target is block {last}, and a lens ends at the last one, {len(self._decoder) - 1}")
        found = self._linearised(sorted(set(layers)))
        steps = dict(zip(sorted(set(layers)), found.sources, strict=True))
        graph = found.local.graph
        taps: dict[int, list] = {step: [] for step in found.sources if step != graph.input}
        with full_precision(graph.device), found.local.checked():
            at_input = pull(graph, {found.target: cotangent[:, None]}, [graph.input], taps=taps)[0]
        if not retain_graph:
            self._found = None
        blocks = {step: at_input if step == graph.input else taps[step][0] for step in steps.values()}
        return tuple(blocks[steps[layer]][:, 0].to(source.dtype) for layer, source in zip(layers, sources, strict=True))

    def close(self) -> None:
        """Remove the hooks from the model."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> BackwardProvider:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, module: nn.Module, inputs: tuple, kwargs: dict) -> None:
        if not self._own:
            given = [*inputs, *kwargs.values()]
            whole = (torch.int64, torch.int32)
            self._ids = next((x for x in given if isinstance(x, Tensor) and x.dtype in whole), None)
            self._seen.clear()
            self._found = None

    def _end(self, number: int):
        def end(module: nn.Module, inputs: tuple, output: Any) -> None:
            if not self._own:
                self._seen |= {part.data_ptr(): number for part in (output if isinstance(output, tuple) else (output,))
                               if isinstance(part, Tensor)}

        return end

    def _number(self, tensor: Tensor) -> int:
        number = self._seen.get(tensor.data_ptr())
        if number is None:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is no output of {self._decoder.stack} in the "
                             "model's last run; give blocks' outputs, and run the model while the provider is open")
        return number

    def _linearised(self, layers: list[int]) -> Linearised:
        ids = self._ids
        if ids is None:
            raise ValueError("the model's last run was given no token ids (k, T), which the map belongs to: call it "
                             "with ids, not with a text or with embeddings")
        if ids.ndim != 2 or not torch.equal(ids, ids[:1].expand_as(ids)):
            raise ValueError("the model's last run was not of one replicated prompt of token ids (k, T): its rows "
                             "differ")
        if self._found is None or self._found[1] != layers:
            if self._make is None or self._make.layers != layers:
                self._make = Linearizer(self._decoder, layers, 0, **self._options)
            self._own = True
            try:
                found = self._make.at(ids[:1])
            finally:
                self._own = False
            self._found = ids, layers, found
        return self._found[2]
