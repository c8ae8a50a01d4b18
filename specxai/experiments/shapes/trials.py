"""Trials of the methods themselves: weights at random, steps inside and beyond a linear region, Captum's scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

import specxai
from specxai.experiments.compare.lrp import canonised
from specxai.experiments.compare.methods import Case, heatmap
from specxai.experiments.compare.spectral import spectral_maps
from specxai.experiments.shapes import metrics
from specxai.experiments.shapes.data import Shapes
from specxai.experiments.shapes.measure import LAYERS, Settings, all_maps, case_of
from specxai.experiments.study import require

# How many modules with weights are drawn anew, from the output down: the cascade of Adebayo et al. (2018).
CASCADE = {"logits": 1, "classifier": 2, "last convolutions": 6, "everything": None}
STEPS = {"0.5 of the way": 0.5, "10 times as far": 10.0, "1000 times as far": 1000.0}
DEEP = {name: layer for name, layer in LAYERS.items() if name != "middle"}
PATCHES, PATCH = 40, 16  # of Captum's infidelity: squares of 16 pixels painted grey
RADIUS = 0.02  # of Captum's sensitivity, in units of the normalised pixels
READING = "top 3 reduced"  # of ours
TESTED = ("gradient", "gradient x input", "integrated gradients", "LRP", "Grad-CAM")


def randomised(net: nn.Module, modules: int | None, seed: int) -> nn.Module:
    """A copy of the net whose last `modules` modules with weights are drawn anew, all for None."""
    fresh = copy.deepcopy(net)
    weighted = [m for m in fresh.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in weighted[::-1][:modules]:
            module.reset_parameters()
    return fresh.eval()


def randomisation(net: nn.Module, data: Shapes, settings: Settings, seed: int) -> dict:
    """{depth: {method: {"rank correlation": […]}}} of |map| with the trained net's, same image and class.

    A method that explains the network must lose its map with the network's weights: less is better.
    """
    plain = canonised(net)
    found: dict = {depth: {} for depth in CASCADE}
    changed = {depth: randomised(net, modules, seed) for depth, modules in CASCADE.items()}
    folded = {depth: canonised(other) for depth, other in changed.items()}
    for row in range(len(data)):
        case = case_of(net, plain, data, row, settings)
        ours, _ = all_maps(case, settings, DEEP)
        for depth, other in changed.items():
            theirs, _ = all_maps(replace(case, net=other, plain=folded[depth]), settings, DEEP)
            for name, values in ours.items():
                likeness = metrics.rank_correlation(values.abs(), theirs[name].abs())
                found[depth].setdefault(name, {}).setdefault("rank correlation", []).append(likeness)
    return found


def stability(net: nn.Module, data: Shapes, settings: Settings, seed: int) -> dict:
    """{step: {what: {measure: […]}}} along a random direction, in units of the way to the first gate.

    Measures are cosines of our first vectors φ_k, of Jᵀw and of every method's map with those at x, and whether the
    linear region is the same.
    """
    plain = canonised(net)
    generator = torch.Generator().manual_seed(seed)
    found: dict = {step: {} for step in STEPS}
    for row in range(len(data)):
        case = case_of(net, plain, data, row, settings)
        maps, here = all_maps(case, settings, DEEP)
        local = next(iter(here.values())).local
        direction = torch.randn(case.x.shape, generator=generator)
        direction /= direction.norm()
        way = local.first_flip(direction)
        for step, factor in STEPS.items():
            x = case.x + factor * float(way) * direction
            moved, there = all_maps(replace(case, x=x), settings, DEEP)
            place = found[step]
            _append(place, "region", "same", float(local.same_region(x)))
            _append(place, "region", "distance", factor * float(way) / float(case.x.norm()))
            for name, e in here.items():
                vectors = e.right_vectors[0], there[name].right_vectors[0]
                _append(place, f"first vector, {name}", "cosine", abs(_cosine(*vectors)))
                change = (there[name].S - e.S).abs().max() / e.S[0]
                _append(place, f"singular values, {name}", "change", float(change))
            _append(place, "gradient of the class", "cosine", _cosine(e.gradient, there[name].gradient))
            for name, values in maps.items():
                _append(place, name, "cosine", _cosine(values, moved[name]))
    return found


def captum_scores(net: nn.Module, data: Shapes, settings: Settings) -> dict:
    """{method: {"infidelity": […], "sensitivity": […]}} by Captum, of maps (h, w).

    infidelity    expected squared error of Σ map over a grey square as the loss of the logit that painting it causes,
                  the map scaled at best (normalize=True); in units of the squared logit
    sensitivity   largest relative change of the map under noise of at most RADIUS a pixel
    """
    require("captum.metrics", "captum")
    plain = canonised(net)
    found: dict = {}
    for row in range(len(data)):
        case = case_of(net, plain, data, row, settings)
        for name, explain in _explainers(case, settings).items():
            place = found.setdefault(name, {"infidelity": [], "sensitivity": []})
            scores = score(case, explain, row, settings.draws)
            for metric, value in scores.items():
                place[metric].append(value)
    return found


def score(case: Case, explain: Callable[[Case], Tensor], seed: int, draws: int) -> dict[str, float]:
    """Captum's infidelity and sensitivity of one method's map at one image."""
    captum = require("captum.metrics", "captum")

    def paint(x: Tensor) -> tuple[Tensor, Tensor]:
        squares = painted(len(x), x.shape[-2:])
        return squares.expand_as(x), torch.where(squares > 0, torch.zeros_like(x), x)

    def again(inputs: tuple[Tensor], **_) -> tuple[Tensor]:
        x, = inputs
        return (torch.stack([explain(replace(case, x=one[None])) for one in x])[:, None].float(),)

    # The map is shared out among the channels, all of which a square covers.
    spread = (explain(case)[None, None] / case.x.shape[1]).expand_as(case.x).float()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        infidelity = captum.infidelity(case.net, paint, case.x, spread, target=case.target,
                                       n_perturb_samples=PATCHES, normalize=True)
        sensitivity = captum.sensitivity_max(again, case.x, perturb_radius=RADIUS, n_perturb_samples=draws)
    return {"infidelity": float(infidelity), "sensitivity": float(sensitivity)}


def painted(count: int, size: tuple[int, int]) -> Tensor:
    """(count, 1, h, w): 1 in a square of PATCH pixels at a random place, which the global generator draws."""
    corners = torch.stack([torch.randint(0, n - PATCH + 1, (count,)) for n in size], 1)
    squares = torch.zeros(count, 1, *size)
    for square, (top, left) in zip(squares, corners.tolist(), strict=True):
        square[:, top:top + PATCH, left:left + PATCH] = 1
    return squares


def _explainers(case: Case, settings: Settings) -> dict[str, Callable[[Case], Tensor]]:
    rivals = {name: (lambda at, name=name: heatmap(at, name)) for name in TESTED}

    def ours(layer: str, reading: str) -> Callable[[Case], Tensor]:
        def explain(at: Case) -> Tensor:
            local = specxai.linearize(at.net, at.x)
            return spectral_maps(specxai.explain(local, layer=layer, target=at.target, rank=settings.rank))[reading]
        return explain

    spectral = {f"{READING}, {name}": ours(layer, READING) for name, layer in DEEP.items()}
    return rivals | spectral


def _append(place: dict, name: str, measure: str, value: float) -> None:
    place.setdefault(name, {}).setdefault(measure, []).append(value)


def _cosine(a: Tensor, b: Tensor) -> float:
    """0 where one of them is zero."""
    a, b = a.double().flatten(), b.double().flatten()
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if scale else 0.0
