"""Settings of the commands: at once the flags, their defaults, and what is saved beside results."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import Annotated, Literal

import tyro

DEFAULT_RANK = 50


@dataclass
class ExplainSettings:
    """Explain one output of a model at one image.

    Examples:
        specxai explain --model digits --image 3
        specxai explain --model torchvision:vgg11_bn --weights vgg.safetensors --image cat.jpg --layer features.28
        specxai explain --model torchvision:resnet18 --weights DEFAULT --image cat.jpg --layer layer3 layer4
        specxai explain --model digits --image 3 --targets 3 8
        specxai explain --model net.py:make_net --image scan.png --layer list
    """

    model: str = "digits"
    """digits, torchvision:NAME, timm:NAME, or FILE.py:FACTORY, which runs your file; FACTORY() returns the module or
    (module, {size, mean, std, labels})"""
    image: str = "0"
    """an image file, or with --model digits the number of a held-out image"""
    weights: str | None = None
    """.safetensors, .pt or .pth file (tensors only, nothing in it is run), or DEFAULT for the package's own;
    torchvision and timm models are random without"""
    layer: tuple[str, ...] = ()
    """layer names, or "list" to print them; default: the end of the last convolutional stage"""
    target: tuple[int, ...] = ()
    """index of the output to explain, one number per axis; default: the predicted class"""
    targets: tuple[int, ...] = ()
    """several outputs of one axis, each explained; a layer is decomposed once for all of them"""
    output: str | None = None
    """which output of a model that returns several: a key or a number, or a path of them such as heads.0"""
    rank: int | Literal["all", "none"] | None = None
    """how many singular triplets; "all" (or "none", no limit) for the whole decomposition, which is exact; default: 50,
    or with --tol as many as it needs"""
    tol: float | None = None
    """relative error of the truncated map to the layer at which to stop; with --rank (or its default) the residual of
    each triplet relative to the largest singular value, by default 1e-3, which suits pictures and sums"""
    method: Literal["auto", "exact", "krylov", "subspace"] = "auto"
    """how the SVD is computed"""
    gates: Literal["tangent", "frozen"] = "tangent"
    """tangent: the true Jacobian; frozen: every non-linearity is a factor held at its value"""
    backend: Literal["auto", "reference", "native", "torch", "cuda"] = "auto"
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

    def check(self) -> None:
        """Raise ValueError for a number out of range: now, and not after minutes of work."""
        whole = self.rank in ("all", "none")
        if isinstance(self.rank, int) and self.rank < 1:
            raise ValueError(f"--rank {self.rank} is out of range: give at least 1, or all")
        if self.tol is not None and not 0 < self.tol < 1:
            raise ValueError(f"--tol {self.tol:g} is out of range: it is relative, give one between 0 and 1")
        if self.tol is not None and whole:
            raise ValueError(f"--rank {self.rank} computes everything, so --tol means nothing with it: leave one out")
        if self.target and self.targets:
            raise ValueError("--target and --targets both say what to explain: leave one out")
        if self.size is not None and self.size < 1:
            raise ValueError(f"--size {self.size} is out of range: give the pixels of a side")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed} is out of range: give a whole number from 0 on")

    @property
    def triplets(self) -> int | None:
        """The rank asked for; None for no limit."""
        if self.rank is None:
            return DEFAULT_RANK if self.tol is None else None
        return self.rank if isinstance(self.rank, int) else None

    @property
    def wanted(self) -> list[int | tuple[int, ...] | None]:
        """The targets as `specxai.explain` takes them."""
        if self.targets:
            return list(dict.fromkeys(self.targets))
        return [self.target[0] if len(self.target) == 1 else self.target or None]

    @property
    def selector(self) -> int | str | tuple[int | str, ...] | None:
        """The output as `specxai.linearize` takes it."""
        if self.output is None:
            return None
        parts = tuple(int(part) if part.isdecimal() else part for part in self.output.split("."))
        return parts[0] if len(parts) == 1 else parts


@dataclass
class InfoSettings:
    """Say what is installed, which kernels run here and why others do not.

    Examples:
        specxai info
    """

    debug: bool = False
    """show the traceback of an error"""

    def check(self) -> None:
        """There is nothing that could be out of range."""


@dataclass
class ReproduceSettings:
    """Reproduce the paper's systems and figures: figures, a page, and a JSON of every number.

    A run that was stopped goes on where it was when it is started again with the same settings.

    Examples:
        specxai reproduce squares --out squares
        specxai reproduce all --out paper --quick
        specxai reproduce imagenet --out imagenet --weights DEFAULT --images cock.jpg crab.jpg
    """

    name: Annotated[Literal["imagenet", "cars", "turbines", "squares", "compare", "shapes", "all"],
                    tyro.conf.Positional]
    """imagenet (section 2.1), cars, turbines (2.2), squares (2.3, 3.1), compare (3.3), shapes (the claims as numbers),
    or all, each in a folder of its name"""
    out: Path
    """folder for figures, index.html, numbers.json, run.json, and the steps that a later run need not do again"""
    quick: bool = False
    """smaller data and fewer epochs: minutes for all of them"""
    seed: int = 0
    """of data, weights and order; the same seed gives the same numbers.json"""
    weights: str | None = None
    """imagenet: a state dict of the networks (.safetensors, .pt or .pth, tensors only), or DEFAULT for torchvision's"""
    images: tuple[str, ...] = ()
    """imagenet and compare: image files to explain instead of the photographs that come with scikit-image"""
    epochs: int | None = None
    """squares: training epochs of each autoencoder"""
    fresh: bool = False
    """do every step again, whatever an earlier run has left"""
    progress: bool = True
    """progress bars, where the output is a terminal"""
    debug: bool = False
    """show the traceback of an error"""

    def check(self) -> None:
        """Raise ValueError for a number out of range."""
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"--epochs {self.epochs} is out of range: give at least 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed {self.seed} is out of range: give a whole number from 0 on")

    @property
    def options(self) -> dict[str, object]:
        """The flags that only some experiments read, as far as they were given."""
        given = {"weights": self.weights, "images": list(self.images) or None, "epochs": self.epochs}
        return {key: value for key, value in given.items() if value is not None}


