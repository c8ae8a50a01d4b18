"""What a Local is and how it runs, as text."""

from __future__ import annotations

from specxai._text import printable
from specxai.backends import describe


def report(local) -> str:
    """What was captured and how it runs, in a few lines of text."""
    generic = local.generic_nodes
    smooth = sorted({name for name, gate in local.named_gates() if gate.pattern is None})
    stopped = [local.captured.program.steps[i].layer for i, n in local.graph.nodes.items() if not n.terms]
    # First, as it makes the products that the next lines tell of.
    probe = f"one probe: {local.jacobian.flops / 1e9:.3g} GFLOP, {local.jacobian.product_bytes / 2**20:.3g} MiB"
    lines = [
        f"{local.model_name}: {tuple(local.input.shape)} -> {tuple(local.output.shape)}, {local.input.dtype}, "
        f"{local.input.device}",
        f"{len(local.graph.nodes)} linear nodes, {len(local.layers)} layers, gates {local.gates}",
        *_backends(local),
        f"exactness {local.exactness:.1e}",
        probe,
        "generic nodes (no rule, torch differentiates them one probe at a time): "
        + (", ".join(generic) if generic else "none"),
    ]
    if smooth:
        lines.append(f"smooth gates (linear to first order only): {', '.join(smooth[:8])}"
                     + (f" and {len(smooth) - 8} more" if len(smooth) > 8 else ""))
    if stopped:
        lines.append(f"gradient stopped (held at their value): {', '.join(stopped)}")
    if local.captured.specialised:
        lines.append(f"decided by the input, and captured again where that differs: "
                     f"{', '.join(local.captured.specialised)}")
    lines += _live_table(local)
    return "\n".join(map(printable, lines))


def _backends(local) -> list[str]:
    """Which backend was chosen, which were refused and why, and what runs elsewhere nevertheless."""
    chosen = f"backend {local.backend}, products in {local.jacobian.precision}"
    if local.plan_from:
        chosen += f" from {local.plan_from} columns on, reference below, unless a plan is there already"
    lines = [chosen]
    lines += [f"  refused: {name}, {reason}" for name, able, reason in describe(local.graph.device, local.graph.dtype)
              if not able and not (name == "cuda" and local.graph.device.type != "cuda")]
    whole: dict[str, list[str]] = {}
    for step in local.jacobian.opaque_steps():
        origin = local.captured.program.steps[step]
        whole.setdefault(str(origin.target).removeprefix("aten."), []).append(origin.layer)
    if whole:
        lines.append("  through whole values, by the reference's terms: "
                     + "; ".join(f"{name} in {', '.join(dict.fromkeys(layers))}" for name, layers in whole.items()))
    lines += [f"  on the {engine} engine: {local.captured.program.steps[step].layer}, {reason}"
              for step, engine, reason in local.jacobian.other_engines()]
    return lines


def _live_table(local) -> list[str]:
    """Live against all units and operations of one column, weighted layer by weighted layer."""
    rows = [(local.captured.program.steps[step].layer, live, local.graph.shapes[step].numel(), work / 1e6,
             local.graph.nodes[step].flops / 1e6) for step, live, work in local.jacobian.costs()]
    if not rows:
        return []
    rows.append(("sum", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))))
    width = max(len(row[0]) for row in rows)
    return ["live units of all; MFLOP a column, live of dense:",
            *(f"  {name:<{width}}  {live:>9,} of {units:>9,}   {work:>9,.4g} of {every:>9,.4g}"
              for name, live, units, work, every in rows)]
