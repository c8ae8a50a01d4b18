"""From a model and an input to an Explanation: paper eqs. (16)-(20)."""

from __future__ import annotations

from typing import Literal

import torch

from specxai.operators import as_integer
from specxai.spectral.contraction import project
from specxai.spectral.explanation import Explanation
from specxai.target import resolve_target, without_batch

__all__ = ["explain"]

DEFAULT_RANK = 50


def explain(model, x: torch.Tensor | None = None, layer=None, target=None,
            rank: int | Literal["auto"] | None = "auto", tol: float | None = None, method: str = "auto",
            seed: int = 0, gates: str = "tangent", backend: str = "auto", progress=None) -> Explanation:
    """Read one output of a network as a sum of spectral contributions, eq. (20): y = Σ ψ_k λ_k (φ_k·x) + b.

    At x the network is y = Jx + b, and J = L·R + bypass at a layer.  R = UΣVᵀ gives α_k = ψ_k λ_k (φ_k·x) with
    ψ = Uᵀ(Lᵀw) for target weights w.  What no contribution covers is a term of its own: the bias, the paths round the
    layer (bypass), and the components not computed (remainder).

    model     an nn.Module, a captured model, or a Local from `specxai.linearize` (then `x` is not given, and `gates`
              and `backend` are the Local's): pass a Local to explain several layers or targets of one input
    x         the input, shape (1, *input_shape)
    layer     dotted name of a module ("features.12", "relu#2") or the module object
    target    None for the predicted class, an int, a tuple over the output's axes, weights (m,) or of the output's
              shape (a difference of logits), or a callable output -> one of these
    rank      at most how many singular triplets, None for all of them (exact) or for as many as `tol` needs; "auto" is
              None where a `tol` is given and else 50
    tol       relative error of the truncated R at which to stop, see `specxai.svd`
    method, seed, progress   as for `specxai.svd`
    gates     "tangent" (eq. 15, the true Jacobian) or "frozen" (eq. 14 with b = 0)

    Everything in the result is on the CPU; the vectors keep the model's dtype, the k numbers are float64.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> e = specxai.explain(net, torch.ones(1, 4), layer="1", target=2, rank=None)
    >>> e.right_vectors.shape[1:], e.target_label, e.completeness < 1e-5
    (torch.Size([4]), 'output[2]', True)
    """
    rank, seed = _check_request(rank, tol), seed if as_integer(seed) is None else as_integer(seed)
    local, name = _local(model, x, gates, backend)
    if layer is None:
        raise TypeError(f"explain needs layer=, the name of a module or the module itself; this model has "
                        f"{_some(local.layers)}")
    # The target is checked first: it costs nothing, the decomposition may cost minutes.
    w, label = resolve_target(target, local.output)
    split = local.split(layer)
    with local.checked(), torch.inference_mode(False), torch.no_grad():
        return _decompose(local, split, w, label, name, rank, tol, method, seed, progress)


def _decompose(local, split, w, label, name, rank, tol, method, seed, progress) -> Explanation:
    # Under autocast the output's dtype need not be the operators'.
    flat_x, w = local.input.flatten().to(split.right.dtype), w.to(split.left.dtype)
    pulled = split.left.rmatvec(w)  # Lᵀw, (m_s,)
    through = split.right.matvec(flat_x)  # R x, (m_s,)
    gradient = local.jacobian.rmatvec(w)
    if split.bypass is None:
        bypass, bypass_gradient = 0.0, torch.zeros_like(gradient)
    else:
        bypass, bypass_gradient = _dot(w, split.bypass.matvec(flat_x)), split.bypass.rmatvec(w)

    svd = _svd(split.right, rank, tol, method, seed, progress)
    # Always a copy, since the signs are fixed in place; `contiguous` alone would alias the solver's for k = 1.
    right, left = (t.detach().cpu().T.clone(memory_format=torch.contiguous_format) for t in (svd.V, svd.U))
    s = svd.S.detach().cpu().double()
    x = _cpu(flat_x)
    projections = fix_signs(left, right, x)
    psi = project(left, _cpu(pulled))
    alpha = psi * s * projections
    return Explanation(
        layer=split.layer, target=_cpu(w), target_label=label,
        S=s, alpha=alpha, psi=psi, projections=projections, residuals=svd.residuals.detach().cpu().double(),
        indices=torch.arange(len(s)),
        right_vectors=right.reshape(len(s), *without_batch(local.input.shape)),
        left_vectors=left.reshape(len(s), *without_batch(split.shape)),
        x=x.reshape(without_batch(local.input.shape)),
        output=_dot(w, local.output.flatten()), bias=_dot(w, local.bias.flatten()), bypass=bypass,
        # Not y − b − Σα: this way the sum of all terms against the output is a check, not an identity.
        remainder=_dot(pulled, through) - float(alpha.sum()),
        bias_contributions={k: float(v) for k, v in local.bias_contributions(target=w).items()},
        gradient=_cpu(gradient).reshape(without_batch(local.input.shape)),
        bypass_gradient=_cpu(bypass_gradient).reshape(without_batch(local.input.shape)),
        exactness=float(local.exactness), error=None if svd.error is None else float(svd.error),
        method=svd.method, products=int(svd.products), gates=local.gates, backend=local.backend, seed=svd.seed,
        settings=_settings(name, rank, tol, method, split.bypass is not None, svd),
        local=local,
    )


