"""What every method makes of the same images: one call for a few images, all numbers per image in lists."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import specxai
from specxai.experiments.compare.lrp import canonised
from specxai.experiments.compare.methods import CONTROLS, RIVALS, Case, heatmap
from specxai.experiments.compare.spectral import leading_maps, spectral_maps
from specxai.experiments.shapes import metrics
from specxai.experiments.shapes.data import Shapes
from specxai.experiments.shapes.model import LAST_CONV_LAYER, MIDDLE_LAYER, PENULTIMATE_LAYER

LAYERS = {"middle": MIDDLE_LAYER, "last convolution": LAST_CONV_LAYER, "penultimate": PENULTIMATE_LAYER}
CAMERA = "features.23"  # the last ReLU before a pool: 8 × 8, where Grad-CAM sees finest
GAMMA = 0.25  # of LRP
VECTORS = 5  # whose places are compared
SMOOTHING = 2.0  # pixels, of the second pointing game and the second order of pixels


@dataclass(frozen=True)
class Settings:
    """Sizes of a run: triplets a layer, steps of the curves, samples of LIME, steps of integrated gradients, draws of
    Captum's sensitivity."""

    rank: int = 50
    steps: int = 16
    lime: int = 200
    ig: int = 32
    draws: int = 4


def case_of(net: nn.Module, plain: nn.Module, data: Shapes, row: int, settings: Settings, first: int = 0) -> Case:
    """One image as the rivals need it; explained is the predicted class."""
    x = data[row:row + 1].x
    with torch.no_grad():
        target = int(net(x).argmax())
    return Case(net, x, data.raw[row], target, CAMERA, plain, seed=first + row, gamma=GAMMA, ig_steps=settings.ig,
                lime_samples=settings.lime)


def all_maps(case: Case, settings: Settings, layers: dict[str, str],
             rivals: tuple[str, ...] = RIVALS + CONTROLS) -> tuple[dict[str, Tensor], dict]:
    """Maps (h, w) by method, ours as "reading, layer", and the explanations {layer: e} that ours come from."""
    maps = {name: heatmap(case, name) for name in rivals}
    local = specxai.linearize(case.net, case.x)
    explanations = {}
    for name, layer in layers.items():
        e = explanations[name] = specxai.explain(local, layer=layer, target=case.target, rank=settings.rank)
        maps |= {f"{reading}, {name}": values for reading, values in spectral_maps(e).items()}
    return maps, explanations


def measure(net: nn.Module, data: Shapes, settings: Settings, first: int = 0) -> dict:
    """All numbers of some images, of which the first is number `first` of the run.

    {"maps": {method: {metric: [per image]}}, "vectors": {layer: {metric: […]}}, "images": {…}}
    """
    plain = canonised(net)
    found: dict = {"maps": {}, "vectors": {}, "images": {}}
    for row in range(len(data)):
        case, mask = case_of(net, plain, data, row, settings, first), data.masks[row]
        maps, explanations = all_maps(case, settings, LAYERS)
        for name, values in maps.items():
            _append(found["maps"], name, of_map(case, values, mask, settings.steps))
        for name, e in explanations.items():
            _append(found["vectors"], name, of_vectors(e, mask, case.seed))
        _append(found, "images", {"correct": float(case.target == int(data.y[row])),
                                  "area": float(mask.double().mean())})
    return found


def of_map(case: Case, values: Tensor, mask: Tensor, steps: int) -> dict[str, float]:
    """Localisation and faithfulness of one map."""
    places = metrics.blurred(values.abs(), SMOOTHING)
    areas = {name + note: metrics.area(metrics.curve(case.net, case.x, ranked, case.target, way, case.seed, steps))
             for note, ranked in (("", values), (", places", places))
             for name, way in (("insertion", True), ("deletion", False))}
    return {"pointing": metrics.pointing(values, mask),
            "pointing, smoothed": metrics.pointing(metrics.blurred(values.clamp(min=0), SMOOTHING), mask),
            "inside": metrics.inside(values, mask), **areas}


def of_vectors(e, mask: Tensor, seed: int) -> dict[str, float]:
    """Where the leading vectors of a layer lie, and how the contributions add up."""
    strongest = leading_maps(e, VECTORS, "lambda")
    turned = metrics.rotated(e.right_vectors[:VECTORS].flatten(1), torch.Generator().manual_seed(seed))
    mixed = replace(e[:VECTORS], right_vectors=turned.reshape(e.right_vectors[:VECTORS].shape))
    reduction, total = e.reduce(), float(e.alpha.sum())
    return {"overlap": metrics.overlap(strongest),
            "overlap, rotated": metrics.overlap(list(mixed.contract().double())),
            "overlap, reduced": metrics.overlap(leading_maps(e, VECTORS, "reduced")),
            "extent": metrics.extent(strongest[0]), "inside, |c|": metrics.inside(strongest[0].abs(), mask),
            "survivors": float(len(reduction)), "largest share": float(reduction.shares.max()) if len(reduction) else 0,
            "positive sum": float(total > 0), "components": float(len(e)),
            "remainder": abs(e.remainder) / abs(e.output), "bias": e.bias / e.output,
            "completeness": e.completeness, "exactness": e.exactness}


def _append(place: dict, key: str, values: dict[str, float]) -> None:
    lists = place.setdefault(key, {})
    for name, value in values.items():
        lists.setdefault(name, []).append(float(value))


def joined(parts: list[dict]) -> dict:
    """The lists of several calls, one behind the other.

    >>> joined([{"a": {"b": [1.0]}}, {"a": {"b": [2.0]}}])
    {'a': {'b': [1.0, 2.0]}}
    """
    first = parts[0]
    if isinstance(first, dict):
        return {key: joined([part[key] for part in parts]) for key in first}
    return [value for part in parts for value in part]
