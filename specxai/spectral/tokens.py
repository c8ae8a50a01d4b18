"""Every token's block of the Jacobian, ∂y_p/∂x_t, with its certified singular triplets, and what tokens contribute."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from specxai._blocks import as_integer
from specxai._version import __version__
from specxai.affine.target import resolve_target
from specxai.errors import FileError
from specxai.operators import LinearOperator
from specxai.precision import full_precision
from specxai.spectral.record import Stored
from specxai.spectral.store import FLOATING, Layout, read
from specxai.svd.shared import block_svds

__all__ = ["Contributions", "TokenBlocks", "Tokens", "tokens"]

METHODS = ("auto", "exact", "range")


def tokens(local, position: int | slice | Sequence[int] = -1, rank: int = 8, *, tol: float = 1e-3,
           method: str = "auto", seed: int = 0, max_memory: int | None = None, progress: bool | None = None) -> Tokens:
    """The leading singular triplets of J_t = ∂y/∂x_t for every token t, from products that all tokens share.

    local       from `specxai.linearize` at embeddings (1, T, d); its gates and its output are those that hold here
    position    of the output (1, T', d_out): one, a slice or a list, whose rows then follow each other; an output
                (1, d_out) has the position -1 only
    rank        k, at most how many triplets a token
    tol         of a residual, relative to the token's σ₁, where left vectors are sought; see `method`
    method      "exact": as many adjoint products as y has numbers, or the narrowest live cut has units, give every
                token's block at once; "range": a shared range of left vectors, grown until the tolerance holds, which
                needs fewer where T d_out is much larger than the rank; "auto": the cheaper by counted columns
    max_memory  bytes of all that is held at once, half of them for a product; by default the Local's.  Blocks that do
                not fit are made in groups of tokens, each by all the products again
    progress    as for `specxai.svd`

    Raises ValueError for an input or output that is no sequence of tokens, IndexError for a position that does not
    exist, MemoryError where the results and one token's block do not fit.

    >>> import torch, specxai
    >>> net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    >>> local = specxai.linearize(net, torch.randn(1, 5, 8), gates="frozen")
    >>> t = specxai.tokens(local, rank=3)
    >>> t.S.shape, t.U.shape, t.V.shape, t.jacobian[2].shape
    (torch.Size([5, 3]), torch.Size([5, 8, 3]), torch.Size([5, 8, 3]), torch.Size([8, 8]))
    """
    rank, memory = _checked(local, rank, tol, method, seed, max_memory)
    count, d = local.input.shape[1:]
    positions = _positions(local.output, position)
    J = _jacobian(local, positions, memory // 2)
    rest = memory - max(memory // 2, J.product_bytes)
    with local.checked(), full_precision(local.input.device):
        found = block_svds(J, count, rank, tol=tol, method=method, seed=seed, max_memory=rest, progress=progress)
        x = local.input.reshape(count, d)
        U, V = _signed(found.U, found.V, x)
        return Tokens(
            U=U, S=found.S.cpu(), V=V, residuals=found.residuals.cpu(), norms=found.norms.cpu(),
            x=x.detach().cpu().clone(), output=_at(local.output, positions), bias=_at(local.bias, positions),
            positions=positions, method=found.method, products=found.products, seed=found.seed,
            converged=found.converged, gates=local.gates, backend=local.backend, exactness=float(local.exactness),
            agreement=None if local.agreement is None else float(local.agreement), local=local,
            settings={"rank": rank, "tol": tol, "model": local.model_name, **found.settings,
                      "specxai": __version__, "torch": str(torch.__version__)})


@dataclass(frozen=True)
class Contributions:
    """A target w·y of the output as a sum over tokens: w·y = Σ_t α_t + bias, α_t = w·J_t x_t.

    alpha    (T,) float64
    bias     w·b;  output w·y, the target's value;  label of the target

    >>> found = Contributions(torch.tensor([2.0, -0.5]), bias=0.25, output=1.75, label="output[0]")
    >>> found.completeness
    0.0
    """

    alpha: Tensor
    bias: float
    output: float
    label: str

    @property
    def completeness(self) -> float:
        """|w·y − Σα − bias|, relative to the size of the terms."""
        size = float(self.alpha.abs().sum()) + abs(self.bias)
        gap = abs(self.output - float(self.alpha.sum()) - self.bias)
        return gap / size if size else gap


class TokenBlocks:
    """The blocks J_t (m, d) of the Jacobian, made by products when they are asked for: `blocks[t]`, `len(blocks)`."""

    def __init__(self, J: LinearOperator, count: int) -> None:
        self._J, self._count = J, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, token: int) -> Tensor:
        t = as_integer(token)
        if t is None:
            raise TypeError(f"a token is an integer, got {token!r}")
        if not -self._count <= t < self._count:
            raise IndexError(f"token {t} does not exist: there are {self._count}")
        (m, n), t = self._J.shape, t % self._count
        d = n // self._count
        columns = torch.arange(t * d, (t + 1) * d, device=self._J.device)
        if m <= d:
            return self._J.rmatmat(torch.eye(m, dtype=self._J.dtype, device=self._J.device))[columns].T.contiguous()
        block = torch.zeros(n, d, dtype=self._J.dtype, device=self._J.device)
        block[columns] = torch.eye(d, dtype=self._J.dtype, device=self._J.device)
        return self._J.matmat(block)


@dataclass(frozen=True, eq=False, repr=False)
class Tokens(Stored):
    """J_t ≈ U_t diag(S_t) V_tᵀ of every token's block J_t = ∂y/∂x_t (m, d), signs fixed so that v·x_t ≥ 0.

    Made by `specxai.tokens`.  Everything is on the CPU, in the model's dtype where nothing else is said.

    U (T, m, k), S (T, k) descending, V (T, d, k)   the triplets; where a token has fewer than k above rounding, the
                 rest of S is 0 and the vectors zeros
    residuals    (T, k) float64, bounds of max(‖J_t v − σu‖, ‖J_tᵀu − σv‖): some true singular value of J_t lies within
                 it of σ.  What a shared range misses is bounded by probes, which fail with probability 1e-5
    norms        (T,) float64, estimates of ‖J_t‖_F
    x (T, d), output (m,), bias (m,)   y = Σ_t J_t x_t + bias
    positions    of the output, which y consists of, one after the other
    jacobian     `jacobian[t]` (m, d) on demand; needs the Local
    local        the Local it came from; None after loading or unpickling
    method, products, seed, converged, gates, backend, exactness, agreement, settings   as of a `Decomposition`

    >>> import torch, specxai
    >>> net = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    >>> t = specxai.tokens(specxai.linearize(net, torch.randn(1, 5, 8), gates="frozen"), rank=3)
    >>> t.contributions(target=0).alpha.shape, t.contributions(target=0).completeness < 1e-5
    (torch.Size([5]), True)
    """

    U: Tensor
    S: Tensor
    V: Tensor
    residuals: Tensor
    norms: Tensor
    x: Tensor
    output: Tensor
    bias: Tensor
    positions: tuple[int, ...]
    method: str
    products: int
    seed: int
    converged: bool
    gates: str
    backend: str
    exactness: float
    agreement: float | None = None
    settings: dict = field(default_factory=dict)
    local: object | None = None

    LAYOUT = Layout(
        "token spectra", "specxai.tokens", 1,
        tensors={"U": (FLOATING, ("T", "m", "k")), "S": (FLOATING, ("T", "k")), "V": (FLOATING, ("T", "d", "k")),
                 "residuals": ((torch.float64,), ("T", "k")), "norms": ((torch.float64,), ("T",)),
                 "x": (FLOATING, ("T", "d")), "output": (FLOATING, ("m",)), "bias": (FLOATING, ("m",))},
        values={"positions": [int], "method": str, "products": int, "seed": int, "converged": bool, "gates": str,
                "backend": str, "exactness": float, "agreement": (float, None), "settings": {str: object}},
    )

    def __len__(self) -> int:
        return len(self.S)

    @property
    def jacobian(self) -> TokenBlocks:
        """The blocks J_t (m, d), by products when they are asked for."""
        return TokenBlocks(self._operator(), len(self))

    @property
    def worst_residual(self) -> float:
        """The largest residual relative to its token's σ₁; tokens that the output does not depend on are left out."""
        top = self.S[:, :1].double()
        return float((self.residuals / top)[top[:, 0] > 0].max()) if bool((top > 0).any()) else 0.0

    def contributions(self, target=None) -> Contributions:
        """What each token brings to a target of y, by one adjoint product.

        target   as for `specxai.explain`, over the output at the positions: None for the largest, an int where there
                 is one position, a tuple (position, unit) where there are several, or weights
        """
        shape = (1, len(self.output)) if len(self.positions) == 1 else (1, len(self.positions), -1)
        weights, label = resolve_target(target, self.output.reshape(shape))
        J = self._operator()
        gradient = J.rmatvec(weights.to(J.device, J.dtype)).cpu().reshape(self.x.shape)
        alpha = (gradient.double() * self.x.double()).sum(1)
        w = weights.double()
        return Contributions(alpha, float(w @ self.bias.double()), float(w @ self.output.double()), label)

    def _operator(self) -> LinearOperator:
        if self.local is None:
            raise ValueError("these token spectra were loaded from a file and have no Local to multiply with: give it "
                             "by dataclasses.replace(t, local=specxai.linearize(model, x, ...))")
        return _jacobian(self.local, self.positions)

    @classmethod
    def load(cls, path) -> Self:
        """Read a file written by `save`, without its Local.

        Raises FileNotFoundError, or FileError (a ValueError) that names the cause.
        """
        fields = read(path, cls.LAYOUT)
        fields["positions"] = tuple(fields["positions"])
        if not fields["positions"] or len(fields["output"]) % len(fields["positions"]):
            raise FileError(f"the shapes in {path} do not fit together: {len(fields['output'])} outputs at "
                            f"{len(fields['positions'])} positions")
        return cls(**fields)

    def __repr__(self) -> str:
        top = f", σ₁ {float(self.S.max()):.4g}" if self.S.numel() else ""
        return (f"Tokens({len(self)} tokens, {self.U.shape[1]} x {self.V.shape[1]}, k {self.S.shape[1]}{top}, "
                f"{self.method}, worst residual {self.worst_residual:.1e} σ₁, {self.products} products)")


def _checked(local, rank, tol: float, method: str, seed: int, max_memory: int | None) -> tuple[int, int]:
    """rank, and the memory; raises for what is out of range."""
    if not hasattr(local, "jacobian") or not hasattr(local, "split"):
        raise TypeError(f"tokens needs a Local, got {type(local).__name__}: pass specxai.linearize(model, embeddings)")
    if local.input.ndim != 3:
        raise ValueError(f"tokens needs an input of embeddings (1, tokens, d), and this Local's has shape "
                         f"{tuple(local.input.shape)}: linearise the model at its embeddings")
    number = as_integer(rank)
    if number is None or number < 1:
        raise ValueError(f"rank={rank!r} is out of range: give a positive integer")
    if not (isinstance(tol, (int, float)) and 0 <= tol < 1):
        raise ValueError(f"tol is relative and must lie in [0, 1); got {tol!r}")
    if as_integer(seed) is None or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer in [0, 2**63); got {seed!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if max_memory is not None and (as_integer(max_memory) is None or max_memory < 1):
        raise ValueError(f"max_memory is a positive number of bytes, such as 2 << 30; got {max_memory!r}")
    return number, local.max_memory if max_memory is None else int(max_memory)


def _positions(output: Tensor, position) -> tuple[int, ...]:
    """The positions of an output that are asked for, counted from 0."""
    if output.ndim not in (2, 3):
        raise ValueError(f"tokens needs an output (1, tokens, d_out) or (1, d_out), and this Local's has shape "
                         f"{tuple(output.shape)}: choose it by linearize(..., output=...)")
    count = _count(output)
    if isinstance(position, slice):
        chosen = range(count)[position]
    else:
        given = [position] if as_integer(position) is not None else position
        try:
            chosen = [operator.index(p) for p in given]
        except TypeError:
            raise TypeError(f"position={position!r} is neither an integer, nor a slice or list of them") from None
        if outside := [p for p in chosen if not -count <= p < count]:
            raise IndexError(f"position {outside[0]} does not exist: the output {tuple(output.shape)} has {count}")
    positions = tuple(p % count for p in chosen)
    if not positions or len(set(positions)) < len(positions):
        raise ValueError(f"position={position!r} names " + ("a position twice" if positions else "no position")
                         + f" of the {count} of the output")
    return positions


def _count(output: Tensor) -> int:
    return 1 if output.ndim == 2 else output.shape[1]


def _jacobian(local, positions: tuple[int, ...], max_memory: int | None = None) -> LinearOperator:
    """∂y/∂x of the output at the positions, one of its own where its products are to take so many bytes."""
    whole = positions == tuple(range(_count(local.output)))
    if whole and max_memory is None:
        return local.jacobian
    J = local.operator(target_positions=None if whole else list(positions))
    J.max_memory = local.max_memory if max_memory is None else max_memory
    return J


def _at(value: Tensor, positions: tuple[int, ...]) -> Tensor:
    """The numbers of an output at the positions, on the CPU."""
    chosen = value if value.ndim == 2 else value[:, list(positions)]
    return chosen.detach().flatten().cpu().clone()


def _signed(U: Tensor, V: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """U and V on the CPU with v·x_t ≥ 0, or, where that is zero, the largest entry of v positive."""
    along = torch.einsum("tdk,td->tk", V.double(), x.double()).cpu()
    U, V = U.cpu(), V.cpu()
    largest = V.gather(1, V.abs().argmax(1, keepdim=True))[:, 0].double()
    signs = torch.where(along == 0, largest, along).sign()
    signs = torch.where(signs == 0, 1.0, signs)[:, None].to(V.dtype)
    return U * signs, V * signs
