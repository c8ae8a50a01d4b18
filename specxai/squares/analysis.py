"""The numbers behind figures 8 and 9: spectra, coefficients, contractions, biases at one test image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import specxai
from specxai.operators import DenseOperator
from specxai.squares.model import SquaresNet


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


def analyse(net: SquaresNet, x: Tensor) -> Analysis:
    """Everything about a net at the image x (h, w)."""
    local = specxai.linearize(net, x.unsqueeze(0))
    result = specxai.svd(local.jacobian, method="exact", progress=False)
    spectrum = _spectrum(result, x, images=True)
    layers = {name: part[0] for name, part in local.bias_contributions().items()}
    output, bias = local.output[0], local.bias[0]
    return Analysis(x, output, output - bias, bias, layers, spectrum, local.exactness)


def data_spectrum(images: Tensor, x: Tensor) -> Spectrum:
    """Of the data matrix (N, h·w) with the images (N, h, w) as rows; not centred, as in the paper."""
    result = specxai.svd(DenseOperator(images.flatten(1)), method="exact", progress=False)
    return _spectrum(result, x, images=False)


def _spectrum(result, x: Tensor, images: bool) -> Spectrum:
    excitation = result.V.T @ x.flatten().to(result.V)
    sign = torch.where(excitation < 0, -1.0, 1.0).to(result.V)
    right = (result.V * sign).T.reshape(-1, *x.shape)
    left = (result.U * sign).T.reshape(-1, *x.shape) if images else None
    return Spectrum(result.S, right, left, result.S * excitation.abs(), right * x, result.norm, result.error)
