"""Settings of the commands: at once the flags, their defaults, and what is saved beside results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass
class ExplainSettings:
    """Explain one output of a model at one image.

    Examples:
        specxai explain --model digits --image 3
        specxai explain --model torchvision:vgg11_bn --weights vgg.safetensors --image cat.jpg --layer features.28
        specxai explain --model torchvision:resnet18 --weights DEFAULT --image cat.jpg --layer layer3 layer4
        specxai explain --model net.py:make_net --image scan.png --layer list
    """

    model: str = "digits"
    """digits, torchvision:NAME, timm:NAME, or FILE.py:FACTORY: runs your file, whose FACTORY() returns the module or
    (module, {size, mean, std, labels})"""
    image: str = "0"
    """an image file, or with --model digits the number of a held-out image"""
    weights: str | None = None
    """.safetensors, .pt or .pth file (never unpickled), or DEFAULT for the package's own; random if left out"""
    layer: tuple[str, ...] = ()
    """layer names, or "list" to print them; default: the end of the last convolutional stage"""
    target: int | None = None
    """index of the output to explain; the predicted class by default"""
    rank: int | Literal["all", "none"] = 50
    """singular triplets; "all" (or "none", no limit) for the whole decomposition, which is exact"""
    tol: float | None = None
    """stop when the decomposition is this good instead"""
    method: Literal["auto", "exact", "krylov", "subspace"] = "auto"
    """how the SVD is computed"""
    gates: Literal["tangent", "frozen"] = "tangent"
    """tangent: the true Jacobian; frozen: every non-linearity is a factor held at its value"""
    backend: Literal["auto", "reference", "native"] = "auto"
    """what runs the products"""
    size: int | None = None
    """side of the square that the model is given; its own by default"""
    seed: int = 0
    """of the solver's probes, and of random weights"""
    out: Path = Path("out")
    """folder for pictures, results, settings.json and report.html"""
    progress: bool = True
    """progress bars, where the output is a terminal and the run is long"""
    debug: bool = False
    """show the traceback of an error"""


@dataclass
class InfoSettings:
    """Say what is installed, which kernels run here and why others do not.

    Examples:
        specxai info
    """

    debug: bool = False
    """show the traceback of an error"""


@dataclass
class ReproduceSettings:
    """Reproduce figures of the paper from scratch.

    Examples:
        specxai reproduce squares
        specxai reproduce squares --out squares --epochs 20
    """

    what: Annotated[Literal["squares"], tyro.conf.Positional] = "squares"
    """squares: the autoencoder of section 2.3, figures 8 and 9"""
    out: Path = Path("out/squares")
    """folder for the figures and numbers"""
    epochs: int = 60
    """training epochs of each autoencoder"""
    seed: int = 0
    """of data, weights and order"""
    debug: bool = False
    """show the traceback of an error"""
