"""The pullback of a layer's metric to the input, its leading directions: the singular vectors of ∂h/∂x.

Editing methods for diffusion models and generators move x along the right singular vectors V of R = ∂h/∂x, which change
the layer h most.  They find them by power iterations that run the model again in each; here the model is linearised
once, and what iterates are products with its linear map.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from specxai.affine.captured import linearize
from specxai.affine.local import Split
from specxai.operators import SelectionOperator, ZeroOperator
from specxai.precision import full_precision
from specxai.spectral.decompose import Request, decomposed, find_local, solved
from specxai.spectral.decomposition import Decomposition

__all__ = ["pullback"]

# Of a residual, relative to λ₁.  A direction is as far off as its residual is large beside the gap to the next singular
# value, of which a per cent of λ₁ is little: then this is an angle of 1e-3.
TOLERANCE = 1e-5


def pullback(model, x: Tensor | None = None, layer=None, rank: int | None = 5, mask: Tensor | None = None,
             kwargs: dict | None = None, *, tol: float | None = None, method: str = "auto", seed: int = 0,
             progress: bool | None = None, start: Decomposition | Tensor | None = None, gates: str | None = None,
             backend: str | None = None, output=None) -> Decomposition:
    """The `rank` directions of the input that change a layer's output most: top singular triplets of ∂h/∂x.

    model    an nn.Module, a captured model, or a Local
    x        the input, shape (1, ...); not with a Local
    layer    dotted name of a module or the module object; None for the model's output, as of a generator
    rank     triplets; None for all of them, exactly: an input of few units, such as 512 latents, takes as many columns
    mask     True or 1 for the input's units that may change, of x's shape or one that broadcasts to it, such as (H, W);
             V is zero elsewhere
    kwargs   what the model gets beside x, such as {"timestep": 500, "encoder_hidden_states": c}
    tol      of a residual, relative to λ₁; by default 1e-5, which makes directions exact to about 1e-3 where
             neighbouring singular values differ by a per cent of λ₁
    method, seed, progress, start   as for `specxai.decompose`;  gates, backend, output   as for `specxai.linearize`:
             ∂h/∂x is the true Jacobian with gates="tangent", the default

    Returns a `Decomposition`: U (m, k), S (k,), V (n, k), `residuals`, signs fixed so that v·x ≥ 0; `p.V[:, 0].reshape(
    p.input_shape)` is a direction.  It saves and loads.  A masked one, and one of the output, hold no Local.

    Raises ValueError or TypeError for an argument out of range, LayerError for a name that is no layer.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.Conv2d(4, 1, 3)).eval()
    >>> mask = torch.zeros(8, 8, dtype=torch.bool)
    >>> mask[:4] = True
    >>> p = specxai.pullback(net, torch.randn(1, 1, 8, 8), layer="1", rank=2, mask=mask)
    >>> p.U.shape, p.V.shape, bool(p.V.reshape(8, 8, 2)[4:].any())
    (torch.Size([144, 2]), torch.Size([64, 2]), False)
    """
    request = Request.of(rank, TOLERANCE if tol is None and rank is not None else tol, method, seed)
    if layer is not None:
        local, layer = find_local("pullback", model, x, layer, gates=gates, backend=backend, output=output,
                                  kwargs=kwargs)
    elif hasattr(model, "split") and hasattr(model, "jacobian"):
        local = find_local("pullback", model, x, "", gates=gates, backend=backend, output=output, kwargs=kwargs)[0]
    else:
        given = {"gates": gates, "backend": backend, "output": output, "kwargs": kwargs}
        local = linearize(model, x, **{name: value for name, value in given.items() if value is not None})
    chosen = None if mask is None else _chosen(mask, local.input)
    with local.checked(), full_precision(local.input.device):
        split = _whole(local) if layer is None else local.split(layer)
        if chosen is None and layer is not None:
            return decomposed(local, split, request, progress, start)
        if chosen is not None:
            S = SelectionOperator(chosen, local.input.numel(), split.right.dtype, split.right.device)
            split = replace(split, right=split.right @ S.T @ S)
        found = solved(local, split, request, progress, start)
    return found if chosen is None else replace(found, settings={**found.settings, "mask": len(chosen)})


def _whole(local) -> Split:
    """The model's output as a layer of its own."""
    output = local.captured.program.output
    around = ZeroOperator(local.input.shape, local.output.shape, local.jacobian.dtype, local.input.device)
    return Split("output", local.jacobian, local.operator([output], [output]), around, local.output.shape,
                 lambda: local.output)


def _chosen(mask: Tensor, x: Tensor) -> Tensor:
    """The flat places of the units that a mask lets change."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask is a tensor of True and False, or of ones and zeros, got {type(mask).__name__}")
    wanted = mask.detach().to(x.device)
    if wanted.dtype is not torch.bool and not bool(((wanted == 0) | (wanted == 1)).all()):
        raise ValueError("mask holds numbers other than 0 and 1: give True where the input may change")
    try:
        whole = torch.broadcast_to(wanted, x.shape)
    except RuntimeError:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not broadcast to the input's, "
                         f"{tuple(x.shape)}") from None
    places = whole.flatten().nonzero().flatten()
    if not len(places):
        raise ValueError("mask lets no unit of the input change: it is False everywhere")
    return places
