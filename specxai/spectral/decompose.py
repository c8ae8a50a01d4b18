"""From a model and an input to the decomposition of the map to a layer, computed once for all its targets."""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal

import torch

from specxai._blocks import as_integer
from specxai._version import __version__
from specxai.affine.operator import LocalOperator
from specxai.affine.target import without_batch
from specxai.backends.used import used
from specxai.errors import SpecXAIError
from specxai.precision import full_precision
from specxai.spectral.contraction import project
from specxai.spectral.decomposition import Decomposition
from specxai.svd import svd

__all__ = ["Request", "decompose", "decomposed", "find_local", "fix_signs", "host", "joined", "settings_of",
           "signs_of", "solved"]

DEFAULT_RANK = 50


def decompose(model, x: torch.Tensor | None = None, layer=None, rank: int | Literal["auto"] | None = "auto",
              tol: float | None = None, method: str = "auto", seed: int = 0, progress=None, *,
              gates: str | None = None, backend: str | None = None, output=None, kwargs=None, start=None,
              block_size: int | None = None, max_basis: int | None = None,
              max_products: int | None = None) -> Decomposition:
    """The singular value decomposition R ≈ U diag(S) Vᵀ of the map from the input to a layer, with certificates.

    It knows no target: `explain(decomposition, target=t)` reads one from it at the cost of a few products.

    model     an nn.Module, a captured model, or a Local from `specxai.linearize`; `decompose(local, "features.12")`
    x         the input, shape (1, *input_shape); not with a Local
    layer     dotted name of a module ("features.12", "relu#2") or the module object
    rank      at most how many singular triplets, None for all of them (exact) or for as many as `tol` needs; "auto" is
              None where a `tol` is given and else 50
    tol       with a rank, each residual is brought to tol · λ₁; without, the error of the truncated R to tol · ‖R‖_F.
              The default of a rank is that of `specxai.svd`, which suits pictures and sums
    method, seed, progress, block_size, max_basis, max_products   as for `specxai.svd`
    gates, backend, output, kwargs   as for `specxai.linearize`; a Local has its own
    start     a Decomposition of a neighbour (a near input, the same layer of a tuned model) or right vectors (n, j) to
              begin from: speeds up, changes nothing else

    A Local keeps the last four, of at most 512 MiB together, and the same request gets the same one again, as does
    `explain`; two threads that ask at once compute it once.  A request is the layer, rank, tol, method, seed and the
    solver's three sizes.  A request with a rank is also served by a kept one that differs in nothing but a larger rank
    (or in rank=None without tol, which is all) and has converged: by its first triplets.  `progress` and `start` are no
    part of a request.

    Raises TypeError or ValueError for an argument that is out of range or contradicts the Local.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> local = specxai.linearize(net, torch.ones(1, 4))
    >>> d = specxai.decompose(local, "1", rank=None)
    >>> [specxai.explain(d, target=t).target_label for t in (0, 2)]
    ['output[0]', 'output[2]']
    """
    sizes = {"block_size": block_size, "max_basis": max_basis, "max_products": max_products}
    request = Request.of(rank, tol, method, seed, sizes)
    local, layer = find_local("decompose", model, x, layer, gates=gates, backend=backend, output=output,
                              kwargs=kwargs)
    with local.checked(), full_precision(local.input.device):
        return decomposed(local, local.split(layer), request, progress, start)


@dataclass(frozen=True)
class Request:
    """What is asked of the solver, all of it hashable."""

    rank: int | None
    tol: float | None
    method: str
    seed: int
    sizes: tuple = ()

    @classmethod
    def of(cls, rank, tol, method, seed, sizes: dict | None = None) -> Request:
        """Raises ValueError for a number out of range; the solver checks the rest."""
        if tol is not None and (isinstance(tol, bool) or not isinstance(tol, Real)):
            raise TypeError(f"tol={tol!r} is no number: give a relative error such as 1e-3, or None for the default")
        if not isinstance(method, str):
            raise TypeError(f"method={method!r} is no name: give 'auto', 'exact', 'krylov' or 'subspace'")
        if tol is not None and not tol > 0:
            raise ValueError(f"tol={tol!r}: give a positive relative error; for an exact run leave both rank and tol "
                             "None")
        if isinstance(rank, str) and rank == "auto":
            rank = DEFAULT_RANK if tol is None else None
        elif rank is not None:
            number = as_integer(rank)
            if number is None or number < 1:
                raise ValueError(f"rank={rank!r} is out of range: give at least 1, or None for all components")
            rank = number
        seed = seed if as_integer(seed) is None else as_integer(seed)
        given = [(name, value) for name, value in (sizes or {}).items() if value is not None]
        wrong = next((one for one in given if as_integer(one[1]) is None), None)
        if wrong:
            raise TypeError(f"{wrong[0]}={wrong[1]!r} is no integer: give a number of columns, or None for the default")
        return cls(rank, None if tol is None else float(tol), method, seed,
                   tuple((name, as_integer(value)) for name, value in given))

    def serves(self, other: Request, found: Decomposition) -> bool:
        """Does what was found for this request hold the answer to the other?"""
        if replace(self, rank=other.rank) != other:
            return False
        if self.rank == other.rank:
            return True
        # With tol alone, tol means the error of the whole, with a rank the residuals.
        more = other.rank is not None and (self.tol is None if self.rank is None else self.rank > other.rank)
        return more and found.converged