@dataclass
class BenchSettings:
    """Time SpecXAI beside torch.func, autograd, dense chains and other solvers, and print the ratios.

    Every peer runs in this process on the same input, and is checked before it is timed.

    Examples:
        specxai bench
        specxai bench --cases vgg11_bn --questions equal passes --out bench
        specxai bench --cases digits --peers "torch.func matrix-free" "specxai native"
    """

    cases: tuple[str, ...] = ("digits", "autoencoder8", "alexnet")
    """digits, autoencoder8, alexnet, resnet18, vgg11_bn, densenet121, vgg11_bn_fc, efficientnet_lite0,
    mobilenet_v2: the larger ones take minutes"""
    questions: tuple[str, ...] = ()
    """equal (products), first (10 triplets, certified), exact (all), passes (one product); default: each case's own"""
    peers: tuple[str, ...] = ()
    """who is timed; default: all who can answer"""
    threads: int | None = None
    """torch's threads; default: as torch has it"""
    full: bool = False
    """the long questions too, three rounds at least"""
    memory: bool = False
    """peaks of memory as well, each of which repeats its work in a process of its own"""
    out: Path | None = None
    """folder for bench.md, bench.json and settings.json; default: print only"""
    debug: bool = False
    """show the traceback of an error"""

    def check(self) -> None:
        """Raise ValueError for a number out of range."""
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads {self.threads} is out of range: give at least 1")


