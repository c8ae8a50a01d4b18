"""The explanations of a whole batch from what was found of it: arithmetic on the batch's device, then a few copies.

The formulas are those of `specxai.explain` with a leading axis B.  Nothing here waits for a device once an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specxai.affine.batch import Batch
from specxai.affine.target import without_batch
from specxai.spectral.decompose import Request, agreement_of, settings_of, signs_of
from specxai.spectral.explanation import Explanation
from specxai.svd.dense import DenseSVDs

__all__ = ["Found", "Products", "explanations"]

AT_ONCE = 8 << 20  # bytes of vectors: they stay in a cache of the CPU, and copies from a device use memory again


@dataclass(frozen=True)
class Found:
    """The R_i of a batch, decomposed.

    svds       on their device;  image (B, m_s) of each input under its R_i
    columns    sent through R and back;  settings of the solver
    """

    svds: DenseSVDs
    image: Tensor
    columns: int
    settings: Mapping[str, object]


@dataclass(frozen=True)
class Products:
    """What products with the targets' weights w (B, m) give at each input of a batch.

    pulled (B, m_s) Lᵀw;  gradient (B, n) Jᵀw;  bypass (B,), bypass_gradient (B, n)   the part of paths round the layer
    output, bias, bias_contributions   (B,) float64: w·f(x), w·b and {layer: w·β_l}
    around     is there a path round the layer?
    """

    pulled: Tensor
    gradient: Tensor
    bypass: Tensor
    bypass_gradient: Tensor
    output: Tensor
    bias: Tensor
    bias_contributions: Mapping[str, Tensor]
    around: bool


def explanations(batch: Batch, request: Request, layer: str, shape: torch.Size, found: Found, w: Tensor,
                 labels: Sequence[str], products: Products, backends: Mapping[str, str]) -> list[Explanation]:
    """The explanation of each input of a batch, without a Local.

    shape      (1, ...) of the layer at one input
    labels     of the targets whose weights are w
    backends   as an Explanation has them
    """
    local, svds = batch.local, found.svds
    counts, inner = svds.counts.tolist(), without_batch(local.input[:1].shape)
    x, S = batch.parts(local.input.reshape(-1).to(svds.V.dtype)), svds.S.to(svds.U.dtype).double()
    kept = torch.arange(S.shape[1], device=S.device) < svds.counts[:, None]
    left, right, projections, psi = [], [], [], []
    some = max(1, AT_ONCE // max(1, svds.U[:1].nbytes + svds.V[:1].nbytes))
    for part in (slice(start, start + some) for start in range(0, batch.count, some)):
        U, V = svds.U[part].mT, svds.V[part].mT
        projected = (V.double() @ x[part].double()[..., None])[..., 0]
        signs = signs_of(torch.where(kept[part], projected, 1.0), V)
        projections.append(projected.abs())
        psi.append((U.double() @ products.pulled[part].double()[..., None])[..., 0] * signs)
        for vectors, rows, own in ((left, U, without_batch(shape)), (right, V, inner)):
            # One pass that turns and signs them, on their device, then a copy to where they belong.
            turned = torch.mul(rows, signs[..., None].to(rows.dtype), out=torch.empty(
                rows.shape, dtype=rows.dtype, device=rows.device)).cpu()
            vectors.extend(_each(turned.reshape(*turned.shape[:2], *own), counts[part]))
    projections, psi = torch.cat(projections), torch.cat(psi)
    alpha = psi * S * projections
    # Not y − b − Σα: this way the sum of all terms against the output is a check, not an identity.
    remainder = (products.pulled.double() * found.image.double()).sum(1) - torch.where(kept, alpha, 0).sum(1)
    numbers = torch.stack([svds.errors, svds.norms, svds.floors, products.output, products.bias, products.bypass,
                           remainder]).cpu().tolist()
    biases = [values.tolist() for values in products.bias_contributions.values()]
    rows = torch.stack([S, alpha, psi, projections, svds.residuals]).cpu()
    largest = rows[0, :, 0].tolist()
    indices = torch.arange(S.shape[1], device="cpu").expand(len(S), -1)
    blocks = [_each(block, counts) for block in (*rows, indices)]
    wholes = [torch.unbind_copy(value.cpu().reshape(len(S), *own)) for value, own in (
        (w, (-1,)), (x, inner), (products.gradient, inner), (products.bypass_gradient, inner))]
    shared = settings_of(local, request, dict(found.settings))
    agreement, exactness = agreement_of(local), local.exactness_of(batch.count).tolist()
    made = []
    for i, label in enumerate(labels):
        (error, norm, floor, output, bias, bypass, rest), own = (row[i] for row in numbers), [row[i] for row in blocks]
        target, at, gradient, back = (row[i] for row in wholes)
        solver = {**shared["svd"], "norm": norm, "floor": floor, "estimate": error,
                  "converged": request.rank is not None or request.tol is None or error <= request.tol * norm}
        if counts[i]:
            solver["lambda_1"] = largest[i]
        made.append(Explanation(
            layer=layer, target=target, target_label=label, S=own[0], alpha=own[1], psi=own[2], projections=own[3],
            residuals=own[4], indices=own[5], right_vectors=right[i], left_vectors=left[i], x=at, output=output,
            bias=bias, bypass=bypass, remainder=rest,
            bias_contributions={name: values[i] for name, values in zip(products.bias_contributions, biases,
                                                                        strict=True)},
            gradient=gradient, bypass_gradient=back, exactness=exactness[i], error=error, method="exact",
            products=found.columns, gates=local.gates, backend=local.backend, seed=request.seed,
            settings={**shared, "svd": solver, "bypass": products.around}, agreement=agreement,
            backends=dict(backends)))
    return made


def _each(block: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """The first rows of each of a block (B, k, ...), in storage of its own: a view would keep all of the batch."""
    sizes = [size for count in counts for size in (count, block.shape[1] - count)]
    return torch.split_with_sizes_copy(block.flatten(0, 1), sizes)[::2]
