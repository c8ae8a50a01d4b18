"""From a model and an input to an Explanation: paper eqs. (16)-(20)."""

from __future__ import annotations

from typing import Literal

import torch

from specxai.affine.target import resolve_target
from specxai.backends.used import used
from specxai.precision import full_precision
from specxai.spectral.contraction import project
from specxai.spectral.decompose import Request, decomposed, find_local, host, joined
from specxai.spectral.decomposition import Decomposition
from specxai.spectral.explanation import Explanation

__all__ = ["explain"]


def explain(model, x: torch.Tensor | None = None, layer=None, target=None,
            rank: int | Literal["auto"] | None = "auto", tol: float | None = None, method: str = "auto",
            seed: int = 0, gates: str | None = None, backend: str | None = None, progress=None, *, output=None,
            kwargs=None, local=None) -> Explanation:
    """Read one output of a network as a sum of spectral contributions, eq. (20): y = Σ ψ_k λ_k (φ_k·x) + b.

    At x the network is y = Jx + b, and J = L·R + bypass at a layer.  R = UΣVᵀ gives α_k = ψ_k λ_k (φ_k·x) with
    ψ = Uᵀ(Lᵀw) for target weights w.  What no contribution covers is a term of its own: the bias, the paths round the
    layer (bypass), and the components not computed (remainder).

    model     an nn.Module, a captured model, a Local from `specxai.linearize` (then `x` is not given), or a
              Decomposition from `specxai.decompose` (then nothing of what made it is).  Pass a Local to explain several
              layers or targets of one input: it keeps its last decompositions, see `specxai.decompose`, and each
              further target of a layer costs a few products
    x         the input, shape (1, *input_shape)
    layer     dotted name of a module ("features.12", "relu#2") or the module object
    target    None for the predicted class, an int, a tuple over the output's axes, weights (m,) or of the output's
              shape (a difference of logits), or a callable output -> one of these
    rank      at most how many singular triplets, None for all of them (exact) or for as many as `tol` needs; "auto" is
              None where a `tol` is given and else 50
    tol       with a rank, each residual is brought to tol · λ₁, by default to that of `specxai.svd`, which suits
              pictures and sums; without, the error of the truncated R to tol · ‖R‖_F
    method, seed, progress   as for `specxai.svd`
    gates     "tangent" (eq. 15, the true Jacobian), the default, or "frozen" (eq. 14 with b = 0)
    backend   "auto", the default, or one of `specxai.backends.NAMES`: "reference", "native", "torch" or "cuda"
    output, kwargs   which output of the model is explained, and what it gets by name, as for `specxai.linearize`
    local     of a Decomposition that was loaded from a file: the Local of the same model and input

    Everything in the result is on the CPU; the vectors keep the model's dtype, the k numbers are float64.  Raises
    ValueError, TypeError or IndexError for an argument that is out of range or contradicts the Local.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> e = specxai.explain(net, torch.ones(1, 4), layer="1", target=2, rank=None)
    >>> e.right_vectors.shape[1:], e.target_label, e.completeness < 1e-5
    (torch.Size([4]), 'output[2]', True)
    """
    found = model if isinstance(model, Decomposition) else None
    if found is not None:
        given = {"x": x is not None, "rank": rank != "auto", "tol": tol is not None, "method": method != "auto",
                 "seed": seed != 0, "gates": gates is not None, "backend": backend is not None,
                 "output": output is not None, "kwargs": kwargs is not None}
        wrong = [name for name, is_given in given.items() if is_given]
        if wrong:
            raise TypeError(f"explain was given a Decomposition and {', '.join(wrong)}: it is decomposed already; "
                            f"leave {'that' if len(wrong) == 1 else 'those'} out (d[:10] has fewer components)")
        local, layer = _local_of(found, local), found.layer if layer is None else layer
    else:
        if local is not None:
            raise TypeError("local= belongs to a Decomposition that was loaded; pass a Local as the first argument")
        request = Request.of(rank, tol, method, seed)
        local, layer = find_local("explain", model, x, layer, gates=gates, backend=backend, output=output,
                                  kwargs=kwargs)
    # The target is checked first: it costs nothing, the decomposition may cost minutes.
    w, label = resolve_target(target, local.output)
    with local.checked(), full_precision(local.input.device):
        split = local.split(layer)
        if found is None:
            found = decomposed(local, split, request, progress)
        elif split.layer != found.layer:
            raise ValueError(f"layer={split.layer!r}, but the Decomposition is of layer {found.layer!r}: leave layer "
                             "out, or decompose that layer")
        return _read(local, split, found, w, label)


