"""Data to train, choose and test by, training, and accuracy of the nets on a set of shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specxai.experiments.descent import by_parameter, descend, shuffled
from specxai.experiments.surfaces.mesh import ShapeSet
from specxai.experiments.surfaces.nets import AutoEncoder, Composed, regressor

BATCH, HEAD_BATCH = 50, 100
RATE, HEAD_RATE = 2e-3, 4e-3
FAST = 20  # times the rate for the bias of the last layer, which has to become the mean shape
REST = 0.05  # gain of the last layer in directions in which the shapes do not vary
SAMPLE = 512  # training shapes that the preconditioner is found from
FLOOR = 3e-5  # variance, of the largest direction's, below which a direction of the data is left as it is
RESAMPLES, LEVEL = 2000, 0.95  # of the bootstrap
TEST_SEED = 2_000_003  # added to the seed for the test shapes: nothing was ever chosen by them


@dataclass(frozen=True)
class Settings:
    """How much data and training; `decay` of the weights, never of biases."""

    train: int = 8000
    validation: int = 500
    test: int = 500
    epochs: int = 20
    head_epochs: int = 40
    decay: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train < HEAD_BATCH or min(self.validation, self.test) < 10 or min(self.epochs, self.head_epochs) < 1:
            raise ValueError(f"{self}: at least {HEAD_BATCH} shapes to train on, 10 to choose by, 10 to test and 1 "
                             "epoch are needed")


@dataclass(frozen=True)
class Data:
    """Shapes as the nets read them: metres from `origin` (3,), divided by `scale`.

    x (N, 3, V), y (N,) the quantity in its own unit, rows (N, P) parameters: `train` shapes that weights are fitted to,
    then `validation` ones that settings are chosen by, then those of the test.
    """

    x: Tensor
    y: Tensor
    rows: Tensor
    train: int
    validation: int
    origin: Tensor
    scale: float

    @property
    def chosen_by(self) -> slice:
        return slice(self.train, self.train + self.validation)

    @property
    def test(self) -> slice:
        return slice(self.train + self.validation, None)

    def metres(self, x: Tensor) -> Tensor:
        """Vertices (..., 3, V) in metres, of what the nets read or write."""
        return x * self.scale + self.origin[:, None]


def dataset(shapes: ShapeSet, settings: Settings) -> Data:
    """Shapes drawn with the settings' seed, those of the test with one of their own.

    The origin is the middle of the mean training shape and the scale one number, so that the nets read coordinates,
    as the paper's do, and not deviations from a mean shape.
    """
    rows = torch.cat([
        shapes.draw(settings.train + settings.validation, torch.Generator().manual_seed(settings.seed)),
        shapes.draw(settings.test, torch.Generator().manual_seed((settings.seed + TEST_SEED) % 2**63))])
    vertices = shapes.build(rows)
    trained = vertices[:settings.train]
    origin = trained.mean((0, 2))
    if torch.equal(shapes.reflect(vertices[:1]), vertices[:1]):
        origin[1] = 0  # on the plane of symmetry, to the last digit
    scale = float((trained - origin[:, None]).square().mean().sqrt())
    x = ((vertices - origin[:, None]) / scale).float()
    return Data(x, shapes.quantity(rows).float(), rows, settings.train, settings.validation, origin.float(),
                scale)


@dataclass(frozen=True)
class Trained:
    """Nets in eval mode; the autoencoder's loss by epoch (`Preconditioner.loss`)."""

    autoencoder: AutoEncoder
    head: nn.Sequential
    losses: list[float]

    @property
    def composed(self) -> Composed:
        return Composed(self.autoencoder.encoder, self.head).eval()


