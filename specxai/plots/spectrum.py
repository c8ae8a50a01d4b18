"""Spectra and the waterfall: which components there are, which matter, and how they add up to the output."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from specxai.plots.axes import axis_or_new, sign_legend
from specxai.plots.heatmap import BLUE, INK, RED, SOFT, signs


def draw_spectrum(source, axis: Axes | None = None, *, title: str | None = None, legend: bool = True) -> Axes:
    """Draw the spectrum of an Explanation or a Decomposition; returns the axis.

    Of an Explanation: λ_k as a grey area (right axis) behind the α_k as bars (left axis); both zeros at the same
    height.  Of a Decomposition: λ_k on a logarithmic scale above their residuals, and the bound of what they leave; a
    λ is known to within its residual, so where the two meet nothing is left.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> draw_spectrum(specxai.decompose(net, torch.ones(1, 4), layer="1", rank=2)).get_ylabel()
    'singular value'
    """
    axes = axis_or_new(axis)
    if hasattr(source, "alpha"):
        _contributions(axes, source)
        if legend and len(source):
            sign_legend(axes, "contribution", inside=True)
    else:
        _values(axes, source)
    if title is not None:
        axes.set_title(title, fontsize=10, color=INK, parse_math=False)
    return axes


def _values(axes: Axes, d) -> None:
    axes.set_xlabel("k, by descending λ", fontsize=9, color=INK)
    axes.set_ylabel("singular value", fontsize=9, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8, color="0.75")
    if not len(d):
        axes.text(0.5, 0.5, "no components", transform=axes.transAxes, ha="center", color=SOFT)
        return
    k = d.indices.numpy()
    axes.semilogy(k, d.S.numpy(), "o-", ms=3.5, lw=1, color=BLUE, label="λ")
    if bool((d.residuals > 0).any()):
        axes.semilogy(k, d.residuals.numpy(), ".", ms=4, color=RED, label="red: residual, a true λ lies this near")
    if d.error:
        axes.axhline(d.error, lw=0.9, ls="--", color=SOFT, label="bound of all that is left (Frobenius norm)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False)


def _contributions(axes: Axes, e) -> None:
    axes.set_title(f"full spectrum: {len(e)} components", fontsize=10, color=INK)
    style(axes)
    if not len(e):
        _empty(axes, "no components")
        return
    k, alpha, values = e.indices.numpy(), e.alpha.numpy(), e.S.numpy()
    axes.bar(k, alpha, color=signs(alpha), width=0.9, zorder=3)
    axes.axhline(0, color="0.5", lw=0.6, zorder=4)
    low, high = min(0.0, float(alpha.min())), max(0.0, float(alpha.max()))
    high = max(high, -0.5 * low) or 1.0  # λ, which is never negative, needs room above zero
    low, high = 1.06 * low, 1.06 * high
    axes.set_ylim(low, high)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("k, by descending λ", fontsize=9, color=INK)
    axes.set_ylabel(r"contribution $\alpha_k$ (bars)", fontsize=9, color=INK)
    twin = axes.twinx()
    # Behind the bars, which need a transparent background to let it through.
    twin.set_zorder(axes.get_zorder() - 1)
    axes.patch.set_visible(False)
    twin.bar(k, values, width=1.0, color="0.87")
    # The axes' zeros coincide: where α has a negative part the λ axis goes below zero by the same share.
    top = float(values.max()) * 1.06 or 1.0
    twin.set_ylim(top * low / high, top)
    twin.set_yticks([tick for tick in twin.get_yticks() if 0 <= tick <= top])
    twin.set_ylabel(r"singular value $\lambda_k$ (grey)", fontsize=9, color=SOFT)
    twin.tick_params(labelsize=8, colors=SOFT)
    twin.spines[["top", "left", "bottom"]].set_visible(False)
    twin.spines["right"].set_color("0.75")


def draw_reduced(e, axis: Axes | None = None, *, most: int = 20, legend: bool = True) -> Axes:
    """Draw the contributions of an Explanation that are left after opposite ones have cancelled (21), each with the k
    of its component, the `most` largest of them; returns the axis.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> draw_reduced(specxai.explain(net, torch.ones(1, 4), layer="1", rank=2)).get_title().split(":")[0]
    'reduced spectrum'
    """
    axes, reduction = axis_or_new(axis), e.reduce()
    values = np.asarray(reduction.values)
    axes.set_title(f"reduced spectrum: {_count(len(values), 'survivor')} of {len(e)}", fontsize=10, color=INK)
    style(axes)
    if not len(values):
        _empty(axes, "nothing left")
        return axes
    shown = values[:most]
    axes.bar(np.arange(len(shown)), shown, color=signs(shown), width=0.8)
    axes.axhline(0, color="0.5", lw=0.6)
    up = shown[0] >= 0
    axes.set_ylim(*((0, 1.14 * shown[0]) if up else (1.14 * shown[0], 0)))
    if len(shown) < 6:  # a few bars are not to fill the panel like walls
        axes.set_xlim(-0.7, 5.3)
    axes.set_xticks(range(len(shown)), [str(int(e.indices[position])) for position in reduction.dominant[:most]])
    hidden = len(values) - len(shown)
    axes.set_xlabel("k, by size" + (f" ({hidden} smaller not drawn)" if hidden else ""), fontsize=9, color=INK)
    few = len(shown) <= 12
    axes.tick_params(axis="x", length=0, labelsize=8 if few else 7, labelrotation=0 if few else 90)
    axes.set_ylabel(r"$\hat\alpha$ after cancelling", fontsize=9, color=INK)
    if legend:
        sign_legend(axes, "contribution", inside=True)
    return axes


def waterfall_steps(e, top: int = 8) -> list[tuple[str, float]]:
    """(label, amount) from zero to the output: largest contributions, the others, bias, bypass, remainder.

    Whatever `top` is, the amounts add up to the output.
    """
    leading = e.top(top, by="alpha")
    others = float(e.alpha.sum()) - float(e.alpha[leading].sum())
    steps = [(f"α{subscript(int(e.indices[k]))}", float(e.alpha[k])) for k in leading]
    if len(e) > len(leading):
        steps.append((f"{len(e) - len(leading)} other α", others))
    return [*steps, ("bias", e.bias), ("bypass", e.bypass), ("remainder", e.remainder)]


def draw_waterfall(e, axis: Axes | None = None, *, top: int = 8, legend: bool = True) -> Axes:
    """Draw an Explanation as horizontal bars, each starting where the one above ended, down to the output; returns the
    axis.  The `top` largest contributions have bars of their own.

    >>> import torch, specxai
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval()
    >>> axis = draw_waterfall(specxai.explain(net, torch.ones(1, 4), layer="1", rank=2))
    >>> [label.get_text() for label in axis.get_yticklabels()][-2:]
    ['remainder', 'output']
    """
    axes, steps = axis_or_new(axis), waterfall_steps(e, top)
    starts = np.concatenate([[0.0], np.cumsum([amount for _, amount in steps])])
    reach = [*starts, e.output]
    span = (max(reach) - min(reach)) or 1.0
    for place, (_, amount) in enumerate(steps):
        axes.barh(place, amount, left=starts[place], color=signs([amount]), height=0.68)
        axes.plot([starts[place + 1]] * 2, [place - 0.34, place + 1.34], color="0.55", lw=0.7)
        _amount(axes, place, max(starts[place], starts[place + 1]), signed(amount), span)
    axes.barh(len(steps), e.output, color="0.35", height=0.68)
    _amount(axes, len(steps), max(0.0, e.output), f"{e.output:.4g}".replace("-", "−", 1), span, weight="bold")
    axes.axvline(0, color="0.5", lw=0.6)
    axes.set_xlim(min(reach) - 0.04 * span, max(reach) + 0.24 * span)
    axes.set_ylim(len(steps) + 0.6, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.set_yticks(range(len(steps) + 1), [*(name for name, _ in steps), "output"])
    axes.set_title("from zero to the output", fontsize=10, color=INK)
    style(axes)
    axes.tick_params(axis="y", length=0, labelsize=9)
    axes.spines["left"].set_visible(False)
    if legend:
        axes.set_xlabel(" ", fontsize=6)  # room for the legend
        sign_legend(axes, "contribution", inside=True)
    return axes


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign and a true minus; rounding errors with two digits.

    >>> signed(-1.23456), signed(1.23456e-7), signed(0.0)
    ('−1.23', '+1.2e-07', '0')
    """
    if value == 0:
        return "0"
    return f"{value:+.{2 if abs(value) < 1e-3 else digits}g}".replace("-", "−", value < 0)


def subscript(number: int) -> str:
    """Digits as subscripts.

    >>> subscript(42)
    '₄₂'
    """
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _amount(axes: Axes, place: int, right: float, text: str, span: float, weight: str = "normal") -> None:
    axes.text(right + 0.012 * span, place, text, va="center", fontsize=8, color=INK, fontweight=weight,
              bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})


def _empty(axes: Axes, why: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", color=SOFT)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def style(axes: Axes) -> None:
    """Two spines, grey, and small numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("0.75")
    axes.tick_params(labelsize=8, color="0.75")
