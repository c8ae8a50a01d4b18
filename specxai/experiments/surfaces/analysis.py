"""Explanations of the composed net at many shapes, and the numbers that the paper's claims of section 2.2 come down to.

Vectors are fields (3, V) over the vertices; a contraction c = Σ_xyz φ ∘ x (23) is one number a vertex (V,).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import specxai
from specxai.experiments.surfaces.mesh import ShapeSet
from specxai.experiments.surfaces.nets import FIRST, MIDDLE, PENULTIMATE

LAYERS = {"first": FIRST, "middle": MIDDLE, "penultimate": PENULTIMATE}
TOP = 3
CLOSE = 0.10  # relative gap between neighbouring singular values below which their vectors are compared as a space


@dataclass(frozen=True)
class View:
    """One shape seen from one layer.

    values, alpha (r,) λ and α;  reduced (s,) what the reduction (21) leaves;  vectors (TOP, 3, V) φ of the largest |α|,
    their `places` in the spectrum and `coefficients` α;  leading (3, V) the φ of the largest λ;  groups: bases
    (n, 3, V) of the singular vectors whose λ lie within CLOSE of each other and hold the vector;  weights (TOP,) ψ λ;
    gradient (3, V) Jᵀ;  output, bias;  completeness: how well all terms add up;  exactness: of the bias found twice
    """

    values: Tensor
    alpha: Tensor
    reduced: Tensor
    vectors: Tensor
    leading: Tensor
    groups: list[Tensor]
    places: list[int]
    coefficients: Tensor
    weights: Tensor
    gradient: Tensor
    output: float
    bias: float
    completeness: float
    exactness: float


def view(net: nn.Module, x: Tensor, layer: str) -> View:
    """The explanation of the quantity at one shape x (3, V), read at a layer."""
    e = specxai.explain(net, x[None], layer, target=0, rank=None, progress=False)
    top = e.top(TOP, by="alpha")
    if len(top) < TOP:
        raise ValueError(f"layer {layer} has {len(top)} components at this shape, fewer than {TOP}: its units are "
                         "closed, so training has failed; train for longer, or with another seed")
    return View(e.S, e.alpha, e.reduce().values, e.right_vectors[top], e.right_vectors[0],
                [e.right_vectors[close(e.S, k)] for k in top], top, e.alpha[top], (e.psi * e.S)[top], e.gradient,
                e.output, e.bias, e.completeness, e.exactness)


def close(values: Tensor, k: int) -> list[int]:
    """Places of the singular values (r,), descending, that form a chain of close ones with place k.

    >>> close(torch.tensor([3.0, 1.05, 1.0, 0.5]), 2)
    [1, 2]
    """
    low = high = k
    while low > 0 and values[low - 1] * (1 - CLOSE) <= values[low]:
        low -= 1
    while high + 1 < len(values) and values[high] * (1 - CLOSE) <= values[high + 1]:
        high += 1
    return list(range(low, high + 1))


# ---- across the set (figure 5)

def similarity(vectors: Tensor) -> Tensor:
    """(n, n) inner products of unit vectors (n, 3, V); signed, since φ·x ≥ 0 fixes the signs."""
    flat = vectors.flatten(1).double()
    return flat @ flat.T


def subspace_similarity(vectors: Tensor, groups: list[Tensor]) -> Tensor:
    """(n, n) cosines of the angle between each vector (n, 3, V) and the other's space, the mean of both ways.

    Where a vector's singular value stands alone this is |φ·φ'|; where several are close the vector is one of many that
    rounding picks from their space, and only the space can be compared.
    """
    flat = vectors.flatten(1).double()
    inside = torch.stack([(flat @ group.flatten(1).double().T).norm(dim=1) for group in groups], 1)
    return (inside + inside.T) / 2


def off_diagonal(matrix: Tensor) -> Tensor:
    """(n·(n−1),) the entries that compare different shapes."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


# ---- through the layers (figures 6 and 7)

def participation(alpha: Tensor) -> float:
    """(Σ|α|)² / Σα²: how many contributions matter; 1 where one does all, r where r are equal."""
    return float(alpha.abs().sum() ** 2 / alpha.square().sum().clamp(min=1e-300))


def coherence(field: Tensor, edges: Tensor) -> float:
    """Correlation of a field (V,) between the two ends of the mesh's edges: Moran's I; 1 for smooth, 0 for noise."""
    centred = field.double() - field.double().mean()
    return float((centred[edges[:, 0]] * centred[edges[:, 1]]).mean() / centred.square().mean().clamp(min=1e-300))


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's, of two fields."""
    pair = torch.stack([one.flatten(), other.flatten()]).double()
    return float(torch.corrcoef(pair)[0, 1])


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two fields."""
    return float(torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


# ---- symmetry

def asymmetry(field: Tensor, mirror: Tensor) -> float:
    """‖c − Mc‖ / 2‖c‖ of a field (V,): 0 where it is mirror-symmetric, 1 where the sides are opposite, √½ by chance."""
    difference = (field - field[mirror]).double().norm()
    return float(difference / (2 * field.double().norm()).clamp(min=1e-300))


def vector_asymmetry(vector: Tensor, shapes: ShapeSet) -> float:
    """The same of a vector (3, V), whose y turns round in the mirror."""
    difference = (vector - shapes.reflect(vector)).double().norm()
    return float(difference / (2 * vector.double().norm()))


def by_part(field: Tensor, shapes: ShapeSet) -> dict[str, float]:
    """{part: sum of a field (V,) over it}."""
    return {name: float(field[mask].double().sum()) for name, mask in shapes.parts.items()}


# ---- biases (figure 10)

def biases(autoencoder: nn.Module, x: Tensor) -> dict:
    """At a shape x (3, V): {"layers": {name: β_l (3, V)}, "bias": b, "output", "linear"} of f(x) = J x + Σ β_l."""
    local = specxai.linearize(autoencoder, x[None])
    parts = {name: part[0] for name, part in local.bias_contributions().items()}
    bias, output = local.bias[0], local.output[0]
    return {"layers": parts, "bias": bias, "output": output, "linear": output - bias, "exactness": local.exactness}


def share(part: Tensor, output: Tensor) -> float:
    """part · f / ‖f‖²: signed, and over J x and all β_l it adds up to 1."""
    return float((part.double() * output.double()).sum() / output.double().square().sum())


def roughness(points: Tensor, edges: Tensor) -> float:
    """How far points (3, V) jump along the mesh's edges, relative to their spread: 1.4 for noise, near 0 for a surface.

    Root mean square length of an edge over the root mean square distance from the middle.
    """
    points = points.double()
    steps = (points[:, edges[:, 0]] - points[:, edges[:, 1]]).square().sum(0).mean().sqrt()
    return float(steps / (points - points.mean(1, keepdim=True)).square().sum(0).mean().sqrt().clamp(min=1e-300))


def interval(values: Tensor, generator: torch.Generator, resamples: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of (n,) values, one a shape."""
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values.double()[picks].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return (low, high) if math.isfinite(low) else (float(values.mean()),) * 2
