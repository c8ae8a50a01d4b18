"""Fitting a lens: prompt by prompt, all layers in one sweep, with a checkpoint to go on from."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Never

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from specxai._blocks import as_integer, default_memory, require_memory
from specxai.lens.decoder import Decoder
from specxai.lens.factors import OnDemand
from specxai.lens.file import State, read_state, write_state
from specxai.lens.lens import Lens
from specxai.lens.linear import Linearised, Linearizer
from specxai.lens.lowrank import decompose
from specxai.lens.prompts import Prompt, ids_of
from specxai.lens.sweep import Rough, rough_of, rows_of, sweep
from specxai.precision import has_bfloat16
from specxai.rules.policy import Gates, Policy

PRODUCTS = ("auto", "full", "rough")
CHECKED_ROWS = 64  # that a rough fit by a plan is compared at: a block, as fewer are not rough
FEWER_ROWS = 8  # and one by whole values, where they take long in full


def fit(
    model: nn.Module,
    prompts: Iterable[Prompt],
    layers: Sequence[int] | None = None,
    skip_first: int = 16,
    max_length: int = 128,
    rank: int | None = None,
    *,
    tokenizer: Callable | None = None,
    stack: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
    gates: Gates = "tangent",
    products: str = "auto",
    backend: str = "auto",
    checkpoint: str | os.PathLike | None = None,
    every: int = 10,
    tol: float | None = None,
    max_memory: int | None = None,
    progress: bool | None = None,
    seed: int = 0,
    **unknown: Never,
) -> Lens:
    """The Jacobian lens J_l = E[∂h_L / ∂h_l] of a decoder, exactly as the reference estimates it.

    For a prompt of T tokens with V = {skip_first, …, T − 2}, row i is the mean over p in V of
    Σ_{p′ in V, p′ ≥ p} ∂h_L[p′, i] / ∂h_l[p, :], where h_l is block l's output and L the last block; then the mean over
    prompts.  One forward pass and d adjoint columns a prompt, for all layers together.

    Args:
        model: a raw decoder of `transformers`, or any module that takes token ids (1, T) and has a list of blocks; in
            eval mode.
        prompts: token ids (1, T), lists of them, or strings; any iterable, read one by one.  Those too short for a
            valid position are left out, with a warning.
        layers: source blocks, counted from 0, negative ones from the end; None for all below the last.
        skip_first: how many positions at the beginning do not count.
        max_length: longer prompts are cut.
        rank: with a rank k, the certified truncated SVD of J_l − a I, found by products with all prompts together and
            without J_l; pays for few layers and k ≪ d.  a is about the mean of J_l's diagonal.
        tokenizer: reads strings; called as those of `transformers` are, or a function that returns token ids, such as
            the `to_tokens` of TransformerLens.
        stack: dotted name of the list of blocks; None: the one that `specxai.transformers.from_hf` finds.
        kwargs: further arguments of the model's forward.
        gates: "tangent" is the lens; another policy (see `specxai.linearize`) makes it one of held factors.
        products: "full" is float32, or float64 for a model of that; "rough" multiplies in 16 bits, by the compiled
            kernels where they can and else in bfloat16: `metadata["rough_error"]` is its relative error, measured at a
            few rows of the first prompt.  "auto" is the model's own precision: rough for one in bfloat16, where the
            device multiplies such numbers, else full.
        backend: as for `specxai.linearize`.
        checkpoint: file to write every `every` prompts and at the end, and to go on from where it is there.
        tol: of the residuals with a rank, relative to the largest singular value (1e-3).
        max_memory: bytes that one block of columns may hold (default: as for `specxai.linearize`).
        progress: a bar; None: on terminals.
        seed: of the solver's probes.
        unknown: any other name is refused, with the nearest that there is.

    Raises LayerError for blocks or layers that are not there or pass on no residual stream (1, T, d), ValueError where
    no prompt is long enough and for options out of range, TypeError for embeddings in place of ids and for unknown
    arguments, FileError for a checkpoint of another fit, MemoryError where the sums do not fit.

    >>> import torch, specxai
    >>> from specxai.zoo.gpt import GPT
    >>> model = GPT(vocabulary=9, width=8, heads=2, blocks=3, context=16).eval()
    >>> specxai.lens.fit(model, [torch.arange(8)[None]], skip_first=2)
    Lens(layers 0, 1, d 8, 1 prompt)
    """
    _check_names(unknown)
    _check(skip_first, max_length, rank, every, max_memory)
    if products not in PRODUCTS or (rank is not None and products == "rough"):
        raise ValueError(f"products is {products!r}: choose auto, full or rough, and with a rank not rough")
    decoder = Decoder(model, stack, kwargs)
    chosen = decoder.layers(layers)
    make = Linearizer(decoder, chosen, skip_first, gates, max_memory, backend)
    metadata = {"model_class": type(model).__name__, "stack": decoder.stack, "target_layer": len(decoder) - 1,
                "skip_first": skip_first, "max_length": max_length, "gates": Policy.of(gates).name,
                "estimator": "jacobian_lens"}
    if products == "rough" or (products == "auto" and rank is None and _computes_in_bfloat16(decoder)):
        metadata["products"] = "rough"
    if metadata["gates"] != "tangent":
        metadata["estimator"] = f"jacobian_lens, {metadata['gates']} gates"
    fitted = _fit_rank if rank is not None else _fit_dense
    return fitted(make, _Prompts(prompts, tokenizer, skip_first, max_length, _device(model)), metadata, rank=rank,
                  checkpoint=checkpoint, every=every, tol=tol, max_memory=max_memory or default_memory(_device(model)),
                  progress=progress, seed=seed)


class _Prompts:
    """The prompts of a fit, once, as ids on the model's device."""

    def __init__(self, prompts: Iterable[Prompt], tokenizer: Callable | None, skip_first: int, max_length: int,
                 device: torch.device) -> None:
        if not isinstance(prompts, Iterable):
            raise TypeError(f"prompts is {prompts!r:.60}: give texts or token ids (1, T), in a list or any iterable")
        self.given, self.tokenizer, self.device = prompts, tokenizer, device
        self.skip_first, self.max_length = skip_first, max_length
        self.count = len(prompts) if isinstance(prompts, Sequence) and not isinstance(prompts, str) else None

    def after(self, start: int) -> Iterable[tuple[int, Tensor | None]]:
        for number, ids in ids_of(self.given, self.tokenizer, self.skip_first, self.max_length, start):
            yield number, ids if ids is None else ids.to(self.device)

    def none_left(self) -> ValueError:
        return ValueError(f"no prompt is long enough for a lens: with skip_first={self.skip_first} and max_length="
                          f"{self.max_length} a prompt needs {self.skip_first + 2} tokens; give longer ones, or a "
                          "smaller skip_first")


