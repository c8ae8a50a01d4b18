"""The truncated lens of one layer against its exact fit: `python benchmarks/lens_rank.py --blocks 4 --tokens 64`.

The model has GPT-2-small's width and weights of decaying spectra, so that J_l − a I decays as those of trained models
do; `--decay` is the number of singular values after which a weight's have fallen to 1/e.
"""

from __future__ import annotations

import argparse
import time

import torch
from lens import Loop, row_seconds
from torch import Tensor

import specxai
from specxai.lens.decoder import Decoder
from specxai.zoo.gpt import GPT

VOCABULARY = 5000


def decaying(weight: Tensor, decay: float) -> Tensor:
    """A weight with the same Frobenius norm and singular values exp(−k / decay)."""
    U, S, Vt = torch.linalg.svd(weight, full_matrices=False)
    wanted = torch.exp(-torch.arange(len(S)) / decay)
    return U * (wanted * S.norm() / wanted.norm()) @ Vt


def model_of(width: int, blocks: int, context: int, decay: float) -> GPT:
    torch.manual_seed(0)
    model = GPT(VOCABULARY, width, width // 64, blocks, context).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim == 2 and name.startswith("blocks"):
            weight.copy_(3 * decaying(weight, decay))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 768), ("blocks", 4), ("tokens", 64), ("prompts", 1), ("layer", 0), ("rank", 64),
                          ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--decay", type=float, default=32.0)
    parser.add_argument("--tol", type=float, default=1e-3)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    model = model_of(asked.width, asked.blocks, asked.tokens, asked.decay)
    prompts = [torch.randint(VOCABULARY, (1, asked.tokens)) for _ in range(asked.prompts)]
    given = {"layers": [asked.layer], "skip_first": min(16, asked.tokens // 4), "max_length": asked.tokens}
    start = time.perf_counter()
    exact = specxai.lens.fit(model, prompts, **given)
    middle = time.perf_counter()
    low = specxai.lens.fit(model, prompts, **given, rank=asked.rank, tol=asked.tol)
    end = time.perf_counter()
    found = low.factors[asked.layer]
    R = exact.J[asked.layer].double() - found.scale * torch.eye(asked.width, dtype=torch.float64)
    true = torch.linalg.svdvals(R)
    effective = float(true.sum() ** 2 / true.square().sum())
    print(f"effective rank (Σσ)²/Σσ² {effective:.0f} of {asked.width}; σ_{asked.rank} / σ₁ "
          f"{float(true[asked.rank - 1] / true[0]):.3f}")
    whole, part = middle - start, end - middle
    decoder = Decoder(model)
    loop = len(prompts) * asked.width * min(
        row_seconds(Loop(decoder, prompts[0], batch, given["skip_first"])) for batch in (8, 16))
    print(f"exact {whole:.2f} s, rank {asked.rank} {part:.2f} s: {part / whole:.2f} of it; worst residual "
          f"{float((found.residuals / found.S[0]).max()):.1e} σ₁, largest distance of σ "
          f"{float((found.S.double() - true[:len(found.S)]).abs().max() / true[0]):.1e} σ₁")
    print(f"the reference's exact loop {loop:.2f} s, of which a few passes were timed: rank {asked.rank} takes "
          f"{part / loop:.2f} of it")


if __name__ == "__main__":
    main()
