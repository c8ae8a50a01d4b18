"""Section 2.2 as an experiment, the same for cars and turbines: train, explain the composed net, draw, count."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specxai.experiments.study import Study
from specxai.experiments.surfaces import analysis, figures, page
from specxai.experiments.surfaces.analysis import LAYERS, TOP
from specxai.experiments.surfaces.mesh import ShapeSet
from specxai.experiments.surfaces.nets import HEAD, LATENT, WIDTHS, AutoEncoder, regressor
from specxai.experiments.surfaces.train import (
    Data,
    Settings,
    Trained,
    bootstrap_r_squared,
    dataset,
    predict,
    r_squared,
    train,
)

SHOWN = 3  # shapes that are drawn
DECAYS = (1e-3, 1e-2, 1e-1)  # of the weights: the full run trains with each, and validation chooses


@dataclass(frozen=True)
class Run:
    """What the parts of a report need."""

    study: Study
    shapes: ShapeSet
    data: Data
    trained: Trained

    def shape(self, place: int) -> Tensor:
        """(3, V) a test shape as the nets read it."""
        return self.data.x[self.data.test][place]


def settings(study: Study, **sizes) -> Settings:
    """Of a quick or the full run; `sizes` are others of `Settings`."""
    few = {"train": 6000, "validation": 300, "test": 300, "epochs": 10, "head_epochs": 40} if study.quick else {}
    return Settings(**{"seed": study.seed, **few, **sizes})


def run(study: Study, shapes: ShapeSet, count: int | None = None, **sizes) -> None:
    """Everything about one set of shapes.

    count   how many test shapes the numbers are means of: 24 in a quick run, else 60
    sizes   others of `specxai.experiments.surfaces.train.Settings` than the seed
    """
    chosen = settings(study, **sizes)
    count = min(count or (24 if study.quick else 60), chosen.test)
    decays = (chosen.decay,) if study.quick else DECAYS
    study.expect(2 + len(decays))
    data = dataset(shapes, chosen)
    this = Run(study, shapes, data, choose(study, shapes, data, [replace(chosen, decay=decay) for decay in decays]))
    chosen_by = (f"was chosen by R² on {data.validation} other {shapes.name}s" if len(decays) > 1 else
                 "is the settings' own; the full run chooses it by R² on other shapes")
    study.text(f"# What it is\n{shapes.vertices} vertices and {len(shapes.faces)} faces, the same for every "
               f"{shapes.name}. {shapes.source}\n\nAn autoencoder {3 * shapes.vertices} → "
               f"{' → '.join(map(str, (*WIDTHS, LATENT)))} and back with biases and ReLU, trained on {data.train} "
               f"{shapes.name}s; then a regressor {' → '.join(map(str, (LATENT, *HEAD, 1)))} on its latent space. What "
               "is explained is the two composed, as a function of the vertices. The decay of the weights "
               f"{chosen_by}. The paper gives neither its data nor its architecture.")
    accuracy(this)
    seen = study.step("explain", lambda: _views(this, count), version=str(count))
    vectors(this, seen)
    likeness(this, seen, count)
    evolution(this, seen)
    symmetry(this, seen)
    contraction(this, seen)
    biases(this, study.step("biases", lambda: _biases(this, count), version=str(count)))
    interactive(this, seen)
    study.text("# What to make of it\nHow symmetric the vectors are may come of the data rather than the net: a set of "
               "symmetric shapes gives a first layer no reason to tell the sides apart, and what is left of its random "
               "start is reported as “outside the data”. That is an explanation and not a result: no net was trained "
               "otherwise to compare. The first layer is trained in whitened coordinates, so its largest λ belong to "
               "directions in which shapes vary little. What was chosen, in the run or before it, was chosen by R² on "
               "validation shapes; the test shapes have a seed of their own and were looked at once. Numbers stand "
               "beside the paper's claims, whether they agree or not.")


def choose(study: Study, shapes: ShapeSet, data: Data, candidates: list[Settings]) -> Trained:
    """Train with each of the settings, and keep the nets that have the best R² on the validation shapes."""
    x, y = data.x[data.chosen_by], data.y[data.chosen_by]
    best, found = -math.inf, None
    for settings in candidates:
        def fit(settings: Settings = settings) -> dict:
            total = settings.epochs + settings.head_epochs
            with study.progress.bar(total, f"training on {shapes.name}s", "epoch") as bar:
                trained = train(data, settings, bar.update)
            return {"autoencoder": dict(trained.autoencoder.state_dict()), "head": dict(trained.head.state_dict()),
                    "losses": trained.losses}

        nets = _nets(study.step(f"train-{settings.decay:g}", fit, version=repr(settings)), shapes)
        score = r_squared(y, predict(nets.composed, x)[:, 0])
        study.number(f"validation/decay {settings.decay:g}/r2", score, note=f"of the {shapes.what} on {len(y)} "
                     f"{shapes.name}s that the choice of the decay is made by")
        if score > best:
            best, found, decay = score, nets, settings.decay
    if found is None:
        raise ValueError("R² is no number with any decay of weights: training diverged; try another seed")
    study.number("validation/chosen decay", decay, note="of the weights, by R² on the validation shapes")
    return found


def accuracy(this: Run) -> None:
    """R² and reconstruction on test shapes, with bootstrap intervals."""
    study, shapes, data = this.study, this.shapes, this.data
    target, x = data.y[data.test], data.x[data.test]
    predicted = predict(this.trained.composed, x)[:, 0]
    score = r_squared(target, predicted)
    low, high = bootstrap_r_squared(target, predicted, study.generator(1))
    study.number("test/r2", score, (low, high), f"of the {shapes.what} on {len(target)} test {shapes.name}s, which "
                 "nothing was chosen by; 95 % bootstrap over shapes",
                 paper="“well-trained and provides good accuracy”, no number")
    study.number("test/mean absolute error", float((target - predicted).abs().mean()), note=shapes.unit or "of C_D")
    apart = (predict(this.trained.autoencoder, x) - x).square().sum(1).mean(1).sqrt() * data.scale
    study.number("test/reconstruction error", float(apart.mean()), analysis.interval(apart, study.generator(2)),
                 "root mean square distance of a reconstructed vertex, in metres; mean over test shapes")
    spread = (x - data.x[:data.train].mean(0)).square().sum(1).mean().sqrt() * data.scale
    study.number("test/spread of the set", float(spread), note="the same distance from the mean shape, in metres")
    few = slice(0, 6)
    study.figure("set", figures.gallery(shapes, data.metres(x[few]), target, predicted, target[few].tolist(),
                                        predicted[few].tolist(), f"R² = {score:.4f}  [{low:.4f}, {high:.4f}]"),
                 f"Six test {shapes.name}s, and the net's {shapes.what} against the formula's for all of them.")


def vectors(this: Run, seen: dict) -> None:
    """Figure 4."""
    shapes, first = this.shapes, seen["first"]
    rows = []
    for i in range(SHOWN):
        parts = _fields(first, this.shape(i), i)
        total = (first["gradient"][i] * this.shape(i)).sum(0)
        heads = [f"k = {k}, α = {a:+.3g}" for k, a in zip(first["places"][i], first["coefficients"][i], strict=True)]
        rows.append({"name": f"{shapes.symbol} = {float(first['output'][i]):.3g} {shapes.unit}",
                     "fields": [*parts, total], "vertices": this.data.metres(this.shape(i)),
                     "titles": [*heads, f"Σα = {float(total.sum()):+.3g}, bias {float(first['bias'][i]):+.3g}"]})
    this.study.figure("vectors", figures.contributions(
        shapes, rows, f"Vectors of the first layer with the largest part in the {shapes.what}",
        ["largest |α|", "second", "third", "all vectors"]),
        f"Figure 4: contributions α ĉ per vertex (25) of the three singular vectors of the first layer with the "
        f"largest |α|, at {SHOWN} test {shapes.name}s, and of all vectors together. Red raises, blue lowers.")
    number, study = _means(this), this.study
    number("first/coherence of the top vector", [analysis.coherence(_fields(first, this.shape(i), i)[0], shapes.edges)
                                                 for i in range(len(first["bias"]))],
           "correlation of contributions along the mesh's edges: 1 smooth, 0 noise",
           "“more spatially coherent” than those of the image nets")
    study.number("completeness", float(first["completeness"].max()),
                 note="worst |output − all terms| over the explained shapes, relative")
    study.number("exactness", float(first["exactness"].max()), note="worst disagreement of the bias's two routes")
    share = first["bias"] / first["output"]
    number("first/bias over output", share.tolist(), "b / f(x)")


def likeness(this: Run, seen: dict, count: int) -> None:
    """Figure 5."""
    first, shapes = seen["first"], this.shapes
    plain = [analysis.similarity(first["vectors"][:, k]) for k in range(TOP)]
    spaces = first["spaces"]
    order = torch.linalg.eigh(plain[0]).eigenvectors[:, -2:].select(1, 1).argsort()
    for k in range(TOP):
        for name, matrix in (("inner product", plain[k].abs()), ("subspace", spaces[k])):
            values = analysis.off_diagonal(matrix).reshape(count, count - 1).mean(1)
            this.study.number(f"similarity/vector {k + 1}/{name}", float(values.mean()),
                              analysis.interval(values, this.study.generator(10 + k)),
                              "mean over pairs of shapes, 95 % bootstrap over shapes" + (
                                  ", absolute" if name == "inner product" else f", λ within {analysis.CLOSE:.0%} taken "
                                  "as one space"), "falls from the first vector to the third" if k == 0 else "")
    other = (first["vectors"][:, 0].flatten(1) @ first["vectors"][:, 1].flatten(1).T).abs()
    this.study.number("similarity/control", float(analysis.off_diagonal(other).mean()),
                      note="first vectors against other shapes' second ones: what unlike vectors come to")
    every = first["vectors"].flatten(2)
    found = torch.einsum("ikv,jlv->ijkl", every, every).abs().amax((2, 3))
    this.study.number("similarity/any of the three", float(analysis.off_diagonal(found).mean()),
                      note="largest |φ·φ'| between the three of one shape and the three of another",
                      paper="vectors recur at other shapes in another place")
    by_value = analysis.off_diagonal(analysis.similarity(first["leading"]).abs())
    this.study.number("similarity/largest λ", float(by_value.mean()), note="of the vector with the largest λ instead")
    this.study.figure("similarity", figures.similarities([m[order][:, order] for m in plain],
                                                         [m[order][:, order] for m in spaces], shapes.name),
                      "Figure 5: likeness of the vectors between shapes; above as inner products, below as angles to "
                      "the space of the vectors whose singular values are close.")


def evolution(this: Run, seen: dict) -> None:
    """Figures 6 and 7."""
    shapes, number = this.shapes, _means(this)
    names = {"first": "first layer", "middle": "latent space", "penultimate": "penultimate layer"}
    for i in range(1 if this.study.quick else 2):
        views = {}
        for layer in LAYERS:
            one, field = seen[layer], _fields(seen[layer], this.shape(i), i)[0]
            views[layer] = {"field": field, "alpha": one["alpha"][i], "values": one["values"][i],
                            "name": f"{names[layer]}: k = {one['places'][i][0]}, "
                                    f"α = {float(one['coefficients'][i][0]):+.3g}"}
        this.study.figure(f"evolution-{i + 1}", figures.evolution(
            shapes, this.data.metres(this.shape(i)), views,
            f"The top vector and the spectrum through the layers ({shapes.symbol} = "
            f"{float(seen['first']['output'][i]):.3g}{' ' * bool(shapes.unit)}{shapes.unit})"),
            f"Figure {6 if shapes.name == 'car' else 7}: the vector with the largest |α| and all α and λ, from the "
            "first layer to the penultimate one.")
    for layer in LAYERS:
        one = seen[layer]
        number(f"{layer}/contributions that matter", [analysis.participation(a) for a in one["alpha"]],
               "(Σ|α|)² / Σα²", "the spectrum narrows with depth" if layer == "penultimate" else "")
        number(f"{layer}/share of the first vector", [float(a[0].abs() / a.abs().sum()) for a in one["alpha"]],
               "|α₀| / Σ|α|, of the vector with the largest λ",
               "“uses the first SV almost exclusively”" if layer == "penultimate" else "")
        number(f"{layer}/share of the top vector", [float(a.abs().max() / a.abs().sum()) for a in one["alpha"]],
               "largest |α| / Σ|α|")
        number(f"{layer}/effective rank", [float(v.sum() ** 2 / v.square().sum()) for v in one["values"]],
               "(Σλ)² / Σλ²")
        number(f"{layer}/survivors", [len(r) for r in one["reduced"]], "components left by the reduction (21)")
        tops = [_fields(one, this.shape(i), i)[0] for i in range(len(one["bias"]))]
        if layer != "first":
            number(f"{layer}/coherence of the top vector", [analysis.coherence(t, shapes.edges) for t in tops],
                   "as for the first layer", "“spatial coherence increases”")
            before = seen["first"]
            number(f"{layer}/likeness to the first layer's", [abs(analysis.cosine(a, b)) for a, b in zip(
                one["vectors"][:, 0], before["vectors"][:, 0], strict=True)], "|φ·φ'| of the top vectors",
                "“the similarity of the SV's from each layer”")
            number(f"{layer}/vertices of another sign", [float(((t > 0) != (_fields(before, this.shape(i), i)[0] > 0))
                   .float().mean()) for i, t in enumerate(tops)], "share, against the first layer's top vector",
                   "“certain regions shift the sign of their contributions”")


def symmetry(this: Run, seen: dict) -> None:
    """The mirror symmetry of vectors and contributions as numbers."""
    shapes, number = this.shapes, _means(this)
    claim = ("“respect the symmetry of the design”" if shapes.name == "car" else
             "“does not concentrate on the geometric features in a symmetric way”")
    sample = this.data.x[:200].flatten(1)
    space = torch.linalg.svd(sample - sample.mean(0), full_matrices=False)
    inside = space.Vh[space.S[0] * 1e-3 < space.S]
    for layer in LAYERS:
        one = seen[layer]
        count = len(one["bias"])
        tops = [_fields(one, this.shape(i), i)[0] for i in range(count)]
        number(f"{layer}/asymmetry/contributions", [analysis.asymmetry(t, shapes.mirror) for t in tops],
               "‖c − Mc‖ / 2‖c‖ of the top vector: 0 mirror-symmetric, 0.71 by chance, 1 opposite", claim)
        number(f"{layer}/asymmetry/vectors", [analysis.vector_asymmetry(v, shapes) for v in one["vectors"][:, 0]],
               "the same of φ")
        outside = [float((v.flatten() - inside.T @ (inside @ v.flatten())).norm()) for v in one["vectors"][:, 0]]
        number(f"{layer}/asymmetry/outside the data", outside, "part of φ in directions in which no training shape "
               "varies: what is left of the random start")
    if "blade 1" in shapes.parts:
        blades(this, seen, number)


def blades(this: Run, seen: dict, number) -> None:
    """How the three blades, which are copies of each other, are read."""
    shapes, first = this.shapes, seen["first"]
    masks = [shapes.parts[f"blade {k}"] for k in (1, 2, 3)]
    tops = [_fields(first, this.shape(i), i)[0] for i in range(len(first["bias"]))]
    parts = [[t[m] for m in masks] for t in tops]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        number(f"blades/{a + 1} and {b + 1}", [analysis.correlation(p[a], p[b]) for p in parts],
               "correlation of the top vector's contributions at corresponding vertices",
               "“different contributions from each blade separately”" if (a, b) == (0, 1) else "")
    sizes = torch.stack([torch.stack([part.abs().sum() for part in p]) for p in parts])
    shares = sizes / torch.stack([t.abs().sum() for t in tops])[:, None]
    for k in range(3):
        number(f"blades/share of {k + 1}", shares[:, k].tolist(), "of the top vector's Σ|c|")
    total = [(first["gradient"][i] * this.shape(i)).sum(0) for i in range(len(tops))]
    number("blades/share of the tower", [float(t[shapes.parts["tower"]].abs().sum() / t.abs().sum()) for t in total],
           "of Σ|c| of all vectors; the formula reads the tower's height (wind) and not its radius")


def contraction(this: Run, seen: dict) -> None:
    """Figure 11."""
    shapes, first, number = this.shapes, seen["first"], _means(this)
    rows = []
    for kind in ("contracted with the shape", "averaged over x, y, z"):
        fields = (_fields(first, this.shape(0), 0) if kind.startswith("contracted") else
                  [w * f.mean(0) for w, f in zip(first["weights"][0], first["vectors"][0], strict=True)])
        rows.append({"name": kind, "vertices": this.data.metres(this.shape(0)), "fields": fields,
                     "titles": [f"k = {k}" for k in first["places"][0]]})
    this.study.figure("contraction", figures.contributions(
        shapes, rows, "The same three vectors, contracted with the shape and averaged",
        ["largest |α|", "second", "third"], "above, red raises and blue lowers the quantity; below, colours are the "
        "sign of the average and say nothing of it.  Each picture at ± the number above it."),
        "Figure 11: contraction (23) above, averages over the coordinates below, which give a false impression of what "
        "a point contributes.")
    pairs = [(_fields(first, this.shape(i), i)[0], first["weights"][i][0] * first["vectors"][i][0].mean(0))
             for i in range(len(first["bias"]))]
    number("contraction/correlation with averages", [analysis.correlation(*pair) for pair in pairs],
           "of the top vector's contracted and averaged maps", "averages “give a false impression”")
    number("contraction/vertices of another sign", [float(((a > 0) != (b > 0)).float().mean()) for a, b in pairs],
           "share of vertices where the average has the other sign")


def biases(this: Run, found: dict) -> None:
    """Figure 10."""
    shapes, number = this.shapes, _means(this)
    names = list(found["shares"])
    last = names[-3:]
    terms = found["first"]
    this.study.figure("biases", figures.bias_clouds(shapes, [
        *((f"β of {name}, {100 * float(found['shares'][name][0]):.0f} % of f", terms["layers"][name]) for name in last),
        ("b, all biases together", terms["bias"]), ("J x", terms["linear"]), ("f(x) = J x + b", terms["output"]),
        ("x", this.shape(0))], f"Bias contributions to a reconstructed {shapes.name}"),
        "Figure 10: (a) the bias contributions of the decoder's three layers, (b) the total, and what it is added to.")
    claim = "“the bulk of the reconstructed shape” from the last two layers"
    for name in names:
        number(f"biases/{name}", found["shares"][name].tolist(), "β·f / ‖f‖²; with J x these add up to 1",
               claim if name in last[-2:] else "")
    number("biases/all", found["all"].tolist(), "b·f / ‖f‖²")
    number("biases/last two layers", sum(found["shares"][name] for name in last[-2:]).tolist(), "together", claim)
    number("biases/roughness/reconstruction", found["roughness"]["output"].tolist(),
           "length of an edge over the size of the shape: 1.4 for noise")
    for name in last:
        number(f"biases/roughness/{name}", found["roughness"][name].tolist(), "as above", "“noisy point clouds”")
    number("biases/roughness/sum", found["roughness"]["bias"].tolist(), "of b",
           "“their sum results in a highly structured shape”")


def interactive(this: Run, seen: dict) -> None:
    """The page's shapes that can be turned, with every vector to choose from."""
    shapes, scenes = this.shapes, []
    for i in range(SHOWN):
        x, maps = this.shape(i), []
        for layer in LAYERS:
            one = seen[layer]
            maps += [(f"{layer} layer, k = {k}, α = {float(a):+.3g}", field) for k, a, field in zip(
                one["places"][i], one["coefficients"][i], _fields(one, x, i), strict=True)]
        maps.append(("all vectors, Jᵀ∘x", (seen["first"]["gradient"][i] * x).sum(0)))
        scenes.append((f"{shapes.symbol} = {float(seen['first']['output'][i]):.3g} {shapes.unit}".strip(),
                       this.data.metres(x), maps))
    this.study.page3d("turn", page.viewer(shapes, scenes), f"Drag to turn, wheel to come nearer: three {shapes.name}s, "
                      "and the contributions of the vectors of three layers. Red raises, blue lowers.")