def _fit_dense(make: Linearizer, prompts: _Prompts, metadata: dict, *, checkpoint, every: int, progress: bool | None,
               **_: Any) -> Lens:
    state: State | None = None
    with tqdm(total=prompts.count, desc="lens", unit="prompt", disable=None if progress is None else not progress,
              leave=False) as bar:
        start = 0
        if checkpoint is not None and os.path.exists(checkpoint):
            state = _resumed(make, checkpoint, metadata)
            start = state.next_idx
            bar.update(start)
        for number, ids in prompts.after(start):
            if ids is not None:
                found = make.at(ids)
                if state is None:
                    state = _empty(make, found, metadata)
                if "products" not in metadata:
                    _add(state, make.layers, found, False, bar)
                elif "rough_error" in state.metadata:
                    _add(state, make.layers, found, rough_of(found)[0], bar)
                else:
                    state.metadata |= _add_measured(state, make.layers, found, bar)
                state.n_done += 1
            if state is not None:
                state.next_idx = number + 1
                if checkpoint is not None and state.n_done % every == 0 and ids is not None:
                    write_state(state, checkpoint)
            bar.update()
    if state is None or state.n_done == 0:
        raise prompts.none_left()
    if checkpoint is not None:
        write_state(state, checkpoint)
    J = {layer: (total / state.n_done).cpu() for layer, total in state.sums.items()}
    return Lens(J, state.n_done, next(iter(J.values())).shape[0], state.metadata, model=make.decoder)


