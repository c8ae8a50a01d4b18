"""Train the small GPT that ships with the library on what Python says of itself.

Examples:
    python examples/train_gpt.py
    python examples/train_gpt.py --steps 200 --out gpt.safetensors
"""

from __future__ import annotations

import json
import platform
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from specxai._files import replacing
from specxai.zoo.gpt import BLOCKS, CHECKPOINT, CONTEXT, GPT, HEADS, MERGES, WIDTH, texts
from specxai.zoo.words import Words


@torch.no_grad()
def held_out_loss(net: GPT, numbers: Tensor, windows: int = 64) -> float:
    """Nats a piece over windows of the held-out text, evenly spaced."""
    starts = torch.linspace(0, len(numbers) - CONTEXT - 2, windows).long()
    ids = torch.stack([numbers[start:start + CONTEXT + 1] for start in starts])
    return F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).item()


def train(out: Path = CHECKPOINT, steps: int = 600, batch: int = 16, seed: int = 0, rate: float = 3e-3) -> None:
    """Train the GPT and write its checkpoint, in half precision.

    Args:
        out: where the safetensors file goes.
        steps: of the optimiser.
        batch: windows of 128 pieces a step.
        seed: of the weights and the windows.
        rate: the largest step size.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    trained, held = ("\n\n".join(part) for part in texts())
    words = Words.learned(trained, MERGES)
    numbers, others = (torch.tensor(words.encode(text)) for text in (trained, held))
    print(f"{len(numbers):,} pieces to train on, {len(others):,} held out, {words.size} kinds")
    net = GPT()
    decayed = [p for p in net.parameters() if p.ndim == 2]
    rest = [p for p in net.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
                                  lr=rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1,
                                                   cycle_momentum=False)
    with tqdm(total=steps, unit="step", mininterval=5) as bar:
        for step in range(steps):
            starts = torch.randint(len(numbers) - CONTEXT, (batch,), generator=generator)
            ids = torch.stack([numbers[start:start + CONTEXT + 1] for start in starts])
            loss = F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            bar.update()
            if step % 100 == 99:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    net.eval().half().float()  # as it will be loaded
    found = held_out_loss(net, others)
    info = {"merges": words.merges, "vocabulary": words.size, "width": WIDTH, "heads": HEADS, "blocks": BLOCKS,
            "context": CONTEXT, "held_out_loss": found, "seed": seed, "steps": steps, "batch": batch,
            "torch": torch.__version__, "python": platform.python_version()}
    state = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    with replacing(out) as draft:
        draft.write_bytes(save(state, {"specxai": json.dumps(info)}))
    print(f"held-out loss {found:.3f} nats a piece; {out} {out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    tyro.cli(train)