def fix_signs(left: torch.Tensor, right: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Flip rows of `left` (k, m) and `right` (k, n) in place so that φ_k·x ≥ 0; returns φ_k·x (k,) float64.

    A singular vector's sign is arbitrary and differs from one BLAS to the next; both rows flip, so UΣVᵀ stays.  Where
    φ_k·x is exactly zero the input decides nothing, and the largest entry of φ_k is made positive.
    """
    projections = project(right, x)
    signs = projections.sign()
    for k in (signs == 0).nonzero().flatten().tolist():
        signs[k] = -1 if right[k, right[k].abs().argmax()] < 0 else 1
    for rows in (left, right):
        rows.mul_(signs[:, None].to(rows.dtype))
    return projections.abs()


def _check_request(rank, tol) -> int | None:
    """The rank that is meant; ValueError for one out of range."""
    if tol is not None and not tol > 0:
        raise ValueError(f"tol={tol!r}: give a positive relative error; for an exact run leave both rank and tol None")
    if isinstance(rank, str) and rank == "auto":
        return DEFAULT_RANK if tol is None else None
    number = as_integer(rank)
    if rank is not None and (number is None or number < 1):
        raise ValueError(f"rank={rank!r} is out of range: give at least 1, or None for all components")
    return number


def _local(model, x, gates, backend):
    """The Local to work on and the model's name, if it has one."""
    is_module = isinstance(model, torch.nn.Module)
    if not is_module and hasattr(model, "split") and hasattr(model, "jacobian"):
        if x is not None:
            raise TypeError("explain was given a Local and x=: a Local already belongs to one input; leave x out, or "
                            "pass the model")
        return model, getattr(model, "model_name", None)
    if x is None and is_module:
        raise TypeError("explain needs x=, one input of shape (1, ...), to linearise the model at")
    from specxai.local import linearize

    return linearize(model, x, gates=gates, backend=backend), type(model).__name__ if is_module else None


def _svd(right, rank, tol, method, seed, progress):
    import specxai

    if 0 in right.shape:
        return _Empty(right, seed)
    if rank is not None:
        rank = min(rank, *right.shape)
    return specxai.svd(right, rank=rank, tol=tol, method=method, seed=seed, progress=progress)


class _Empty:
    """The decomposition with no component, of an operator without rows or columns."""

    def __init__(self, right, seed):
        m, n = right.shape
        self.U, self.V = (torch.empty(size, 0, dtype=right.dtype) for size in (m, n))
        self.S = self.residuals = torch.empty(0, dtype=right.dtype)
        self.error, self.method, self.products, self.seed = None, "none", 0, seed


def _settings(name, rank, tol, method, bypass: bool, svd) -> dict:
    from specxai import __version__

    # The solver's certificates and choices, as far as it states them; in a form that a file's JSON header can hold.
    certificate = {n: getattr(svd, n) for n in ("norm", "floor", "estimate", "converged") if hasattr(svd, n)}
    solver = {k: v if isinstance(v, bool | int | float | str | None) else str(v)
              for k, v in {**getattr(svd, "settings", {}), **certificate}.items()}
    return {"model": name, "rank": rank, "tol": tol, "method": method, "bypass": bypass, "svd": solver,
            "specxai": __version__, "torch": str(torch.__version__)}


def _some(names, limit: int = 20) -> str:
    names = list(names)
    return ", ".join(map(str, names[:limit])) + (f", … ({len(names)} layers)" if len(names) > limit else "")


def _cpu(t: torch.Tensor) -> torch.Tensor:
    # clone: a result must not change when the caller reuses the input's buffer.
    return t.detach().cpu().clone()


def _dot(a: torch.Tensor, b: torch.Tensor) -> float:
    """a·b accumulated in float64; on the CPU, since not every device has float64."""
    return float(a.detach().cpu().double() @ b.detach().cpu().double())