def _read(local, split, d: Decomposition, w: torch.Tensor, label: str) -> Explanation:
    """The target w·y from a decomposition."""
    # Under autocast the output's dtype need not be the operators'.
    flat_x, w = local.input.flatten().to(split.right.dtype), w.to(split.left.dtype)
    with used() as names:
        pulled = split.left.rmatvec(w)  # Lᵀw, (m_s,)
        gradient = local.jacobian.rmatvec(w)
        bypass, bypass_gradient = _dot(w, split.bypass.matvec(flat_x)), split.bypass.rmatvec(w)
    # Copies: the decomposition is read by other targets too.
    right, left = (t.T.clone(memory_format=torch.contiguous_format) for t in (d.V, d.U))
    pulled, shape = host(pulled), d.x.shape
    psi = project(left, pulled)
    alpha = psi * d.S * d.projections
    return Explanation(
        layer=d.layer, target=host(w), target_label=label,
        S=d.S.clone(), alpha=alpha, psi=psi, projections=d.projections.clone(), residuals=d.residuals.clone(),
        indices=d.indices.clone(), right_vectors=right.reshape(len(d), *shape),
        left_vectors=left.reshape(len(d), *d.layer_shape), x=d.x.clone(),
        output=_weighted(w, local.output), bias=_weighted(w, local.bias), bypass=bypass,
        # Not y − b − Σα: this way the sum of all terms against the output is a check, not an identity.
        remainder=_dot(pulled, d.image) - float(alpha.sum()),
        bias_contributions={k: float(v) for k, v in local.bias_contributions(target=w).items()},
        gradient=host(gradient).reshape(shape), bypass_gradient=host(bypass_gradient).reshape(shape),
        exactness=d.exactness, error=d.error, method=d.method, products=d.products, gates=d.gates,
        backend=local.backend, seed=d.seed, settings={**d.settings, "bypass": not split.bypass.is_zero},
        local=local, agreement=d.agreement, backends={**d.backends, "targets": joined(names, local)},
    )


def _local_of(d: Decomposition, local):
    """The Local of a decomposition: its own, or one that was given and is of the same map."""
    if local is None and d.local is None:
        raise ValueError("this Decomposition has no Local, as it was loaded or came from another process: pass "
                         "local=specxai.linearize(model, x) of the same model and input")
    if local is None or local is d.local:
        return d.local
    own = local.input.detach().cpu().reshape(-1)
    if local.gates != d.gates:
        raise ValueError(f"the Local has gates={local.gates!r}, the Decomposition {d.gates!r}: linearise with the same")
    if own.shape != d.x.reshape(-1).shape or not torch.equal(own.to(d.x.dtype), d.x.reshape(-1)):
        raise ValueError("the Local is at another input than the Decomposition: linearise at the same x")
    right = local.split(d.layer).right
    image = right.matvec(d.x.reshape(-1).to(right.device, right.dtype)).cpu().double()
    same = image.shape == d.image.shape
    if not same or float((image - d.image.double()).norm()) > torch.finfo(d.image.dtype).eps ** 0.5 * float(
            d.image.double().norm()):
        raise ValueError(f"the Local's map to layer {d.layer!r} is not the decomposed one: its model has other weights")
    return local


def _weighted(w: torch.Tensor, values: torch.Tensor) -> float:
    """w·values where w is not zero: elsewhere an output may be infinite, as masked logits are."""
    return _dot(w[w != 0], values.flatten()[w != 0])


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """a·b accumulated in float64; on the CPU, since not every device has float64."""
    return float(a.detach().cpu().double() @ b.detach().cpu().double())
