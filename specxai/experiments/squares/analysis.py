"""The numbers behind figures 8 and 9: spectra, coefficients, contractions, biases at one test image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import specxai
from specxai.experiments.squares.model import SquaresNet
from specxai.operators import DenseOperator
from specxai.spectral import fix_signs


@dataclass(frozen=True)
class Spectrum:
    """Singular triplets of a matrix that reads images (h, w), signs fixed so that φ_k · x ≥ 0.

    Attributes:
        values: (k,) λ, descending.
        right: (k, h, w) φ.
        left: (k, h, w) columns of U, where the outputs are images; None for a data matrix, whose outputs are rows.
        coefficients: (k,) c_k = λ_k φ_k · x (18).
        contraction: (k, h, w) φ_k · x (23): with one channel, the product at every pixel.
        norm: ‖matrix‖_F.
        error: bound of ‖matrix − U diag(λ) Vᵀ‖_F.
    """

    values: Tensor
    right: Tensor
    left: Tensor | None
    coefficients: Tensor
    contraction: Tensor
    norm: float
    error: float

    @property
    def shares(self) -> Tensor:
        """(k,) c_k² / Σ c²: shares of the energy ‖J x‖², since the left vectors are orthonormal."""
        return self.coefficients**2 / (self.coefficients**2).sum().clamp(min=1e-30)


@dataclass(frozen=True)
class Analysis:
    """f at one image: input, output, J x and b as images (h, w); β_l of the layers; the spectrum of J (l_s = L)."""

    x: Tensor
    output: Tensor
    linear: Tensor
    bias: Tensor
    layers: dict[str, Tensor]
    spectrum: Spectrum
    exactness: float


class Closed(ValueError):
    """At this image no unit of a layer is open: the biases alone make the output, and J has no vectors."""


def analyse(net: SquaresNet, x: Tensor) -> Analysis:
    """Everything about a net at the image x (h, w)."""
    local = specxai.linearize(net, x.unsqueeze(0))
    result = specxai.svd(local.jacobian, method="exact", progress=False)
    if not result.rank:
        raise Closed("J is zero at this image: no unit of the bottleneck is open; where that is so at every image, "
                     "training has failed, and more epochs or another seed may help")
    spectrum = _spectrum(result, x, images=True)
    layers = {name: part[0] for name, part in local.bias_contributions().items()}
    output, bias = local.output[0], local.bias[0]
    return Analysis(x, output, output - bias, bias, layers, spectrum, local.exactness)


def data_spectrum(images: Tensor, x: Tensor) -> Spectrum:
    """Of the data matrix (N, h·w) with the images (N, h, w) as rows; not centred, as in the paper."""
    result = specxai.svd(DenseOperator(images.flatten(1)), method="exact", progress=False)
    return _spectrum(result, x, images=False)


def _spectrum(result, x: Tensor, images: bool) -> Spectrum:
    left, right = result.U.T.clone(), result.V.T.clone()
    coefficients = result.S * fix_signs(left, right, x.flatten()).to(result.S)
    right = right.reshape(-1, *x.shape)
    left = left.reshape(-1, *x.shape) if images else None
    return Spectrum(result.S, right, left, coefficients, right * x, result.norm, result.error)
