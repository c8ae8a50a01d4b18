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
LARGER = {
    "4 B": {"d": 2560, "layers": 36, "heads": 32, "kv_heads": 8, "hidden": 9728, "head": 128},
    "27 B": {"d": 5376, "layers": 62, "heads": 32, "kv_heads": 16, "hidden": 21504, "head": 128},
}  # shapes of Qwen 3 and Gemma 3
SKIP = 16  # first positions that do not count in a lens


def rows(clock: Clock, dry: bool, roof: dict[str, float]) -> Iterator[dict]:
    for ask, case in ((_lens, "Llama 1 B, bfloat16, 128 tokens"), (_tokens, "Llama 1 B, 427 tokens, top 8 of each")):
        if clock.left < 0:
            yield {"case": case, "question": "all", "peer": "all", "left_out": "no time was left"}
            continue
        try:
            yield from ask(clock, dry, case, roof)
        except (ImportError, torch.cuda.OutOfMemoryError) as error:
            yield {"case": case, "question": "all", "peer": "all", "left_out": str(error).splitlines()[0]}


def _lens(clock: Clock, dry: bool, case: str, roof: dict[str, float]) -> Iterator[dict]:
    """A prompt's lens, all rows and layers, linearisation included; the loop's best width is found with some rows."""
    import_vision("torchvision")  # before transformers asks for it
    import transformers
    from lens import Loop, all_rows

    from specxai.lens.decoder import Decoder
    from specxai.lens.linear import Linearizer

    shape, tokens, asked, batches = (TINY, SKIP + 8, 4, (2, 4)) if dry else (SHAPE, 128, 256, (16, 32, 64))
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=shape["d"], num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], intermediate_size=shape["hidden"], vocab_size=1000)
    with torch.device(clock.device):
        model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False).bfloat16()
        ids = torch.randint(1000, (1, tokens))
    decoder, d = Decoder(model), shape["d"]
    weights = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and p.ndim == 2)

    def row(question: str, peer: str, told: dict, error: float, rows: int) -> dict:
        """Operations are the loop's: two a weight, token and row."""
        gflop = 2 * weights * tokens * rows / 1e9
        return {"case": case, "question": question, "peer": peer, "error": error, "gflop": gflop, "roof": "bf16",
                "of_roof": 1e9 * gflop / told["seconds"] / roof["bf16"], **told}

    times = {}
    for batch in batches:
        loop = Loop(decoder, ids, batch, SKIP)
        times[batch] = clock.of(lambda loop=loop: all_rows(loop, 0, asked), 0.5, most=3)
        yield row(f"{asked} rows of the lens", f"reference loop, dim_batch {batch}", times[batch], 0.0, asked)
        del loop
    batch = min(times, key=lambda batch: times[batch]["seconds"])
    question, want, backend = "lens of a prompt", {}, "reference" if dry else "auto"  # what auto is on a card

    def looped() -> None:
        loop = Loop(decoder, ids, batch, SKIP)  # its forward pass is in its time, as ours in ours
        want["rows"] = torch.cat(all_rows(loop, 0, d), 1).float()

    told = clock.of(looped, 0.0, most=1, warm=False)
    yield row(question, f"reference loop, dim_batch {batch}", told, 0.0, d)
    for products in ("auto", "full") if dry else ("auto",):
        def fitted(prompts: int = 1, products: str = products):
            return specxai.lens.fit(model, [ids] * prompts, skip_first=SKIP, products=products, progress=False,
                                    backend=backend)

        found = fitted()  # kernels are compiled
        got = torch.stack([found.J[layer] for layer in sorted(found.J)]).to(want["rows"])
        # The largest difference of a layer from the loop's rows, which are rounded as the model is.
        error = float(((got - want["rows"]).flatten(1).norm(dim=1) / want["rows"].flatten(1).norm(dim=1)).max())
        told = clock.of(fitted, 1.0, most=3, warm=False)
        measured = {"rough_error": found.metadata.get("rough_error")}
        yield row(question, f"specxai.lens, {products}, the first prompt of a fit", told, error, d) | measured
        # Of a length that has been captured, whose error is not measured again.
        further = clock.of(lambda: fitted(3), 0.0, most=1, warm=False)
        further["seconds"] = (further["seconds"] - told["seconds"]) / 2
        yield row(question, f"specxai.lens, {products}, a further prompt", further, error, d) | measured
    make = Linearizer(decoder, list(range(shape["layers"] - 1)), SKIP)
    make.at(ids)
    told = clock.of(lambda: make.at(ids.roll(1, 1)), 0.5, most=3)
    yield {"case": case, "question": "linearisation of a further prompt", "peer": "specxai.lens", "error": 0.0, **told}


def _tokens(clock: Clock, dry: bool, case: str, roof: dict[str, float]) -> Iterator[dict]:
    """Linearisation included; its error is the worst certified residual, relative to σ₁.  Larger models are projected:
    as many operations more, at the rate that was measured.
    """
    from llama import Llama

    shape, tokens, rank = (TINY, 5, 2) if dry else (SHAPE, 427, 8)
    torch.manual_seed(0)
    with torch.device(clock.device):
        model = Llama(*(shape[name] for name in ("d", "layers", "heads", "kv_heads", "hidden"))).eval()
        x = torch.randn(1, tokens, shape["d"])
    for backend in ("cuda", "auto") if dry else ("cuda",):  # what auto is there takes float32 at a tenth of the rate
        found = []

        def work(backend: str = backend, found: list = found):
            local = specxai.linearize(model, x, gates="frozen", backend=backend)
            found[:] = [specxai.tokens(local, rank=rank, tol=1e-3, progress=False)]

        told = clock.of(work, 0.0, most=1, warm=False)  # one run, in which kernels are compiled too
        gflop = found[0].products * local_gflop(shape, tokens)
        yield {"case": case, "question": "detached Jacobian of the last position", "peer": f"specxai {backend}",
               "error": float(found[0].worst_residual), "products": found[0].products, "gflop": gflop, **told}
        for name, larger in LARGER.items():
            times = local_gflop(larger, tokens) * larger["d"] / (local_gflop(shape, tokens) * shape["d"])
            yield {"case": f"{name}, projected from {case}", "question": "detached Jacobian of the last position",
                   "peer": f"specxai {backend}", "error": 0.0, "gflop": gflop * times,
                   "seconds": told["seconds"] * times, "iqr": 0.0, "runs": 0}


def local_gflop(shape: dict, tokens: int) -> float:
    """Of one product: two operations for every weight of the blocks and token, attention's own aside."""
    d, width = shape["d"], shape.get("head", shape["d"] // shape["heads"])
    block = 2 * d * width * (shape["heads"] + shape["kv_heads"]) + 3 * d * shape["hidden"]
    return 2 * shape["layers"] * block * tokens / 1e9