# ---- parts

def _nets(kept: dict, shapes: ShapeSet) -> Trained:
    net, head = AutoEncoder(shapes.vertices), regressor()
    net.load_state_dict(kept["autoencoder"])
    head.load_state_dict(kept["head"])
    return Trained(net.eval(), head.eval(), kept["losses"])


def _views(this: Run, count: int) -> dict:
    """{layer: what `analysis.view` finds at each of `count` test shapes, stacked where sizes agree}.

    In float64: the first layer takes small differences of large coordinates, of which float32 holds four digits.
    """
    found, net = {}, copy.deepcopy(this.trained.composed).double()
    for layer, name in LAYERS.items():
        views = [analysis.view(net, this.shape(i).double(), name) for i in range(count)]
        one = {key: torch.stack([getattr(v, key) for v in views]).float()
               for key in ("vectors", "weights", "coefficients", "gradient")}
        one |= {key: torch.tensor([getattr(v, key) for v in views])
                for key in ("output", "bias", "completeness", "exactness")}
        one |= {key: [getattr(v, key) for v in views] for key in ("values", "alpha", "reduced", "places")}
        if layer == "first":
            one["leading"] = torch.stack([v.leading for v in views]).float()
            one["spaces"] = [analysis.subspace_similarity(torch.stack([v.vectors[k] for v in views]),
                                                          [v.groups[k] for v in views]) for k in range(TOP)]
        found[layer] = one
    return found


