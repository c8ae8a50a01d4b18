"""Training of the squares autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specxai.experiments.descent import by_parameter, descend, shuffled
from specxai.experiments.squares.data import SIDE, SIZE
from specxai.experiments.squares.model import WIDTHS, SquaresNet

LEARNING_RATE = 2e-3
# Pixels that no square reaches never move their first-layer weights; decay takes that initial noise out of J.
# Biases are not decayed, as is usual.
WEIGHT_DECAY = 1e-2


@dataclass(frozen=True)
class Settings:
    """What a training is made of; `train` and `test` count images, `side` and `size` are in pixels.

    bias_rate   learning rate of biases over that of weights
    """

    epochs: int = 60
    seed: int = 0
    train: int = 2000
    test: int = 200
    batch: int = 100
    size: int = SIZE
    side: float = SIDE
    widths: tuple[int, ...] = WIDTHS
    bias_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("epochs", "train", "test", "batch", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch > self.train:
            raise ValueError(f"a batch of {self.batch} is larger than the {self.train} training images")


def train(images: Tensor, test: Tensor, bias: bool, settings: Settings,
          progress: Callable[[int], object] = lambda epochs: None) -> dict:
    """Fit an autoencoder to images (N, size, size) by AdamW on the mean squared error.

    Returns {"state": state dict, "losses": mean squared error per pixel on train in every epoch, "test_loss": on test
    at the end, "variance": of the test pixels, to judge it by}.  progress is called with 1 after each epoch.  Same
    seed, same machine and thread count: same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = SquaresNet(bias, settings.size, settings.widths)
    biases = {p: settings.bias_rate for p in net.parameters() if p.ndim == 1}
    losses = descend(by_parameter(net, LEARNING_RATE, WEIGHT_DECAY, biases), settings.epochs,
                     -(-len(images) // settings.batch),
                     shuffled(len(images), settings.batch, torch.Generator().manual_seed(settings.seed)),
                     lambda rows: F.mse_loss(net(images[rows]), images[rows]), progress)
    with torch.no_grad():
        return {"state": net.state_dict(), "losses": losses, "test_loss": F.mse_loss(net(test), test).item(),
                "variance": test.var(0).mean().item()}


def trained(result: dict, bias: bool, settings: Settings) -> SquaresNet:
    """The autoencoder of a result of `train`, in eval mode."""
    net = SquaresNet(bias, settings.size, settings.widths)
    net.load_state_dict(result["state"])
    return net.eval()
