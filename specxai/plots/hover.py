"""The spectrum as a drawing to point at, for the report: plain SVG, no script, nothing to load."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 1000, 300, 64, 16, 12, 30


@dataclass(frozen=True)
class Bar:
    """One component: a bar from the zero line, and an invisible column over the full height that shows `tip`."""

    left: float
    width: float
    top: float
    height: float
    sign: str
    tip: str


@dataclass(frozen=True)
class Drawing:
    """What the template needs to draw `spectrum`, in units of a WIDTH x HEIGHT box."""

    bars: list[Bar]
    curve: str
    zero: float
    ticks: list[tuple[float, str]]
    places: list[tuple[float, str]]


def spectrum(e) -> Drawing | None:
    """α_k as bars and λ_k as a line above a common zero, as `specxai.plots.spectrum` draws them; None without any."""
    if not len(e):
        return None
    alpha, values, k = e.alpha.numpy(), e.S.numpy(), e.indices.tolist()
    low, high = min(0.0, float(alpha.min())), max(0.0, float(alpha.max()))
    high = max(high, -0.5 * low) or 1.0  # λ, which is never negative, needs room above zero
    scale = (HEIGHT - TOP - BOTTOM) / (high - low)
    zero, step = TOP + high * scale, (WIDTH - LEFT - RIGHT) / len(k)
    rows = zip(k, alpha.tolist(), values.tolist(), e.psi.tolist(), e.projections.tolist(), strict=True)
    bars = [Bar(round(LEFT + i * step, 2), round(step, 3), round(zero - max(a, 0.0) * scale, 2),
                round(max(abs(a) * scale, 0.4), 2), "plus" if a >= 0 else "minus",
                f"k = {place}\nα = {a:.4g}\nλ = {s:.4g}\nψ = {psi:.4g}\nφ·x = {dot:.4g}".replace("-", "−"))
            for i, (place, a, s, psi, dot) in enumerate(rows)]
    top = float(values.max()) or 1.0
    curve = " ".join(f"{LEFT + (i + 0.5) * step:.1f},{zero - s / top * high * scale:.1f}"
                     for i, s in enumerate(values.tolist()))
    ticks = [(zero - value * scale, f"{value:.3g}".replace("-", "−")) for value in _round(low, high)]
    every = next(n * 10**power for power in range(9) for n in (1, 2, 5) if n * 10**power * 14 >= len(k))
    places = [(LEFT + (i + 0.5) * step, str(k[i])) for i in range(0, len(k), every)]
    return Drawing(bars, curve, zero, ticks, places)


def _round(low: float, high: float) -> list[float]:
    """A few round numbers from low to high."""
    from matplotlib.ticker import MaxNLocator

    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    return [float(t) for t in ticks if low <= t <= high or np.isclose(t, 0)]
