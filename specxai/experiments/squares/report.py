"""The numbers of the squares, each beside what the paper says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from specxai.experiments.squares.analysis import Analysis, Spectrum
from specxai.experiments.squares.measures import FAINT, angular, cosine, share, visible
from specxai.experiments.squares.train import Settings
from specxai.experiments.study import Study

SHOWN = 4  # vectors of figure 8c
LISTED = 40  # values of the data's spectrum


def report(study: Study, chosen: Settings, data: Spectrum, plain: Analysis, biased: Mapping[str, Analysis],
           found: Mapping) -> None:
    """Write every number of the experiment into the study.

    plain    the map without biases at the first test image, seed 0;  biased   {kind: the map with them}
    found    {(kind, seed): {measure: (images,), "losses", "test_loss", "variance"}}
    """
    study.text(f"Squares of side {chosen.side:g} turned at random on {chosen.size} × {chosen.size} pixels, "
               f"{chosen.train} to train on; fully connected ReLU autoencoders with a bottleneck of "
               f"{chosen.widths[-1]}, {chosen.epochs} epochs. The affine map of each is taken apart at every one of "
               f"{len(found['without-bias', 0]['error'])} test images, in float64; a number with an interval is the "
               "median over these between their 5th and 95th percentile.\n\n"
               "The biases of **with-bias** are trained as fast as its weights, those of **fast-bias** ten times as "
               "fast: the paper supposes that biases are easier to train.")
    _training(study, found)
    _spectra(study, data, plain, found["without-bias", 0])
    for kind, analysis in biased.items():
        _biases(study, kind, data, analysis, found[kind, 0])
    _seeds(study, found)


def _training(study: Study, found: Mapping) -> None:
    for kind in dict.fromkeys(kind for kind, _ in found):
        of = found[kind, 0]
        study.number(f"{kind}/test_r2", 1 - of["test_loss"] / of["variance"],
                     note="1 − mean squared error / variance of the test pixels about their mean image")
        study.number(f"{kind}/losses", of["losses"], note="mean squared error per pixel, by epoch")
        _over(study, f"{kind}/relative_error", of["error"], "‖f(x) − x‖ / ‖x‖")
        study.number(f"{kind}/exactness", of["exactness"].max(), note="the worst over the test images of the "
                     "difference between two routes to the bias, relative to the output")
        if kind != "without-bias":
            study.number(f"{kind}/loss_ratio", of["test_loss"] / found["without-bias", 0]["test_loss"],
                         note="test loss / that without biases",
                         paper="3.1: increased performance over the no-bias network")


def _spectra(study: Study, data: Spectrum, plain: Analysis, of: Mapping) -> None:
    operator = plain.spectrum
    study.number("data/lambda", data.values[:LISTED], note="singular values of the data matrix, images as rows")
    study.number("operator/lambda", operator.values, note="of J at the first test image, network without biases")
    faster = "2.3: the spectrum of the operator decays much faster"
    study.number("data/visible", visible(data.values), note=f"values above {FAINT:.0%} of the largest", paper=faster)
    _over(study, "operator/visible", of["visible"], f"values above {FAINT:.0%} of the largest", faster)
    study.number("data/relative", data.values[:8] / data.values[0], note="λ_k / λ_0")
    study.number("operator/relative", operator.values[:8] / operator.values[0], note="λ_k / λ_0, first test image")
    for name, spectrum, paper in (("data", data, "2.3: clearly circular"),
                                  ("operator", operator, "2.3: more reminiscent of the square, with circular aspects")):
        shares = torch.stack([angular(vector) for vector in spectrum.right[:SHOWN]])
        study.number(f"{name}/angular_frequency", shares.argmax(1),
                     note="of the first right vectors: the strongest frequency about the centre, 0 for a disc or ring")
        study.number(f"{name}/angular_share", shares.max(1).values, note="its share of the energy", paper=paper)
    study.number("operator/c", operator.coefficients, note="c^k (18), first test image",
                 paper="2.3: c⁰ = 5, c¹ = 25, all others ≪ 1")
    for k, paper in enumerate(("2.3: 5", "2.3: 25", "2.3: ≪ 1", "2.3: ≪ 1")):
        _over(study, f"operator/c{k}", of[f"c{k}"], "over the test images", paper)
    study.number("operator/dominant", of["dominant"].mode().values, note="the k with the largest c, at most images",
                 paper="2.3: 1, not 0")
    _over(study, "operator/dominant_share", of["dominant_share"], "its share of ‖J x‖²",
          "2.3: (25² / (25² + 5²) = 0.96)")
    _over(study, "operator/two_shares", of["two_shares"], "share of ‖J x‖² of the two largest", "2.3: nearly all")
    _over(study, "operator/error_of_dominant", of["error_of_dominant"], "‖c u − x‖ / ‖x‖ with the largest alone",
          "2.3: seems sufficient to reconstruct the square")
    _over(study, "operator/left_right", of["left_right"], "|u · φ| of the component with the largest c",
          "2.3: U and V are complementary but have significant differences")
    square = "2.3: more reminiscent of the square than the data's vectors"
    study.number("data/input", abs(cosine(data.right[0], plain.x)), note="|cos| of φ_0 and the first test image")
    _over(study, "operator/right_input", of["right_input"], "|φ · x| / ‖x‖ of the component with the largest c", square)
    _over(study, "operator/left_input", of["left_input"], "|u · x| / ‖x‖ of the component with the largest c", square)


def _biases(study: Study, kind: str, data: Spectrum, biased: Analysis, of: Mapping) -> None:
    bulk = "3.1: the bulk is generated by the bias terms"
    _over(study, f"{kind}/share", of["bias_share"], "b · f(x) / ‖f(x)‖²", bulk)
    _over(study, f"{kind}/decoder_share", of["decoder_share"], "of the decoder's biases alone", bulk)
    _over(study, f"{kind}/last_share", of["last_share"], "of the last layer's bias alone",
          "3.1: the last two layers bring the bulk (said of the 3-D data, similar to these)")
    edges = "3.1: the singular vectors only correct the edges"
    _over(study, f"{kind}/linear_edge", of["linear_edge"],
          "share of ‖J x‖² where some squares reach and others do not", edges)
    _over(study, f"{kind}/bias_edge", of["bias_edge"], "share of ‖b‖² there", edges)
    _over(study, f"{kind}/linear_bulk", of["linear_bulk"], "share of ‖J x‖² where every square reaches", edges)
    _over(study, f"{kind}/bias_bulk", of["bias_bulk"], "share of ‖b‖² there", edges)
    aligned = "3.1: the bias of the last decoder layer aligns nicely with the top vector of the data"
    _over(study, f"{kind}/last_data", of["last_data"], "|cos| of β of the last layer and φ_0 of the data", aligned)
    _over(study, f"{kind}/sum_data", of["bias_data"], "|cos| of b and φ_0 of the data")
    study.table(f"{kind}-by-layer", [
        {"layer": name, "‖β‖": part.norm().item(), "share of f(x)": share(part, biased.output),
         "cos with φ_0 of the data": cosine(part, data.right[0])} for name, part in biased.layers.items()],
        f"{kind}: the bias of every layer at the first test image (9), its norm, its share β · f(x) / ‖f(x)‖² of the "
        "output, and its cosine with the first singular vector of the data.")


def _seeds(study: Study, found: Mapping) -> None:
    """One training shows one of several solutions."""
    biased = {"error": "relative error", "bias_share": "share of the biases", "last_share": "of the last",
              "linear_edge": "‖J x‖² at the edge", "bias_edge": "‖b‖² at the edge",
              "last_data": "|cos| of last β and φ_0", "bias_data": "|cos| of b and φ_0"}
    columns = {
        "without-bias": {"error": "relative error", "visible": "values above 1 %", "dominant": "dominant k",
                         "dominant_share": "its share of ‖J x‖²", "c0": "c⁰", "c1": "c¹"},
        "with-bias": biased, "fast-bias": biased,
    }
    for kind, names in columns.items():
        rows = [{"seed": seed, **{title: found[kind, seed][name].median() for name, title in names.items()}}
                for seed in range(len(found) // len(columns))]
        study.table(f"seeds-{kind}", rows, f"{kind}: trainings from other weights on the same images: "
                    "medians over the test images.")


def _over(study: Study, path: str, values: Tensor, note: str, paper: str = "") -> None:
    """The median over the test images, between their 5th and 95th percentile."""
    low, high = torch.quantile(values, torch.tensor([0.05, 0.95], dtype=values.dtype)).tolist()
    study.number(path, values.median(), (low, high), note, paper)