def train(data: Data, settings: Settings, progress: Callable[[int], object] = lambda epochs: None) -> Trained:
    """The autoencoder on the training shapes, then the regressor on their latent codes, the encoder held fixed.

    The regressor answers in the quantity's own unit.  Same seed, machine and thread count: same weights.
    """
    x, y = data.x[:data.train], data.y[:data.train]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net, head = AutoEncoder(x.shape[2]), regressor()
    space = Preconditioner.of(x)
    first, last = net.encoder[1], net.decoder[-2]
    inputs = space.forward(x)
    losses = descend(by_parameter(net, RATE, settings.decay, {last.bias: FAST}), settings.epochs, -(-len(x) // BATCH),
                     shuffled(len(x), BATCH, torch.Generator().manual_seed(settings.seed)),
                     lambda rows: space.loss(space.output(net(inputs[rows]), last.bias), x[rows]), progress)
    space.fold(first, last)
    with torch.no_grad():
        codes = torch.cat([net.encoder(part) for part in x.split(200)])
    mean, spread = y.mean(), y.std()
    inner, width = codes.mean(0), codes.std()
    standard, wanted = (codes - inner) / width, ((y - mean) / spread)[:, None]
    descend(by_parameter(head, HEAD_RATE, settings.decay), settings.head_epochs, -(-len(x) // HEAD_BATCH),
            shuffled(len(x), HEAD_BATCH, torch.Generator().manual_seed(settings.seed)),
            lambda rows: F.mse_loss(head(standard[rows]), wanted[rows]), progress)
    _absorb(head, inner, float(width), float(mean), float(spread))
    return Trained(net.eval(), head.eval(), losses)


@dataclass(frozen=True)
class Preconditioner:
    """Coordinates in which a set of shapes varies as much in every direction in which it varies at all.

    Shapes differ from their mean by a few percent of their coordinates, and in a dozen directions whose variances lie
    three decimal places apart: gradient descent on the coordinates themselves learns the mean and the largest
    direction.  The first layer is therefore trained on T(x − mean), T = 1 + V (gain − 1) Vᵀ, and the last one as
    S W h + b, S = REST (1 − V Vᵀ) + V spread Vᵀ.  T and S are multiplied into the weights afterwards: the net reads and
    writes coordinates, and every net can be reached that could be before.  Likewise the loss is the squared error of
    coordinates plus that of whitened directions.

    mean (3V,);  V (r, 3V) orthonormal directions;  gain, spread (r,) of each;  variance of a coordinate
    """

    mean: Tensor
    directions: Tensor
    gain: Tensor
    spread: Tensor
    variance: float

    @classmethod
    def of(cls, x: Tensor) -> Preconditioner:
        """From shapes (N, 3, V)."""
        mean = x.mean(0).flatten()
        centred = (x[:SAMPLE].flatten(1) - mean).double()
        values, vectors = torch.linalg.eigh(centred @ centred.T)  # N × N: far smaller than 3V × 3V
        kept = values > FLOOR * values[-1]
        directions = ((vectors[:, kept].T @ centred) / values[kept].sqrt()[:, None]).float()
        spread = (values[kept] / len(centred)).sqrt().float()
        gain = (mean.numel() / len(spread)) ** 0.5 / spread
        return cls(mean, directions, gain, spread, float(centred.square().mean()))

    def forward(self, x: Tensor) -> Tensor:
        """T(x − mean) of shapes (N, 3, V)."""
        centred = x.flatten(1) - self.mean
        return (centred + ((centred @ self.directions.T) * (self.gain - 1)) @ self.directions).reshape(x.shape)

    def output(self, raw: Tensor, bias: Tensor) -> Tensor:
        """S W h + b from raw = W h + b (N, 3, V)."""
        return (self._stretch(raw.flatten(1) - bias) + bias).reshape(raw.shape)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Squared error of (N, 3, V), 1 for the mean shape in either part."""
        error = (output - target).flatten(1)
        whitened = error @ self.directions.T / self.spread
        return error.square().mean() / self.variance + whitened.square().mean()

    def fold(self, first: nn.Linear, last: nn.Linear) -> None:
        """Make layers that were trained behind `forward` and before `output` ones that read x and write shapes."""
        with torch.no_grad():
            first.weight += (first.weight @ self.directions.T * (self.gain - 1)) @ self.directions
            first.bias -= first.weight @ self.mean
            last.weight.copy_(self._stretch(last.weight.T).T)

    def _stretch(self, rows: Tensor) -> Tensor:
        """S applied to rows (N, 3V)."""
        return REST * rows + (rows @ self.directions.T * (self.spread - REST)) @ self.directions


def _absorb(head: nn.Sequential, inner: Tensor, width: float, mean: float, spread: float) -> None:
    """Write the standardisation of codes and quantity into the first and the last layer."""
    with torch.no_grad():
        head[0].weight /= width
        head[0].bias -= head[0].weight @ inner
        head[-1].weight *= spread
        head[-1].bias.mul_(spread).add_(mean)


def r_squared(target: Tensor, predicted: Tensor) -> float:
    """1 − residual over total sum of squares, of (N,) numbers."""
    target, predicted = target.double(), predicted.double()
    return 1 - float((target - predicted).square().sum() / (target - target.mean()).square().sum())


def bootstrap_r_squared(target: Tensor, predicted: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """95 % interval of R² over resampled shapes (percentiles of 2000 resamples)."""
    picks = torch.randint(len(target), (RESAMPLES, len(target)), generator=generator)
    t, p = target.double()[picks], predicted.double()[picks]
    values = 1 - (t - p).square().sum(1) / (t - t.mean(1, keepdim=True)).square().sum(1)
    low, high = values.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double()).tolist()
    return low, high


def predict(net: nn.Module, x: Tensor) -> Tensor:
    """Outputs of a net at shapes (N, 3, V), in blocks."""
    with torch.no_grad():
        return torch.cat([net(part) for part in x.split(200)])
