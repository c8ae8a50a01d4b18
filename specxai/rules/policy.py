"""The gate policy: which factors of a network are held at their value at x, decided by kind.

A factor's kind is what it went through since the last weighted layer:

    softmax      a pattern, such as attention's; weights that mix heads right behind it do not end that
    norm         the statistic of a norm: a sum or mean over axes of what was activated, a deviation, a length
    activation   any other non-linearity; also the activations themselves, whose slope may be the secant of eq. (14)
    product      of two values that depend on the input, where its factors' kinds do not decide
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

KINDS = {"softmax": ("tangent", "held"), "norm": ("tangent", "held"), "activation": ("tangent", "held"),
         "product": ("tangent", "held", "half")}
BASES = {"tangent": "tangent", "frozen": "held"}
MIXED = "mixed"  # a softmax pattern behind weights
STOPPED = "stopped"  # what the model itself detached: constant under every policy
_RANK = {"": 0, "activation": 1, MIXED: 2, "softmax": 3, "norm": 4}


@dataclass(frozen=True)
class Policy:
    """What becomes of each kind of factor: "held" at its value, or differentiated ("tangent").

    softmax      held: a product takes the pattern as constant weights of the other factor
    norm         held: the scale of a norm is constant, its centring linear
    activation   held: the secant (σ(z) − σ(0)) / z with offset σ(0), else the tangent σ′(z)
    product      held: the activated factor is constant, and where both are, or neither is, each takes half of the
                 product; half: each takes half, activated or not
    """

    softmax: Literal["tangent", "held"] = "tangent"
    norm: Literal["tangent", "held"] = "tangent"
    activation: Literal["tangent", "held"] = "tangent"
    product: Literal["tangent", "held", "half"] = "tangent"

    @classmethod
    def of(cls, gates: Gates) -> Policy:
        """The policy that `gates=` names: "tangent", "frozen", a `name`, or a mapping of kinds over a "base".

        Raises ValueError, naming the kinds or what one may be, TypeError for anything else.

        >>> Policy.of({"base": "tangent", "norm": "held", "product": "half"}).name
        'softmax=tangent norm=held activation=tangent product=half'
        >>> Policy.of("frozen").name
        'frozen'
        """
        if isinstance(gates, Policy):
            return gates
        if isinstance(gates, str) and "=" in gates:
            gates = dict(part.partition("=")[::2] for part in gates.split())
        if isinstance(gates, str):
            gates = {"base": gates}
        if not isinstance(gates, Mapping):
            raise TypeError(f"gates is \"tangent\", \"frozen\" or a mapping of kinds; got {type(gates).__name__}")
        chosen = dict(gates)
        base = chosen.pop("base", "tangent")
        if base not in BASES:
            raise ValueError(f"unknown gate policy {base!r}; choose tangent (the true Jacobian), frozen, or a mapping "
                             f"of the kinds {', '.join(KINDS)}")
        for kind, what in chosen.items():
            if kind not in KINDS:
                raise ValueError(f"unknown kind of factor {kind!r} in gates; the kinds are {', '.join(KINDS)}, and "
                                 "\"base\" is the policy of those that are not named")
            if what not in KINDS[kind]:
                raise ValueError(f"gates[{kind!r}] is {what!r}; choose {' or '.join(KINDS[kind])}")
        return cls(**dict.fromkeys(KINDS, BASES[base]) | chosen)

    @property
    def name(self) -> str:
        """The policy as a word, or as text that `of` reads: what files and reports hold."""
        for base, what in BASES.items():
            if self == Policy(what, what, what, what):
                return base
        return " ".join(f"{kind}={what}" for kind, what in asdict(self).items())

    def shares(self, left: str, right: str) -> tuple[float, float]:
        """How much of a product of two factors each one's term takes, from the factors' kinds.

        (1, 1) is the derivative; any other pair adds up to 1, so that the product has no offset.

        >>> Policy.of("frozen").shares("activation", ""), Policy.of("frozen").shares("", "")
        ((0.0, 1.0), (0.5, 0.5))
        """
        left_rank, right_rank = self._rank(left), self._rank(right)
        if left_rank != right_rank:
            return (0.0, 1.0) if left_rank > right_rank else (1.0, 0.0)
        return (1.0, 1.0) if self.product == "tangent" else (0.5, 0.5)

    def holds(self, kind: str) -> bool:
        """Is a factor of this kind held where the other one is none?"""
        return self._rank(kind) > 0

    def _rank(self, kind: str) -> int:
        if kind == STOPPED:
            return len(_RANK)
        held = {"": False, "activation": self.product == "held", MIXED: self.softmax == "held",
                "softmax": self.softmax == "held", "norm": self.norm == "held"}[kind]
        return _RANK[kind] if held else 0


def strongest(kinds: Iterable[str]) -> str:
    """The kind of what is made of several: a pattern behind weights is one only by itself.

    >>> strongest(["", "activation"]), strongest(["mixed", ""])
    ('activation', '')
    """
    kinds = list(kinds)
    for alone in (STOPPED, MIXED):
        if set(kinds) != {alone}:
            kinds = [kind for kind in kinds if kind != alone]
    if set(kinds) == {STOPPED}:
        return STOPPED
    return max(kinds, key=_RANK.__getitem__, default="")


def behind_weights(kind: str) -> str:
    """What a factor still is behind a weighted layer."""
    return {"softmax": MIXED, STOPPED: STOPPED}.get(kind, "")


Gates = str | Mapping[str, str] | Policy