def decomposed(local, split, request: Request, progress=None, start=None) -> Decomposition:
    """The decomposition at a split, the Local's kept one where it has it."""
    getattr(split.right, "ensure_current", lambda: None)()  # also where what is kept needs no product

    def make() -> Decomposition:
        return solved(local, split, request, progress, start)

    def serves(key, found: Decomposition) -> bool:
        layer, other = key
        return layer == split.layer and other.serves(request, found)

    kept = getattr(local, "decompositions", None)
    found = make() if kept is None else kept.get((split.layer, request), make, _size, serves)
    if request.rank is not None and len(found) > request.rank:
        found = found[:request.rank]
        found = replace(found, settings={**found.settings, "rank": request.rank})
    # Kept without the Local, as the two would hold each other, and handed out as a copy, which its owner may change.
    return replace(found, local=local, **{
        name: value.clone() for name, value in vars(found).items() if isinstance(value, torch.Tensor)})


def find_local(caller: str, model, x, layer, **own):
    """(the Local to work on, the layer); `own` are options that a Local already has, None for its own."""
    is_module = isinstance(model, torch.nn.Module)
    if not is_module and hasattr(model, "split") and hasattr(model, "jacobian"):
        if layer is None and isinstance(x, str | torch.nn.Module):
            x, layer = None, x  # decompose(local, "features.12")
        if x is not None:
            raise TypeError(f"{caller} was given a Local and x=: a Local already belongs to one input; leave x out, or "
                            "pass the model")
        for name, value in own.items():
            has = getattr(model, name, None)
            chosen = name in ("output", "kwargs")
            if value is None or (name == "backend" and value == "auto") or (not chosen and value == has):
                continue
            raise ValueError(f"{caller} was given a Local and {name}={value!r}, but " + (
                f"a Local has its {name} chosen" if chosen else f"this Local was made with {name}={has!r}")
                + f": leave {name} out, or pass specxai.linearize(model, x, {name}=...)")
        local = model
    else:
        if x is None and is_module:
            raise TypeError(f"{caller} needs x=, one input of shape (1, ...), to linearise the model at")
        from specxai.affine.captured import linearize

        local = linearize(model, x, **{name: value for name, value in own.items() if value is not None})
    if layer is None:
        raise TypeError(f"{caller} needs layer=, the name of a module or the module itself; this model has "
                        f"{_some(local.layers)}")
    return local, layer


def fix_signs(left: torch.Tensor, right: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Flip rows of `left` (k, m) and `right` (k, n) in place so that φ_k·x ≥ 0; returns φ_k·x (k,) float64.

    A singular vector's sign is arbitrary and differs from one BLAS to the next; both rows flip, so UΣVᵀ stays.  Where
    φ_k·x is exactly zero the input decides nothing, and the largest entry of φ_k is made positive.

    >>> left, right = torch.tensor([[1.0]]), torch.tensor([[-1.0, 0.0]])
    >>> fix_signs(left, right, torch.tensor([2.0, 1.0])).tolist(), left.tolist()
    ([2.0], [[-1.0]])
    """
    projections = project(right, x)
    signs = signs_of(projections, right)
    for rows in (left, right):
        rows.mul_(signs[:, None].to(rows.dtype))
    return projections.abs()


def signs_of(projections: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sign ±1 (..., k), float64, by which rows (..., k, n) with these projections (..., k) are multiplied."""
    signs = projections.sign()
    undecided = signs == 0
    if bool(undecided.any()):
        rows = right[undecided]
        largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))[:, 0]
        signs[undecided] = torch.where(largest < 0, -1.0, 1.0).to(signs)
    return signs


