"""The rivals of section 3.3, through Captum and scikit-image, each as a map (h, w) of one image.

A map's positive part is what the method holds for the class.  Only the gradient and Grad-CAM have no negative part.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specxai.experiments.compare.lrp import with_rules
from specxai.experiments.study import require

IG_STEPS = 32
LIME_SAMPLES = 200
RIVALS = ("gradient", "gradient x input", "integrated gradients", "LRP", "Grad-CAM", "LIME")
CONTROLS = ("edges", "random")


@dataclass(frozen=True)
class Case:
    """One image of one classifier: x (1, 3, h, w) as the net takes it, raw (3, h, w) in [0, 1], the class explained.

    camera   the layer that Grad-CAM looks at, by name
    plain    the same classifier of layers that LRP has rules for, from `canonised`; gamma of its convolutions' rule
    seed     of LIME's samples and the random control; ig_steps of integrated gradients
    min_segment   pixels of LIME's smallest superpixel
    """

    net: nn.Module
    x: Tensor
    raw: Tensor
    target: int
    camera: str
    plain: nn.Module
    seed: int = 0
    gamma: float = 0.0
    ig_steps: int = IG_STEPS
    lime_samples: int = LIME_SAMPLES
    min_segment: int = 20

    @cached_property
    def superpixels(self) -> Tensor:
        """(h, w) Felzenszwalb's segments of the image, numbered from 0."""
        segmentation = require("skimage.segmentation", "scikit-image")
        labels = segmentation.felzenszwalb(self.raw.permute(1, 2, 0).numpy(), scale=100, sigma=0.5,
                                           min_size=self.min_segment)
        return torch.from_numpy(np.ascontiguousarray(labels)).long()


def heatmap(case: Case, method: str) -> Tensor:
    """The map (h, w), float64, of a method of RIVALS or CONTROLS.

    Raises ValueError for another name, ImportError naming the extra where a package is missing.
    """
    if method not in _MAPS:
        raise ValueError(f"no method is called {method!r}: choose of {', '.join(_MAPS)}")
    with torch.enable_grad():
        return _MAPS[method](case).detach().double()


def attribution(case: Case, method: str, x: Tensor | None = None) -> Tensor:
    """(n, 3, h, w) of the gradient's family, before channels are added up; `x` (n, 3, h, w) instead of the case's."""
    attr, x = require("captum.attr", "captum"), case.x if x is None else x
    x = x.detach().clone().requires_grad_()
    if method == "gradient":
        return attr.Saliency(case.net).attribute(x, target=case.target, abs=False)
    if method == "gradient x input":
        return attr.InputXGradient(case.net).attribute(x, target=case.target)
    if method == "integrated gradients":
        return attr.IntegratedGradients(case.net).attribute(x, target=case.target, n_steps=case.ig_steps)
    if method == "LRP":
        return attr.LRP(with_rules(case.plain, case.gamma)).attribute(x, target=case.target)
    raise ValueError(f"{method!r} is not of the gradient's family")


def _gradient(case: Case) -> Tensor:
    return attribution(case, "gradient")[0].abs().amax(0)  # the paper's [36]: the largest magnitude of a channel


def _summed(method: str):
    return lambda case: attribution(case, method)[0].sum(0)


def _grad_cam(case: Case) -> Tensor:
    attr = require("captum.attr", "captum")
    layer = case.net.get_submodule(case.camera)
    coarse = attr.LayerGradCam(case.net, layer).attribute(case.x.clone(), target=case.target, relu_attributions=True)
    return F.interpolate(coarse.detach(), size=case.x.shape[-2:], mode="bilinear", align_corners=False)[0, 0]


def _lime(case: Case) -> Tensor:
    """A ridge regression on superpixels that are kept or painted grey, weighted as in LIME's own code.

    Grey, as an object of one colour is still there when it is painted in its mean colour, LIME's default.  Every pixel
    has the weight of its superpixel, as is usual.
    """
    attr = require("captum.attr", "captum")
    from captum._utils.models.linear_model import SkLearnRidge

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(case.seed)
        method = attr.Lime(lambda x: case.net(x).softmax(1), SkLearnRidge(alpha=1), similarity_func=_closeness)
        found = method.attribute(case.x.clone(), target=case.target, feature_mask=case.superpixels[None, None],
                                 n_samples=case.lime_samples, perturbations_per_eval=20)
    return found[0, 0]


def _closeness(original: Tensor, perturbed: Tensor, kept: Tensor, **_) -> Tensor:
    """exp(−d²/w²)^½ of the cosine distance d between the 0/1 vector of kept superpixels and all ones, w = 0.25."""
    distance = 1 - kept.double().mean().sqrt()
    return (-(distance / 0.25) ** 2).exp().sqrt()


def _edges(case: Case) -> Tensor:
    """Sobel's magnitude of the grey image: a picture of the input that knows no network."""
    grey = case.raw.mean(0)[None, None]
    kernel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])[None, None]
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    return torch.hypot(F.conv2d(padded, kernel), F.conv2d(padded, kernel.transpose(2, 3)))[0, 0]


def _random(case: Case) -> Tensor:
    return torch.rand(case.x.shape[-2:], generator=torch.Generator().manual_seed(case.seed))


_MAPS = {
    "gradient": _gradient, "gradient x input": _summed("gradient x input"),
    "integrated gradients": _summed("integrated gradients"), "LRP": _summed("LRP"), "Grad-CAM": _grad_cam,
    "LIME": _lime, "edges": _edges, "random": _random,
}