def _fit_rank(make: Linearizer, prompts: _Prompts, metadata: dict, *, rank: int, tol: float | None, seed: int,
              max_memory: int, progress: bool | None, checkpoint, **_: Any) -> Lens:
    if checkpoint is not None:
        raise ValueError("checkpoint= is for a fit of whole matrices: products with a rank go through all prompts at "
                         "once, so leave one of the two out")
    ids = [prompt for _, prompt in prompts.after(0) if prompt is not None]
    if not ids:
        raise prompts.none_left()
    factors = decompose(make, ids, rank, tol, seed, max_memory, progress)
    width = next(iter(factors.values())).U.shape[0]
    return Lens(OnDemand(factors), len(ids), width, metadata, factors, model=make.decoder)


def _empty(make: Linearizer, found: Linearised, metadata: dict) -> State:
    """Zero sums, on the model's device if they take little there; MemoryError where they do not fit, with what the next
    prompt's matrices take beside them.
    """
    width, dtype, device = found.width, _kept_dtype(found), found.local.graph.device
    size = (len(make.layers) + 1) * width * width * dtype.itemsize
    device = device if 2 * size <= found.local.max_memory else torch.device("cpu")
    require_memory(size, device, f"the sums of {len(make.layers)} layers of {width} x {width}",
                   "fit fewer layers at a time")
    sums = {layer: torch.zeros(width, width, dtype=dtype, device=device) for layer in make.layers}
    return State(sums, 0, 0, metadata["target_layer"], metadata["skip_first"], metadata)


def _resumed(make: Linearizer, checkpoint, metadata: dict) -> State:
    parameter = next(make.decoder.model.parameters())
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    return read_state(checkpoint, make.layers, dtype, metadata)


def _add(state: State, layers: list[int], found: Linearised, rough: Rough, bar: tqdm) -> None:
    """The prompt's matrices onto the sums, part by part."""
    with found.local.checked():
        for number, start, part in rows_of(found, rough):
            total, stop = state.sums[layers[number]], start + len(part)
            total[start:stop] += part.to(total)
            bar.set_postfix(layer=layers[number], rows=f"{stop}/{found.width}")


def _add_measured(state: State, layers: list[int], found: Linearised, bar: tqdm) -> dict:
    """The same in rough products: what those are, and the largest relative error of a layer at a few rows that lie
    evenly.
    """
    rough, kind = rough_of(found)
    count = CHECKED_ROWS if rough is True else FEWER_ROWS
    places = torch.linspace(0, found.width - 1, min(count, found.width)).long()

    def at_places() -> torch.Tensor:
        return torch.stack([state.sums[layer][places] for layer in layers])

    before = at_places()
    _add(state, layers, found, rough, bar)
    eye = torch.eye(found.width, dtype=found.local.graph.dtype, device=found.local.graph.device)
    exact = sweep(found, eye[places]).to(before)
    gaps, sizes = (rows.norm(dim=(1, 2)) for rows in (at_places() - before - exact, exact))
    errors = torch.where(gaps > 0, gaps / sizes, 0)  # nothing may lead from a layer to the last
    return {"rough_kind": kind, "rough_error": float(errors.max())}


def _kept_dtype(found: Linearised) -> torch.dtype:
    return torch.float64 if found.local.input.dtype == torch.float64 else torch.float32


def _computes_in_bfloat16(decoder: Decoder) -> bool:
    """Is the first block's first weight of that dtype, and does its device multiply such numbers?"""
    weights = (p for p in decoder.blocks[0].parameters() if p.ndim > 1)
    found = next(weights, None)
    return found is not None and found.dtype is torch.bfloat16 and has_bfloat16(found.device)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _check_names(unknown: Mapping[str, Any]) -> None:
    for name in unknown:
        near = difflib.get_close_matches(name, inspect.signature(fit).parameters, n=1)
        raise TypeError(f"fit has no argument {name!r}: " + (f"did you mean {near[0]}?" if near else
                        f"one of the model's own forward goes into kwargs={{{name!r}: ...}}"))


def _check(skip_first: int, max_length: int, rank: int | None, every: int, max_memory: int | None) -> None:
    for name, value, least in (("skip_first", skip_first, 0), ("max_length", max_length, 2), ("every", every, 1),
                               ("rank", rank, 1), ("max_memory", max_memory, 1)):
        if value is not None and (as_integer(value) is None or value < least):
            raise ValueError(f"{name} must be a whole number, at least {least}; got {value!r}")
    if max_length < skip_first + 2:
        raise ValueError(f"max_length {max_length} leaves no valid position with skip_first {skip_first}: it must be "
                         f"at least {skip_first + 2}")