@dataclass
class LensFitSettings:
    """Fit a Jacobian lens: the mean Jacobian from each block's output to the last one's.

    A fit with --checkpoint that was stopped goes on where it was when it is started again.

    Examples:
        specxai lens fit --out lens.pt
        specxai lens fit --model hf:gpt2 --prompts wiki.txt --out lens.pt --checkpoint fit.pt
        specxai lens fit --model net.py:make --prompts ids.pt --layers 4 --rank 64 --out lens.pt
    """

    out: Path
    """the lens file, in the form that the reference implementation and TransformerLens read"""
    model: str = "gpt"
    """gpt, the small one that ships; hf:NAME_OR_FOLDER for transformers; or FILE.py:FACTORY, which runs your file;
    FACTORY() returns the module or (module, tokenizer)"""
    prompts: Path | None = None
    """.txt, cut into windows of --max-length tokens; .jsonl, a string or {"text": …} a line; .pt, a list of token ids
    (1, T).  gpt has texts of its own"""
    count: int = 100
    """how many prompts to take"""
    layers: tuple[int, ...] = ()
    """source blocks, from 0, negative ones from the end; default: all below the last"""
    skip_first: int = 16
    """positions at the beginning that do not count"""
    max_length: int = 128
    """tokens that a prompt is cut to"""
    rank: int | None = None
    """only so many singular triplets of J - aI, certified, without making J"""
    tol: float | None = None
    """of the residuals with --rank, relative to the largest singular value; default 1e-3"""
    products: str = "auto"
    """full: float32 at least; rough: faster ones in 16 bits, whose error is measured and in the file; auto: rough for a
    model in bfloat16"""
    backend: str = "auto"
    """auto, reference, native, torch or cuda"""
    gates: str = "tangent"
    """tangent: the lens; frozen, or kinds such as "softmax=held norm=held activation=tangent product=tangent": one of
    held factors"""
    stack: str | None = None
    """dotted name of the list of blocks; default: the one that is found"""
    checkpoint: Path | None = None
    """file to keep the sums in"""
    every: int = 10
    """prompts between two writes of the checkpoint"""
    max_memory: int | None = None
    """MiB that a block of columns may take; default 2048, on a GPU a quarter of what is free"""
    seed: int = 0
    """of the solver's probes"""
    progress: bool = True
    """a progress bar, where the output is a terminal"""

    def check(self) -> None:
        """Raise ValueError for a number out of range: now, and not after the model was loaded."""
        for name, value in (("--count", self.count), ("--every", self.every), ("--rank", self.rank),
                            ("--max-memory", self.max_memory)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} is out of range: give at least 1")
        if self.tol is not None and not 0 < self.tol < 1:
            raise ValueError(f"--tol {self.tol:g} is out of range: it is relative, give one between 0 and 1")


@dataclass
class LensMergeSettings:
    """Merge lenses of different prompts, weighted by their numbers.

    Examples:
        specxai lens merge first.pt second.pt --out lens.pt
    """

    lenses: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """lens files, or checkpoints of fits, of the same layers and settings"""
    out: Path
    """the lens file"""

    def check(self) -> None:
        """Raise ValueError where there is nothing to merge."""
        if len(self.lenses) < 2:
            raise ValueError("give two lens files or more to merge")


@dataclass
class LensSpectrumSettings:
    """Print, layer by layer, the identity's share a of a lens, the rest's size, effective rank and singular values.

    Examples:
        specxai lens spectrum lens.pt
        specxai lens spectrum lens.pt --layers 0 4 --values 20
    """

    lens: Annotated[Path, tyro.conf.Positional]
    """lens file, or checkpoint of a fit"""
    layers: tuple[int, ...] = ()
    """default: all"""
    values: int = 6
    """how many singular values to print"""

    def check(self) -> None:
        """Raise ValueError for a number out of range."""
        if self.values < 1:
            raise ValueError(f"--values {self.values} is out of range: give at least 1")


@dataclass
class LensSettings:
    """The Jacobian lens of a decoder: fit, merge, spectrum.

    Examples:
        specxai lens fit --out lens.pt
        specxai lens merge first.pt second.pt --out lens.pt
        specxai lens spectrum lens.pt
    """

    command: Annotated[LensFitSettings, tyro.conf.subcommand("fit", description=cleandoc(LensFitSettings.__doc__))] | (
        Annotated[LensMergeSettings, tyro.conf.subcommand("merge", description=cleandoc(LensMergeSettings.__doc__))]
    ) | Annotated[LensSpectrumSettings,
                  tyro.conf.subcommand("spectrum", description=cleandoc(LensSpectrumSettings.__doc__))]
    debug: bool = False
    """show the traceback of an error"""

    def check(self) -> None:
        """Raise ValueError for a number out of range."""
        self.command.check()
