"""The paper's claims as numbers, on coloured shapes whose place in the image is known, with rivals on the same images.

- **Separate places.** Are the singular vectors of the last layers "spatially separated salient segments"?  The overlap
  of the first five, beside that of a random orthonormal basis of the same space.
- **On the object.** The pointing game and the share of the positive contribution inside of the object's mask.
- **Faithful.** The probability of the class as blurred pixels are put back or taken away, most important first, with
  edges of the image and random pixels as controls that know no network.  In the order of the signed map, and of the
  blurred magnitudes ("places"): a signed map alternates from pixel to pixel, which is no picture.
- **Of the network.** Weights are drawn anew from the output down: an explanation must not survive that.
- **One region, one explanation.** Vectors and maps inside of a linear region and beyond it.
- **Captum's scores.** Infidelity and sensitivity.

Explained is the predicted class.  All components of a layer together are gradient × input where nothing goes round the
layer and none is left out, so those rows must agree.  With the ε-rule LRP would be gradient × input as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from specxai.experiments.compare.lrp import canonised
from specxai.experiments.compare.methods import RIVALS
from specxai.experiments.shapes import figures, trials
from specxai.experiments.shapes.data import CLASSES, Shapes, shapes
from specxai.experiments.shapes.measure import LAYERS, SMOOTHING, Settings, all_maps, case_of, joined, measure
from specxai.experiments.shapes.model import HELD_OUT, HELD_OUT_SEED, checkpoint_info, load_shapes_net
from specxai.experiments.shapes.report import paired, standings, tabulate
from specxai.experiments.study import Study
from specxai.zoo.vgg import accuracy

SUMMARY = "The claims as numbers, beside six methods and two controls, on shapes with known places (VGG-style net)."
REQUIRES = ("captum", "skimage", "sklearn")
CHUNK = 10  # images a step
SHOWN = (*RIVALS, "strongest, last convolution", "top reduced, last convolution", "top 3 reduced, last convolution",
         "top 3 reduced, penultimate")
NOTES = {
    "pointing": "share of images whose map is largest on the object",
    "pointing, smoothed": f"the same of the map's positive part blurred by {SMOOTHING:g} pixels",
    "inside": "share of the positive contribution that is on the object",
    "insertion": "area under the class's probability as blurred pixels are put back", "overlap": "0: separate places",
    "deletion": "area under the class's probability as pixels are blurred",
    "insertion, places": f"pixels in the order of |map| blurred by {SMOOTHING:g} pixels",
    "deletion, places": f"pixels in the order of |map| blurred by {SMOOTHING:g} pixels",
    "positive sum": "share of images where Σα > 0",
}


@dataclass(frozen=True)
class Sizes:
    """Of a run: images that are measured, of these tried with random weights and moved, and scored by Captum; shown."""

    images: int = 200
    tried: int = 30
    scored: int = 15
    shown: int = 6
    held_out: int = HELD_OUT
    settings: Settings = field(default_factory=Settings)


QUICK = Sizes(12, 2, 2, 4, 1000, Settings(rank=20, steps=8, lime=60, ig=8))


def run(study: Study, sizes: Sizes | None = None) -> None:
    """All of it; fewer images in the trials that solve each image many times."""
    net = load_shapes_net()
    sizes = sizes or (QUICK if study.quick else Sizes())
    settings, images, tried = sizes.settings, sizes.images, sizes.tried
    data = shapes(images, study.generator(1))
    starts = range(0, images, CHUNK)
    chunks = {"randomised": tried, "stable": tried, "captum": sizes.scored}
    small = replace(settings, rank=min(settings.rank, 20), lime=min(settings.lime, 60), ig=min(settings.ig, 16))
    study.expect(1 + len(starts) + sum(-(-count // CHUNK) for count in chunks.values()))
    study.text(__doc__ or "")
    _network(study, net, sizes.held_out)
    _examples(study, net, data[:sizes.shown], settings)
    found = joined([study.step(f"images-{start}", measure, net, data[start:start + CHUNK], settings, start,
                               version=repr(settings)) for start in starts])
    _maps(study, found)
    _vectors(study, found)
    parts = {name: [data[start:min(start + CHUNK, count)] for start in range(0, count, CHUNK)]
             for name, count in chunks.items()}
    _randomised(study, joined([study.step(f"randomised-{n}", trials.randomisation, net, part, small, study.seed,
                                          version=repr(small))
                               for n, part in enumerate(parts["randomised"])]))
    _stable(study, joined([study.step(f"stable-{n}", trials.stability, net, part, small, study.seed + n,
                                      version=repr(small))
                           for n, part in enumerate(parts["stable"])]))
    scores = joined([study.step(f"captum-{n}", trials.captum_scores, net, part, small, version=repr(small))
                     for n, part in enumerate(parts["captum"])])
    tabulate(study, "captum", scores, "method", "Captum's infidelity (a grey square of 16 pixels, best scale) and "
             "sensitivity (largest relative change under noise of 0.02): less is better.")


def _network(study: Study, net: torch.nn.Module, count: int) -> None:
    """What the net can do, on the first of the images it was judged by when it was trained."""
    info = checkpoint_info()
    done = study.step("accuracy", lambda many: {"accuracy": accuracy(
        net, shapes(many, torch.Generator().manual_seed(HELD_OUT_SEED)))}, count)
    study.number("network/accuracy", done["accuracy"], note=f"on {count} held-out images, {len(CLASSES)} classes")
    study.number("network/accuracy when trained", info["held_out_accuracy"],
                 note=f"on {info['held_out']} images; {info['images']} training images, seed {info['seed']}")


def _examples(study: Study, net: torch.nn.Module, data: Shapes, settings: Settings) -> None:
    plain, maps, titles = canonised(net), [], []
    for row in range(len(data)):
        case = case_of(net, plain, data, row, settings)
        maps.append(all_maps(case, settings, LAYERS)[0])
        titles.append(CLASSES[int(data.y[row])] + ("" if case.target == int(data.y[row]) else
                                                   f", read as {CLASSES[case.target]}"))
    names = [name for name in SHOWN if name in maps[0]]
    study.figure("examples", figures.examples(data.raw, data.masks, titles, maps, names), figures.LEGEND)


def _maps(study: Study, found: dict) -> None:
    images = found["images"]
    count = len(images["area"])
    study.number("images/count", count)
    study.number("images/correct", sum(images["correct"]) / count, note="share that the net reads right")
    study.number("images/area", sum(images["area"]) / count, note="mean share of the image that the object covers: "
                 "what `inside` and `pointing` are for a map that knows nothing")
    cells = tabulate(study, "maps", found["maps"], "method", f"All methods on the same {count} images.", NOTES)
    study.figure("measured", figures.forest(cells, f"{count} images, 95 % intervals"),
                 "Red: SpecXAI's readings by layer; blue: other methods; grey: controls that know no network.")
    paired(study, found["maps"], ("gradient x input", "Grad-CAM"))
    study.text("# Who is ahead\n\n" + "\n".join(f"- {line}" for line in standings(found["maps"], study.seed)))


def _vectors(study: Study, found: dict) -> None:
    cells = tabulate(study, "vectors", found["vectors"], "layer", "The leading five vectors of a layer and its "
                     "contributions.", NOTES)
    study.figure("separation", figures.separation(cells), "How much the leading vectors' places overlap, and how much "
                 "a random orthonormal basis of the space that they span.")


def _randomised(study: Study, found: dict) -> None:
    cells = {depth: {name: values["rank correlation"] for name, values in methods.items()}
             for depth, methods in found.items()}
    by_method = {name: {depth: cells[depth][name] for depth in cells} for name in next(iter(cells.values()))}
    means = tabulate(study, "randomised", by_method, "method", "Spearman's correlation of |map| with the trained net's "
                     "as weights are drawn anew, same image and class: less is better.")
    study.figure("cascade", figures.cascade({depth: {name: row[depth] for name, row in means.items()}
                                                for depth in cells}), "Model-parameter randomisation.")


def _stable(study: Study, found: dict) -> None:
    rows = {what: {step: next(iter(found[step][what].values())) for step in found if what in found[step]}
            for what in next(iter(found.values())) if what != "region"}
    region = {step: found[step]["region"] for step in found}
    tabulate(study, "stable", rows, "cosine with what it is at x", "Along a random direction, in units of the way to "
             "the first gate.  Of singular values: the largest change, relative to λ₁.")
    tabulate(study, "regions", region, "step", "Share of images in the same linear region, and the step's length "
             "relative to |x|.")
