"""The fully connected ReLU autoencoder of the paper's section 2.3, with or without biases."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from specxai.experiments.squares.data import SIZE

WIDTHS = (256, 64, 32, 8)  # hidden layers down to the bottleneck; the decoder mirrors them


class SquaresNet(nn.Module):
    """Images (N, size, size) to images: size² → 256 → 64 → 32 → 8 → 32 → 64 → 256 → size².

    Every layer but the last is followed by a ReLU, the bottleneck too; the output is linear, so that no gate hides
    what the last layer's bias adds.  The paper gives the bottleneck's width and the kind of layers, no other width.
    How much of the output the biases carry differs from training to training (see docs/paper.md, three seeds): the
    paper's "bulk" is one of several solutions.

    >>> import torch
    >>> SquaresNet(bias=False)(torch.zeros(2, 64, 64)).shape
    torch.Size([2, 64, 64])
    """

    def __init__(self, bias: bool, size: int = SIZE, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        down = (size * size, *widths)
        self.size = size
        self.encoder = _layers(down, bias, last_relu=True)
        self.decoder = _layers(down[::-1], bias, last_relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x.flatten(1))).unflatten(1, (self.size, self.size))


def _layers(widths: tuple[int, ...], bias: bool, last_relu: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs, bias=bias), nn.ReLU()]
    return nn.Sequential(*(layers if last_relu else layers[:-1]))
