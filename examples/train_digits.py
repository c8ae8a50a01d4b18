"""Train the digits net that ships with the library and write its checkpoint.

Examples:
    python examples/train_digits.py
    python examples/train_digits.py --epochs 5 --out digits.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from specxai.zoo.digits import CHECKPOINT, CLASSES, MEAN, SPLIT_SEED, STD, DigitsNet, accuracy, digits_data


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, 1, H, W) shifted by up to 2 pixels of 32, turned by up to 12°, scaled by up to 10 %.

    What comes in from outside repeats the border.
    """
    count = len(x)
    angle = (torch.rand(count, generator=generator) - 0.5) * (24 * torch.pi / 180)
    scale = 1 + (torch.rand(count, generator=generator) - 0.5) * 0.2
    shift = (torch.rand(count, 2, generator=generator) - 0.5) * (8 / x.shape[-1])
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    return F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=False), padding_mode="border",
                         align_corners=False)


def train(out: Path = CHECKPOINT, epochs: int = 25, batch: int = 64, seed: int = 0) -> None:
    """Train the digits net and write its checkpoint.

    Args:
        out: where the safetensors file goes.
        epochs: passes over the training images.
        batch: images a step.
        seed: of the weights, the order and the augmentation.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    data, held = digits_data()
    net = DigitsNet()
    steps = epochs * (len(data.y) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    with tqdm(total=steps, unit="step") as bar:
        for _ in range(epochs):
            net.train()
            order = torch.randperm(len(data.y), generator=generator)
            for rows in order.split(batch)[: len(data.y) // batch]:
                loss = F.cross_entropy(net(augment(data.x[rows], generator)), data.y[rows], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()
            bar.set_postfix(held_out=f"{accuracy(net.eval(), held):.4f}")
    reached = accuracy(net.eval(), held)
    info = {"classes": CLASSES, "mean": MEAN, "std": STD, "split_seed": SPLIT_SEED, "held_out": len(held.y),
            "held_out_accuracy": reached, "seed": seed, "epochs": epochs, "batch": batch,
            "torch": str(torch.__version__)}
    draft = out.with_name(out.name + ".part")
    draft.write_bytes(save(net.state_dict(), metadata={"specxai": json.dumps(info)}))
    draft.replace(out)  # a reader never sees half a file
    print(f"held-out accuracy {reached:.2%}, {out.stat().st_size / 1e6:.2f} MB, written to {out}")


if __name__ == "__main__":
    tyro.cli(train, description=__doc__)
