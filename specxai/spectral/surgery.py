"""Spectral surgery, paper section 4.4: remove or rescale components at the layer, then ask the network again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specxai._text import printable
from specxai.spectral import contraction

__all__ = ["Surgery", "operate"]


@dataclass(frozen=True, eq=False, repr=False)
class Surgery:
    """What changing components at a layer does to the target.

    factors        (k,) float64, what each component was multiplied by: 1 untouched, 0 removed
    before         the target's value at x;  output_linear the local map's prediction, before + Σ (factor − 1) α
    delta_linear   output_linear − before
    output         the real network's whole output (1, *shape), its gates free to change; None without the model
    output_target  w·output, and delta = output_target − before; None without the model

    `delta` and `delta_linear` agree until a gate after the layer flips, which makes their gap the measure of how far
    the linear reading can be trusted.  Bias, bypass and remainder are left as they are.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> s = specxai.explain(net, torch.ones(1, 4), layer="1", target=0, rank=2).surgery(drop=[0])
    >>> s.kept, s.dropped, s.factors.tolist(), s.output.shape
    ([1], [0], [0.0, 1.0], torch.Size([1, 3]))
    """

    target_label: str
    layer: str
    factors: torch.Tensor
    before: float
    output_linear: float
    delta_linear: float
    output: torch.Tensor | None
    output_target: float | None
    delta: float | None

    @property
    def kept(self) -> list[int]:
        """Positions of the components still there, rescaled or not."""
        return (self.factors != 0).nonzero().flatten().tolist()

    @property
    def dropped(self) -> list[int]:
        """Positions of the components removed."""
        return (self.factors == 0).nonzero().flatten().tolist()

    def __repr__(self) -> str:
        real = "not run (no model: the explanation was loaded from a file)" if self.output is None else \
            f"{self.output_target:.6g} ({self.delta:+.6g})"
        return (f"Surgery at '{printable(self.layer)}': {len(self.kept)} of {len(self.factors)} components kept\n"
                f"  {printable(self.target_label)} before {self.before:.6g}\n"
                f"  local map      {self.output_linear:.6g} ({self.delta_linear:+.6g})\n"
                f"  real network   {real}")


def operate(e, keep=None, drop=None, scale: dict[int, float] | None = None) -> Surgery:
    """Change components of explanation `e`; see `Explanation.surgery`.

    keep, drop   positions (int, slice, list or mask), one of the two; `keep` removes all the other components of `e`
    scale        {position: factor}, for components that stay
    """
    factors = _factors(e, keep, drop, scale)
    change = factors - 1
    delta_linear = float(change @ e.alpha)
    output = output_target = delta = None
    if e.local is not None:
        output = _run(e, change)
        output_target = float(output.detach().cpu().double().flatten() @ e.target.double())
        delta = output_target - e.output
    return Surgery(target_label=e.target_label, layer=e.layer, factors=factors, before=e.output,
                   output_linear=e.output + delta_linear, delta_linear=delta_linear, output=output,
                   output_target=output_target, delta=delta)


def _factors(e, keep, drop, scale) -> torch.Tensor:
    if keep is None and drop is None and not scale:
        raise TypeError("surgery needs keep=, drop= or scale={position: factor}")
    if keep is not None and drop is not None:
        raise TypeError("surgery takes keep= or drop=, not both: each says which components go")
    factors = torch.ones(len(e), dtype=torch.float64, device="cpu")
    if keep is not None:
        factors.zero_()[e.positions(keep)] = 1
    if drop is not None:
        factors[e.positions(drop)] = 0
    for position, factor in (scale or {}).items():
        k = int(e.positions(position)[0])
        if factors[k] == 0:
            raise ValueError(f"component {k} is removed and rescaled at once: leave it out of scale=, or do not "
                             "remove it")
        factors[k] = float(factor)
    if not torch.isfinite(factors).all():
        raise ValueError(f"scale={scale!r} holds a factor that is not finite")
    return factors


def _run(e, change: torch.Tensor) -> torch.Tensor:
    """The real network from the layer on, with Σ change_k u_k λ_k (φ_k·x) added to the layer's activation."""
    split = e.local.split(e.layer)
    added = contraction.combine(change * e.S * e.projections, e.left_vectors)
    value = split.value.detach()
    # Added in float64 and rounded once: many components that cancel would otherwise lose digits in the model's dtype.
    new = (value.cpu().double() + added.reshape(value.shape)).to(dtype=value.dtype, device=value.device)
    with torch.no_grad():
        return e.local.run_tail(e.layer, new)
