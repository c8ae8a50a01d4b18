"""Train the net of the shapes and write its checkpoint, in about ten minutes on one core.

Examples:
    python -m specxai.experiments.shapes.train
    python -m specxai.experiments.shapes.train --images 20000 --out shapes.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from safetensors.torch import save
from tqdm.auto import tqdm

from specxai._files import replacing
from specxai.experiments.descent import descend
from specxai.experiments.shapes.data import CLASSES, MEAN, STD, Shapes, shapes
from specxai.experiments.shapes.model import CHECKPOINT, HELD_OUT, HELD_OUT_SEED, ShapesNet
from specxai.zoo.vgg import accuracy


def train(out: Path = CHECKPOINT, images: int = 100_000, batch: int = 64, seed: int = 0,
          held_out: int = HELD_OUT) -> float:
    """Train on images that are each seen once, write the checkpoint and return the accuracy on held-out images.

    Args:
        out: where the safetensors file goes.
        images: how many to train on.
        batch: images a step.
        seed: of the weights and the images; the held-out images have a seed of their own.
        held_out: how many images to judge the net by.
    """
    if min(images, batch) < 1 or images < batch:
        raise ValueError(f"images={images} and batch={batch}: give at least one batch of at least one image")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ShapesNet()
        _fit(net, images // batch, batch, torch.Generator().manual_seed(seed))
    held = shapes(held_out, torch.Generator().manual_seed(HELD_OUT_SEED))
    reached = accuracy(net.eval(), held)
    info = {"classes": CLASSES, "mean": MEAN, "std": STD, "seed": seed, "images": images, "batch": batch,
            "held_out": held_out, "held_out_seed": HELD_OUT_SEED, "held_out_accuracy": reached,
            "torch": str(torch.__version__)}
    with replacing(out) as draft:
        draft.write_bytes(save(net.state_dict(), metadata={"specxai": json.dumps(info)}))
    print(f"held-out accuracy {reached:.2%}, {Path(out).stat().st_size / 1e6:.2f} MB, written to {out}")
    return reached


def _fit(net: ShapesNet, steps: int, batch: int, generator: torch.Generator) -> None:
    smoothed = None
    with tqdm(total=steps, unit="step", mininterval=5) as bar:
        def measure(data: Shapes) -> torch.Tensor:
            nonlocal smoothed
            logits = net(data.x)
            right = (logits.argmax(1) == data.y).double().mean().item()
            smoothed = right if smoothed is None else 0.98 * smoothed + 0.02 * right
            bar.update()
            if bar.n % 50 == 1:
                bar.set_postfix(accuracy=f"{smoothed:.3f}")
            return F.cross_entropy(logits, data.y, label_smoothing=0.05)

        net.train()
        groups = [{"params": list(net.parameters()), "lr": 6e-3, "weight_decay": 1e-2}]
        descend(groups, 1, steps, lambda: (shapes(batch, generator) for _ in range(steps)), measure, warm=0.3)


if __name__ == "__main__":
    tyro.cli(train, description=__doc__)
