"""Decoders of a billion parameters with random weights: the lens of one prompt, and every token's detached Jacobian."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from timing import Clock

import specxai
from specxai._vision import import_vision

sys.path.insert(1, str(Path(__file__).parents[1]))  # the benchmarks of the CPU, whose peers these are

SHAPE = {"d": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "hidden": 8192}
TINY = {"d": 16, "layers": 2, "heads": 2, "kv_heads": 1, "hidden": 24}
SKIP = 16  # first positions that do not count in a lens


def rows(clock: Clock, dry: bool) -> Iterator[dict]:
    for ask, case in ((_lens, "Llama 1 B, bfloat16, 128 tokens"), (_tokens, "Llama 1 B, 427 tokens, top 8 of each")):
        if clock.left < 0:
            yield {"case": case, "question": "all", "peer": "all", "left_out": "no time was left"}
            continue
        try:
            yield from ask(clock, dry, case)
        except (ImportError, torch.cuda.OutOfMemoryError) as error:
            yield {"case": case, "question": "all", "peer": "all", "left_out": str(error).splitlines()[0]}


def _lens(clock: Clock, dry: bool, case: str) -> Iterator[dict]:
    """Some of a prompt's rows, all layers; the linearisation is timed apart from the rows."""
    import_vision("torchvision")  # before transformers asks for it
    import transformers
    from lens import Loop, Ours, all_rows

    from specxai.lens.decoder import Decoder
    from specxai.lens.linear import Linearizer

    shape, tokens, asked, batches = (TINY, SKIP + 8, 4, (2, 4)) if dry else (SHAPE, 128, 256, (16, 32, 64))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=shape["d"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], intermediate_size=shape["hidden"], vocab_size=1000)
    dtype = torch.float32 if dry else torch.bfloat16
    with torch.device(clock.device):
        model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False).to(dtype)
        ids = torch.randint(1000, (1, tokens))
    decoder = Decoder(model)
    layers = list(range(shape["layers"] - 1))
    weights = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.ndim == 2)
    gflop = 2 * weights * tokens * asked / 1e9
    best = None
    for batch in batches:
        loop = Loop(decoder, ids, batch, SKIP)
        told = clock.of(lambda loop=loop: all_rows(loop, 0, asked), 1.0, most=3)
        if best is None or told["seconds"] < best[1]["seconds"]:
            best = (f"reference loop, dim_batch {batch}", told, torch.cat(all_rows(loop, 0, asked), 1).double())
        del loop
    peer, told, want = best
    question = f"{asked} rows of the lens"
    yield {"case": case, "question": question, "peer": peer, "error": 0.0, "gflop": gflop, **told}
    found = Linearizer(decoder, layers, SKIP).at(ids)
    for name, rough in (("specxai.lens", False), ("specxai.lens, rough", True)):
        ours = Ours(found, rough)
        got = torch.cat(all_rows(ours, 0, asked), 1).double()
        told = clock.of(lambda ours=ours: all_rows(ours, 0, asked), 1.0, most=3)
        # The largest difference of a layer from the loop's rows, which are rounded as the model is.
        error = float(((got - want).flatten(1).norm(dim=1) / want.flatten(1).norm(dim=1)).max())
        yield {"case": case, "question": question, "peer": name, "error": error, "gflop": gflop, **told}
    told = clock.of(lambda: Linearizer(decoder, layers, SKIP).at(ids), 0.5, most=3)
    yield {"case": case, "question": "linearisation of the prompt", "peer": "specxai.lens", "error": 0.0, **told}


def _tokens(clock: Clock, dry: bool, case: str) -> Iterator[dict]:
    """Linearisation included; its error is the worst certified residual, relative to σ₁."""
    from llama import Llama

    shape, tokens, rank = (TINY, 5, 2) if dry else (SHAPE, 427, 8)
    torch.manual_seed(0)
    with torch.device(clock.device):
        model = Llama(*(shape[name] for name in ("d", "layers", "heads", "kv_heads", "hidden"))).eval()
        x = torch.randn(1, tokens, shape["d"])
    for backend in ("cuda", "auto"):
        found = []

        def work(backend: str = backend, found: list = found):
            local = specxai.linearize(model, x, gates="frozen", backend=backend)
            found[:] = [specxai.tokens(local, rank=rank, tol=1e-3, progress=False)]

        told = clock.of(work, 0.0, most=1, warm=False)  # one run, in which kernels are compiled too
        yield {"case": case, "question": "detached Jacobian of the last position", "peer": f"specxai {backend}",
               "error": float(found[0].worst_residual), "products": found[0].products, **told}
