"""Training of the squares autoencoders, and their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai._files import replacing
from specxai.experiments.squares.data import SIDE, SIZE
from specxai.experiments.squares.model import WIDTHS, SquaresNet

LEARNING_RATE = 2e-3
# Pixels that no square reaches never move their first-layer weights; decay takes that initial noise out of J.
# Biases are not decayed, as is usual.
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Settings:
    """What a run is made of; written beside its results."""

    epochs: int = 60
    seed: int = 0
    train: int = 2000
    test: int = 200
    batch: int = 100
    size: int = SIZE
    side: float = SIDE
    widths: tuple[int, ...] = WIDTHS

    def __post_init__(self) -> None:
        for name in ("epochs", "train", "test", "batch", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch > self.train:
            raise ValueError(f"a batch of {self.batch} is larger than the {self.train} training images")


@dataclass(frozen=True)
class Trained:
    """An autoencoder in eval mode, its mean squared error per pixel: every epoch on train, at the end on test."""

    net: SquaresNet
    losses: list[float]
    test_loss: float


def train(images: Tensor, test: Tensor, bias: bool, settings: Settings,
          progress: Callable[[int], object] = lambda epochs: None) -> Trained:
    """Fit an autoencoder to images (N, size, size) by AdamW on the mean squared error.

    progress is called with 1 after each epoch.  Same seed, same machine and thread count: same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = SquaresNet(bias, settings.size, settings.widths)
    order = torch.Generator().manual_seed(settings.seed)
    steps = settings.epochs * -(-len(images) // settings.batch)
    groups = [{"params": [p for p in net.parameters() if p.ndim == 2], "weight_decay": WEIGHT_DECAY},
              {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    losses = []
    with torch.enable_grad():
        for _ in range(settings.epochs):
            total = 0.0
            for rows in torch.randperm(len(images), generator=order).split(settings.batch):
                loss = F.mse_loss(net(images[rows]), images[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                total += loss.item() * len(rows)
            losses.append(total / len(images))
            progress(1)
    with torch.no_grad():
        return Trained(net.eval(), losses, F.mse_loss(net(test), test).item())


def save(trained: Trained, settings: Settings, path: Path) -> None:
    """Weights as safetensors, with settings and losses in the header."""
    from safetensors.torch import save as to_bytes

    info = {"settings": asdict(settings), "losses": trained.losses, "test_loss": trained.test_loss}
    with replacing(path) as draft:
        draft.write_bytes(to_bytes(trained.net.state_dict(), metadata={"specxai": json.dumps(info)}))


def load(path: Path, bias: bool, settings: Settings) -> Trained | None:
    """What `save` wrote; None where there is no file or it came of other settings."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        info = json.loads((file.metadata() or {}).get("specxai", "{}"))
    if info.get("settings") != json.loads(json.dumps(asdict(settings))):
        return None
    net = SquaresNet(bias, settings.size, settings.widths)
    net.load_state_dict(load_file(path))
    return Trained(net.eval(), info["losses"], info["test_loss"])
