"""What is measured: named models with an input and a layer, and the questions asked of each.

No trained ImageNet weights can be assumed, so weights are drawn from a seed and batch norm is calibrated on a few
random images: a ReLU then opens for about half of its units, as in a net before training.  Trained nets open fewer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from specxai._vision import import_vision
from specxai.experiments.squares.data import squares
from specxai.experiments.squares.model import SquaresNet
from specxai.svd.certify import HELD_OUT
from specxai.svd.solve import DEFAULT_TOLERANCE
from specxai.zoo.digits import LAST_CONV_LAYER, digits_data, load_digits_net

WEIGHTS_SEED, INPUT_SEED, SOLVER_SEED = 0, 1, 2
COLUMNS, POWER_ITERATIONS, RANK = 64, 2, 50


@dataclass(frozen=True)
class Question:
    """One use of `specxai.svd`, or of `specxai.explain`, put to every peer with the same settings.

    timed_from   "operator": gates are fixed beforehand; "input": fixing them at a new input is part of the time
    settings     arguments of `specxai.svd`
    """

    name: str
    text: str
    timed_from: str
    settings: dict = field(hash=False)


def plain_call(name: str, rank: int) -> Question:
    return Question(name, f"the plain call, specxai.explain(model, x, layer, rank={rank}), capture and certificates "
                    "included; the peers' decomposition alone, to the same residual", "input",
                    {"rank": rank, "tol": DEFAULT_TOLERANCE})


QUESTIONS = {
    question.name: question
    for question in (
        Question(
            "equal", f"equal products: {COLUMNS} columns, {POWER_ITERATIONS} power iterations", "operator",
            # tol 0 never stops early.  Columns: held-out probes, RΩ, then RᵀQ and RRᵀQ for Ω and for every power.
            {"method": "subspace", "rank": RANK, "block_size": COLUMNS - RANK, "tol": 0.0,
             "max_products": HELD_OUT + COLUMNS * (1 + 2 * (1 + POWER_ITERATIONS))},
        ),
        Question("first", "from a new input to the first 10 triplets, residuals at most 1e-3 λ₁", "input",
                 {"method": "auto", "rank": 10, "tol": 1e-3, "max_products": 2048}),
        plain_call("default", RANK),
        plain_call("default20", 20),
        Question("exact", "from a new input to all triplets, exact", "input", {"method": "exact"}),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, its input and the layer whose R is decomposed.

    make        () -> (model in eval mode, x with a batch axis of 1)
    layer       name of a layer, None for the whole map J
    questions   asked by default
    long        asked only with --full
    rounds      timed repetitions
    """

    name: str
    make: Callable[[], tuple[nn.Module, Tensor]]
    layer: str | None
    questions: tuple[str, ...]
    long: tuple[str, ...] = ()
    rounds: int = 1


def vision(name: str, size: int = 224, closed: tuple[str, ...] = ()) -> tuple[nn.Module, Tensor]:
    """A torchvision model, or one of timm, with seeded weights.

    The ReLUs after the layers `closed` open for a tenth of their units, as fully connected ones do in trained nets.
    """
    torch.manual_seed(WEIGHTS_SEED)
    models = import_vision("torchvision.models")
    model = getattr(models, name)(weights=None) if hasattr(models, name) else import_vision("timm").create_model(name)
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(WEIGHTS_SEED))
    _randomise(model)
    _calibrate(model, images)
    for layer in closed:
        _shift(model, layer, images, share=0.1)
    return model.eval(), torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(INPUT_SEED))


def autoencoder() -> tuple[nn.Module, Tensor]:
    """The squares autoencoder: 64 × 64 pixels, bottleneck 8."""
    torch.manual_seed(WEIGHTS_SEED)
    model = SquaresNet(bias=True)
    _randomise(model)
    # The bottleneck all open: a random one would be narrower than 8.
    _shift(model, "encoder.6", squares(torch.linspace(0, 1.5, 16)), share=1.0)
    return model.eval(), squares(torch.tensor([0.3]))


def digits() -> tuple[nn.Module, Tensor]:
    """The trained digits net at a held-out image."""
    _, held = digits_data()
    return load_digits_net(), held.x[:1]


def _randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)


@torch.no_grad()
def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Give batch norm the statistics of `images`."""
    norms = [module for module in model.eval().modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(images)
    model.eval()


@torch.no_grad()
def _shift(model: nn.Module, layer: str, images: Tensor, share: float) -> None:
    """Shift a layer's bias until `share` of its outputs are positive."""
    module, seen = model.get_submodule(layer), []
    # Cloned, as an in-place ReLU follows.
    hook = module.register_forward_hook(lambda _, inputs, output: seen.append(output.clone()))
    model(images)
    hook.remove()
    module.bias -= torch.quantile(seen[0].flatten(), 1 - share)


CASES = {
    case.name: case
    for case in (
        Case("digits", digits, LAST_CONV_LAYER, ("default", "equal", "first", "exact"), rounds=5),
        Case("autoencoder8", autoencoder, None, ("exact",), rounds=3),
        Case("alexnet", lambda: vision("alexnet"), "features.12", ("equal",), ("default", "first")),
        Case("resnet18", lambda: vision("resnet18"), "layer4", ("equal",), ("default", "first")),
        Case("vgg11_bn", lambda: vision("vgg11_bn"), "features.28", ("equal",), ("default", "first")),
        Case("densenet121", lambda: vision("densenet121"), "features", (), ("default", "equal", "first")),
        Case("vgg11_bn_fc", lambda: vision("vgg11_bn", closed=("classifier.0", "classifier.3")), "classifier.5",
             (), ("default", "exact")),
        Case("efficientnet_lite0", lambda: vision("tf_efficientnet_lite0"), "blocks.6", (), ("default20", "equal")),
        Case("mobilenet_v2", lambda: vision("mobilenet_v2"), "features.17", (), ("default20", "equal")),
    )
}  # fmt: skip
