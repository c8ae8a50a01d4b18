"""The output as a formula, paper eqs. (25)-(26): Σ_k α_k ĉ^k + bias + bypass + remainder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from specxai._text import printable
from specxai.spectral import contraction

__all__ = ["Symbolic"]


@dataclass(frozen=True, eq=False, repr=False)
class Symbolic:
    """A printable and computable form of an explanation, `Explanation.symbolic`.

    groups   the terms: tuples of component positions, one position each, or a survivor of the reduction with
             everything merged into it.  A merged term's map is the sum of its members' maps: it adds up to the merged
             coefficient at x, and stays exact at other inputs, which the dominant member's map alone would not.
    dims     the axes of the input that are contracted

    Components in no group (left out by `top`, or cancelled to zero) are in the remainder, never dropped.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.ReLU()).eval()
    >>> net[0].weight.data.fill_(3.0)
    tensor([[3.]])
    >>> s = specxai.explain(net, torch.ones(1, 1), layer="1", target=0).symbolic()
    >>> s.text(), s.maps.shape
    ('output[0] = 3 ĉ_{0} + 0 (bias) + 0 (bypass) + 0 (remainder)', torch.Size([1]))
    """

    explanation: object
    groups: tuple[tuple[int, ...], ...]
    dims: tuple[int, ...]

    @classmethod
    def of(cls, e, dim: int | Sequence[int] = 0, reduced: bool = False, top: int | None = None) -> Symbolic:
        """Terms by descending |coefficient|; `top` keeps the first so many.

        Raises ValueError for a negative `top`, and for a `dim` that is no axis of the input.
        """
        if top is not None and top < 0:
            raise ValueError(f"top={top}: the number of terms cannot be negative")
        groups = e.reduce().members if reduced else [(k,) for k in e.top(len(e), by="alpha")]
        return cls(e, tuple(groups[:top]), contraction.normalise_dims(dim, e.x.shape))

    # ---- values at x

    @cached_property
    def coefficients(self) -> torch.Tensor:
        """(r,) float64, α of each term (α̂ of eq. 21 if reduced)."""
        return self._grouped(self.explanation.alpha)

    @property
    def remainder(self) -> float:
        """What is in no term: the explanation's remainder and the α of the components in no group."""
        e = self.explanation
        return e.remainder + float(e.alpha.sum()) - float(self.coefficients.sum())

    @cached_property
    def maps(self) -> torch.Tensor:
        """(r, *rest) float64 maps α_k ĉ^k of eq. (25), each adding up to its coefficient.

        Computed as ψ_k λ_k c^k: the normalisation of (26) divides by Σc^k, which may be next to zero, only for α_k
        to multiply by it again.
        """
        e = self.explanation
        rest = [n for d, n in enumerate(e.x.shape) if d not in self.dims]
        rows = [self._map(contraction.combine((e.psi * e.S)[list(g)], e.right_vectors[list(g)])) for g in self.groups]
        return torch.stack(rows) if rows else torch.zeros(0, *rest, dtype=torch.float64, device="cpu")

    def output_map(self) -> torch.Tensor:
        """(*rest) float64 map of the whole output (left side of 25): terms, bypass, remainder, and the bias spread
        evenly (26).  It adds up to the output."""
        everything = self._map(self.explanation.gradient.double())
        return everything + self.explanation.bias / everything.numel()

    # ---- values elsewhere

    def terms(self, x: torch.Tensor) -> dict:
        """Every term at another input `x` (*in) or (1, *in): {"terms": (r,), "bias", "bypass", "remainder"}.

        Raises ValueError for an input of another shape.
        """
        e = self.explanation
        if tuple(x.shape) not in {tuple(e.x.shape), (1, *e.x.shape)}:
            raise ValueError(f"x has shape {tuple(x.shape)}, but the explained input has {tuple(e.x.shape)} "
                             "(an optional batch axis of 1 aside)")
        x = x.detach().cpu().double().reshape(e.x.shape)
        contributions = e.psi * e.S * contraction.project(e.right_vectors, x)
        terms, bypass = self._grouped(contributions), float((e.bypass_gradient.double() * x).sum())
        # All of Jx that is neither a term nor bypass, the components that were never computed included.
        remainder = float((e.gradient.double() * x).sum()) - bypass - float(terms.sum())
        return {"terms": terms, "bias": e.bias, "bypass": bypass, "remainder": remainder}

    def evaluate(self, x: torch.Tensor) -> float:
        """The formula at another input; equal to the network's target as long as `x` is in the same linear region.

        >>> import torch, specxai
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> x = torch.ones(1, 4)
        >>> s = specxai.explain(net, x, layer="1", target=0, rank=2).symbolic()
        >>> abs(s.evaluate(x * 1.0001) - float(net(x * 1.0001)[0, 0])) < 1e-5
        True
        """
        values = self.terms(x)
        return float(values["terms"].sum()) + values["bias"] + values["bypass"] + values["remainder"]

    # ---- as a formula

    def text(self, form: str = "alpha", digits: int = 4) -> str:
        """The formula in plain text.

        form="alpha"     α_k ĉ_k with the α of x (eq. 25), "ĉ_{0+3}" being a term merged from components 0 and 3
        form="function"  the same as a function of x, ψ_k λ_k (φ_k·x), with g·x for the bypass and ρ·x for the
                         remainder
        """
        parts = self._parts(form, digits, "ĉ_{{{}}}", "(φ_{}·x)", ("g·x", "ρ·x"))
        return f"{printable(self.explanation.target_label)} = " + " ".join(parts)

    def latex(self, form: str = "alpha", digits: int = 4) -> str:
        """The formula for LaTeX, without the dollar signs; forms as in `text`."""
        parts = self._parts(form, digits, r"\hat{{c}}^{{{}}}", r"(\phi^{{{}}} \cdot x)",
                            (r"g \cdot x", r"\rho \cdot x"), note=r"\;(\mathrm{{{}}})", number=_latex_number)
        label = printable(self.explanation.target_label).replace("output", r"\mathrm{output}")
        return (rf"\mathrm{{{label}}}" if label == "weights" else label) + " = " + " ".join(parts)

    def __repr__(self) -> str:
        return self.text()

    # ---- parts

    def _grouped(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tensor([float(values[list(g)].sum()) for g in self.groups], dtype=torch.float64, device="cpu")

    def _map(self, row: torch.Tensor) -> torch.Tensor:
        product = row * self.explanation.x.double()
        return product.sum(self.dims) if self.dims else product

    def _parts(self, form, digits, map_name, dot_name, rows, note=" ({})", number=None) -> list[str]:
        number = number or (lambda text: text)
        e, places = self.explanation, self.explanation.indices.tolist()

        def signed(value, name="", first=False):
            sign = "-" if value < 0 else "" if first else "+"
            return f"{sign}{' ' if sign and not first else ''}{number(f'{abs(value):.{digits}g}')}{name}"

        if form not in ("alpha", "function"):
            raise ValueError(f"form={form!r}: choose 'alpha' or 'function'")
        parts = []
        for coefficient, group in zip(self.coefficients.tolist(), self.groups, strict=True):
            first = not parts
            if form == "alpha":
                name = map_name.format("+".join(str(places[k]) for k in group))
                parts.append(signed(coefficient, f" {name}", first))
            else:
                inner = [signed(float(e.psi[k] * e.S[k]), f" {dot_name.format(places[k])}", i == 0 and
                                (first or len(group) > 1)) for i, k in enumerate(group)]
                parts.append(inner[0] if len(inner) == 1 else ("" if first else "+ ") + "[" + " ".join(inner) + "]")
        parts.append(signed(e.bias, note.format("bias"), not parts))
        if form == "alpha":
            parts += [signed(e.bypass, note.format("bypass")), signed(self.remainder, note.format("remainder"))]
        else:
            parts += [f"+ {rows[0]}{note.format('bypass')}", f"+ {rows[1]}{note.format('remainder')}"]
        return parts


def _latex_number(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if exponent else text