def host(t: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU: a result must not change when the caller reuses a buffer."""
    return t.detach().cpu().clone()


def joined(names: set[str], local) -> str:
    """Backends in words; of operators that do not tell, the Local's."""
    return " and ".join(sorted(names)) or local.backend


def solved(local, split, request: Request, progress=None, start=None) -> Decomposition:
    """A new decomposition at a split, without the Local, which does not keep it."""
    # Under autocast the output's dtype need not be the operators'.
    flat_x = local.input.flatten().to(split.right.dtype)
    image = _reference_image(split.right, flat_x)
    with used() as names:
        svd = _svd(split.right, request, progress, start)
    _check_backend(svd, image, flat_x, split.layer, local.backend)
    # Always a copy, since the signs are fixed in place; `contiguous` alone would alias the solver's for k = 1.
    right, left = (t.detach().cpu().T.clone(memory_format=torch.contiguous_format) for t in (svd.V, svd.U))
    own, s = host(flat_x), svd.S.detach().cpu().double()
    projections = fix_signs(left, right, own)
    return Decomposition(
        layer=split.layer, U=left.T, S=s, V=right.T, residuals=svd.residuals.detach().cpu().double(),
        projections=projections, indices=torch.arange(len(s), device="cpu"),
        x=own.reshape(without_batch(local.input.shape)), layer_shape=tuple(without_batch(split.shape)),
        image=host(image), error=None if svd.error is None else float(svd.error), method=svd.method,
        products=int(svd.products), seed=svd.seed, gates=local.gates, backend=local.backend,
        exactness=float(local.exactness), agreement=agreement_of(local),
        backends={"decomposition": joined(names, local)},
        settings=settings_of(local, request, {**_solver(svd, s), "precision": getattr(split.right, "precision", None)}),
    )


def _reference_image(right, x: torch.Tensor) -> torch.Tensor:
    """R x by the reference, whatever backend decomposes R: the one product of its that the results are held against."""
    return right.reference.matmat(x[:, None])[:, 0] if isinstance(right, LocalOperator) else right.matvec(x)


def _check_backend(svd, image: torch.Tensor, x: torch.Tensor, layer: str, backend: str) -> None:
    """Raise SpecXAIError where u_k·(R x) by the reference is not λ_k (v_k·x), which residuals of the right R bound.

    Solvers certify with the products of the backend that they are given; this tells whether those are R's.
    """
    if not len(svd.S):
        return
    U, S, V = (t.double() for t in (svd.U, svd.S, svd.V))
    size = x.double().norm()
    gap = (U.mT @ image.double() - S * (V.mT @ x.double())).abs()
    allowed = 2 * svd.residuals.to(gap).double() + 16 * getattr(svd, "floor", 0.0)
    if (gap > allowed * size).any():
        worst = float((gap / size).max() / S[0])
        raise SpecXAIError(f"the {backend} backend's products at layer {layer!r} are not those of the reference: u·Rx "
                           f"and λ v·x differ by {worst:.1e} λ₁ |x|, more than residuals explain. This is an error of "
                           "SpecXAI's; backend='reference' goes round it, and a report of the model would help")


def _svd(right, request: Request, progress, start):
    if 0 in right.shape:
        return _Empty(right, request.seed)
    given = dict(request.sizes)
    if start is not None:
        vectors = start.V if isinstance(start, Decomposition) else start
        given["start"] = vectors.to(right.device, right.dtype)
    rank = request.rank if request.rank is None else min(request.rank, *right.shape)
    return svd(right, rank=rank, tol=request.tol, method=request.method, seed=request.seed, progress=progress, **given)


class _Empty:
    """The decomposition with no component, of an operator without rows or columns."""

    def __init__(self, right, seed):
        m, n = right.shape
        self.U, self.V = (torch.empty(size, 0, dtype=right.dtype, device="cpu") for size in (m, n))
        self.S = self.residuals = torch.empty(0, dtype=right.dtype, device="cpu")
        self.error, self.method, self.products, self.seed = None, "none", 0, seed


def _solver(svd, s: torch.Tensor) -> dict:
    # The solver's certificates and choices, as far as it states them.
    certificate = {n: getattr(svd, n) for n in ("norm", "floor", "estimate", "converged") if hasattr(svd, n)}
    return {**getattr(svd, "settings", {}), **certificate, **({"lambda_1": float(s[0])} if len(s) else {})}


def settings_of(local, request: Request, solver: dict) -> dict:
    """What a result says of how it was made; in a form that a file's JSON header can hold."""
    solver = {k: v if isinstance(v, bool | int | float | str | None) else str(v) for k, v in solver.items()}
    return {"model": getattr(local, "model_name", None), "rank": request.rank, "tol": request.tol,
            "method": request.method, "output": _selector(local), "svd": solver,
            "specxai": __version__, "torch": str(torch.__version__)}


def _selector(local) -> str | None:
    """Which of several outputs of the model is explained, as the command line writes it."""
    chosen = getattr(getattr(local, "captured", None), "output", None)
    if callable(chosen):
        return getattr(chosen, "__qualname__", type(chosen).__name__)
    return ".".join(map(str, chosen if isinstance(chosen, tuple) else [] if chosen is None else [chosen])) or None


def agreement_of(local) -> float | None:
    found = getattr(local, "agreement", None)
    return None if found is None else float(found)


def _size(found: Decomposition) -> int:
    return sum(t.numel() * t.itemsize for t in vars(found).values() if isinstance(t, torch.Tensor))


def _some(names, limit: int = 20) -> str:
    names = list(names)
    return ", ".join(map(str, names[:limit])) + (f", … ({len(names)} layers)" if len(names) > limit else "")
