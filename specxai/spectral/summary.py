"""An explanation as text."""

from __future__ import annotations

from specxai._text import printable

__all__ = ["summary"]

_COLUMNS = (("k", "{:>6d}"), ("lambda", "{:>12.5g}"), ("psi", "{:>+12.4g}"), ("projection", "{:>12.5g}"),
            ("alpha", "{:>+13.6g}"), ("share", "{:>8.2%}"), ("residual", "{:>10.1e}"))


def summary(e, n: int = 10) -> str:
    """The `n` largest contributions of explanation `e` by |α|, all other terms of the sum, and the checks."""
    rows = e.table()
    shown = [rows[i] for i in e.top(n, by="alpha")]
    model = e.settings.get("model")
    lines = [f"Explanation of {e.target_label} = {e.output:.6g} at layer {e.layer!r}"
             + (f" of {model}" if model else "") + f": {len(e)} components, gates {e.gates}"]
    if shown:
        # Every column is as wide as its numbers.
        lines.append("".join(name.rjust(len(form.format(0))) for name, form in _COLUMNS))
        lines += ["".join(form.format(row[name]) for name, form in _COLUMNS) for row in shown]
    if len(rows) > len(shown):
        rest = sum(row["alpha"] for row in rows) - sum(row["alpha"] for row in shown)
        lines.append(f"  … {len(rows) - len(shown)} more with sum {rest:+.6g}")
    beta = sum(e.bias_contributions.values())
    through = [("sum of alpha", float(e.alpha.sum()), ""),
               ("bias", e.bias, f"{len(e.bias_contributions)} layers' own biases add up to {beta:+.6g}"),
               ("bypass", e.bypass, "paths round the layer" if e.settings.get("bypass", e.bypass) else "none"),
               ("remainder", e.remainder, "components not computed, or sliced away")]
    lines += [f"  {name:<13}{value:>+14.6g}" + (f"   {note}" if note else "") for name, value, note in through]
    lines.append(f"  {'= output':<13}{e.output:>+14.6g}   completeness {e.completeness:.1e}, "
                 f"exactness {e.exactness:.1e}")
    solver = e.settings.get("svd", {})
    error = "unknown" if e.error is None else f"at most {e.error:.2g}"
    if e.error is not None and solver.get("norm"):
        error += f" of ‖R‖ = {solver['norm']:.3g}"
    missed = "" if solver.get("converged", True) else ", tolerance NOT reached"
    lines.append(f"  svd {e.method}, seed {e.seed}, {e.products} products, error {error}{missed}, backend {e.backend}")
    return "\n".join(map(printable, lines))