def _fields(one: dict, x: Tensor, place: int) -> list[Tensor]:
    """(V,) contributions ψ λ Σ_xyz φ ∘ x of the top vectors at the shape of that place."""
    return [w * (f * x).sum(0) for w, f in zip(one["weights"][place], one["vectors"][place], strict=True)]


def _biases(this: Run, count: int) -> dict:
    edges, net = this.shapes.edges, copy.deepcopy(this.trained.autoencoder).double()
    all_terms = [analysis.biases(net, this.shape(i).double()) for i in range(count)]
    names = list(all_terms[0]["layers"])
    rough = {name: torch.tensor([analysis.roughness(t["layers"][name], edges) for t in all_terms]) for name in names}
    rough |= {key: torch.tensor([analysis.roughness(t[key], edges) for t in all_terms]) for key in ("bias", "output")}
    return {"first": all_terms[0], "roughness": rough,
            "shares": {name: torch.tensor([analysis.share(t["layers"][name], t["output"]) for t in all_terms])
                       for name in names},
            "all": torch.tensor([analysis.share(t["bias"], t["output"]) for t in all_terms])}


def _means(this: Run):
    """A function that reports the mean of values, one a shape, with its bootstrap interval."""
    def number(path: str, values: list, note: str, paper: str = "") -> None:
        values = torch.as_tensor(values, dtype=torch.float64)
        this.study.number(path, float(values.mean()), analysis.interval(values, this.study.generator(3)),
                          f"{note}; mean over {len(values)} test {this.shapes.name}s, 95 % bootstrap", paper)

    return number
