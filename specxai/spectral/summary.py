"""An explanation and a decomposition as text."""

from __future__ import annotations

from specxai._text import printable

__all__ = ["agreement_text", "decomposition_summary", "summary"]

_COLUMNS = (("k", "{:>6d}"), ("lambda", "{:>12.5g}"), ("psi", "{:>+12.4g}"), ("projection", "{:>12.5g}"),
            ("alpha", "{:>+13.6g}"), ("share", "{:>8.2%}"), ("residual", "{:>10.1e}"))
_TRIPLETS = ("k", "lambda", "projection", "residual")


def summary(e, n: int = 10) -> str:
    """The `n` largest contributions of explanation `e` by |α|, all other terms of the sum, and the checks."""
    rows = e.table()
    shown = [rows[i] for i in e.top(n, by="alpha")]
    lines = [f"Explanation of {printable(e.target_label)} = {e.output:.6g} {_place(e)}: {len(e)} components, "
             f"gates {printable(e.gates)}", *_table(shown, [name for name, _ in _COLUMNS])]
    if len(rows) > len(shown):
        rest = sum(row["alpha"] for row in rows) - sum(row["alpha"] for row in shown)
        lines.append(f"  … {len(rows) - len(shown)} more with sum {rest:+.6g}")
    beta = sum(e.bias_contributions.values())
    through = [("sum of alpha", float(e.alpha.sum()), ""),
               ("bias", e.bias, f"{len(e.bias_contributions)} layers' own biases add up to {beta:+.6g}"),
               ("bypass", e.bypass, "paths round the layer" if e.settings.get("bypass", e.bypass) else "none"),
               ("remainder", e.remainder, "components not computed, or sliced away")]
    lines += [f"  {name:<13}{value:>+14.6g}" + (f"   {note}" if note else "") for name, value, note in through]
    lines.append(f"  {'= output':<13}{e.output:>+14.6g}   completeness {e.completeness:.1e}, {_checks(e)}")
    return "\n".join([*lines, *_solver(e)])


def decomposition_summary(d, n: int = 10) -> str:
    """The first `n` components of decomposition `d`, and the checks."""
    columns = (d.indices, d.S, d.projections, d.residuals)
    rows = [dict(zip(_TRIPLETS, row, strict=True)) for row in zip(*(c[:n].tolist() for c in columns), strict=True)]
    sizes = " × ".join(map(str, d.layer_shape)), " × ".join(map(str, d.input_shape))
    lines = [f"Decomposition {_place(d)}, {sizes[1] or 'scalar'} -> {sizes[0] or 'scalar'}: {len(d)} components, "
             f"gates {printable(d.gates)}", *_table(rows, _TRIPLETS)]
    if len(d) > len(rows):
        lines.append(f"  … {len(d) - len(rows)} more down to {float(d.S[-1]):.5g}")
    return "\n".join([*lines, f"  {_checks(d)}", *_solver(d)])


def agreement_text(value: float | None, digits: int = 1) -> str:
    """How far J is from the model run by torch, in words.

    >>> agreement_text(3.2e-8), agreement_text(None)
    ('agreement 3.2e-08', 'agreement not checked')
    """
    return "agreement not checked" if value is None else f"agreement {value:.{digits}e}"


def _place(record) -> str:
    model, output = record.settings.get("model"), record.settings.get("output")
    return (f"at layer '{printable(record.layer)}'" + (f" of {printable(model)}" if model else "")
            + (f" (output {printable(output)})" if output else ""))


def _table(rows: list[dict], names) -> list[str]:
    """The heads and the rows, every column as wide as its numbers; nothing for no rows."""
    forms = [(name, form) for name, form in _COLUMNS if name in names]
    heads = "".join(name.rjust(len(form.format(0))) for name, form in forms)
    return [heads, *("".join(form.format(row[name]) for name, form in forms) for row in rows)] if rows else []


def _checks(record) -> str:
    return f"exactness {record.exactness:.1e}, {agreement_text(record.agreement)}"


def _solver(record) -> list[str]:
    """How the components were found, and what is known of those that were not."""
    error = "unknown" if record.error is None else f"at most {record.error:.2g}"
    if record.error is not None and (norm := record.solver.get("norm")):
        known = record.error < norm
        error = f"{error} of ‖R‖ = {norm:.3g}" if known else f"not bounded below ‖R‖ = {norm:.3g}, rank=None is exact"
    worst = record.worst_residual
    residual = "" if worst is None else f"worst residual {worst:.1e} λ₁, "
    reached = "converged" if record.converged else "tolerance NOT reached"
    ran = (", ".join(f"{part} on {printable(name)}" for part, name in record.backends.items())
           or f"backend {printable(record.backend)}")
    numbers = record.solver.get("precision")
    return [f"  svd {printable(record.method)}, {reached}, {residual}error {error}",
            f"  seed {record.seed}, {record.products} products" + (f" in {printable(numbers)}" if numbers else "")
            + f", {ran}"]
