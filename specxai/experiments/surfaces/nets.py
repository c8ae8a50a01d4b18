"""The nets of section 2.2: an autoencoder of shapes, a regressor on its latent space, and the two composed."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (128, 64)  # hidden layers of the encoder; the decoder mirrors them
LATENT = 16
HEAD = (64, 32)  # hidden layers of the regressor
# Layers of `Composed` that the figures look at: after the first gate, the latent space, before the last layer.
FIRST, MIDDLE, PENULTIMATE = "encoder.2", "encoder.5", "head.3"


class AutoEncoder(nn.Module):
    """Shapes (N, 3, V) to shapes: 3V → 128 → 64 → 16 → 64 → 128 → 3V, ReLU between, biases everywhere.

    The bottleneck and the output are linear.  The paper says "a simple autoencoder" and no more of its architecture.

    >>> import torch
    >>> AutoEncoder(10)(torch.zeros(2, 3, 10)).shape
    torch.Size([2, 3, 10])
    """

    def __init__(self, vertices: int, widths: tuple[int, ...] = WIDTHS, latent: int = LATENT) -> None:
        super().__init__()
        down = (3 * vertices, *widths, latent)
        self.encoder = nn.Sequential(nn.Flatten(), *layers(down))
        self.decoder = nn.Sequential(*layers(down[::-1]), nn.Unflatten(1, (3, vertices)))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


class Composed(nn.Module):
    """The quantity (N, 1) as a function of the vertices (N, 3, V): encoder → latent space → regressor."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def regressor(latent: int = LATENT, widths: tuple[int, ...] = HEAD) -> nn.Sequential:
    """From the latent space to one number."""
    return nn.Sequential(*layers((latent, *widths, 1)))


def layers(widths: tuple[int, ...]) -> list[nn.Module]:
    """Fully connected layers with biases, a ReLU between each two."""
    found: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        found += [nn.Linear(inputs, outputs), nn.ReLU()]
    return found[:-1]
