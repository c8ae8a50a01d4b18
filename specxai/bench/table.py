"""Tables of ratios from a run's JSON.

    python -m specxai.bench.table run.json                 # Markdown on stdout
    python -m specxai.bench.table run.json --save STEM     # and STEM.json, STEM.md

A ratio is the peer's median over the row's, both of the same run: above 1 the row is faster than that peer.
"""

from __future__ import annotations

import argparse
import json
from itertools import groupby
from pathlib import Path

AGAINST = ("torch.func matrix-free", "torch.func dense", "autograd on a batch", "dense gated chain", "scipy ARPACK",
           "scipy PROPACK", "skerch", "bare torch.export", "forward pass", "import torch",
           "torch.mm, dense with masks")
COLUMNS = ("peer", "median", "rounds", "error", "estimate", "worst residual / λ₁", "true error of λ / λ₁", "products",
           "GFLOP/s", "of peak", "of memory", "GB/s", "peak MB")
NOTES = """\
Medians; a ratio is the peer's median over the row's, so that above 1 the row is faster.  *error*: for an SVD the
certified bound of ‖R − UΣVᵀ‖_F / ‖R‖_F, in which what a truncation leaves out counts, and its *estimate*, the same
without the safety factor; for a capture the relative difference between the two ways to the bias.  *true error*:
against a dense SVD in float64, where that fits.  *GFLOP/s*: the operator's operations, of dead units too (a stage's
live ones) over all the time.  *peak MB*: beyond the model, in a process of its own, fixing the gates included.  A star:
stopped by the number of products, as equal products are meant to be, not by a tolerance.
"""


def load(path: Path) -> dict:
    """{"machine": where it ran, "rows": one a benchmark}, from pytest-benchmark's JSON or from a saved one."""
    run = json.loads(path.read_text())
    if "rows" in run:
        return run
    rows = [
        {"group": b["group"], "median": b["stats"]["median"], "iqr": b["stats"]["iqr"], "rounds": b["stats"]["rounds"],
         **b["extra_info"]}
        for b in run["benchmarks"]
    ]  # fmt: skip
    if not rows:
        raise SystemExit(f"{path} holds no benchmark: was every one skipped?")
    machine = {key: rows[0][key] for key in ("cpu", "threads", "torch")}
    return {"machine": {**machine, "python": run["machine_info"]["python_version"], "date": run["datetime"][:10]},
            "rows": rows}  # fmt: skip


def markdown(run: dict) -> str:
    machine = run["machine"]
    parts = [f"# Benchmarks, {machine['date']}\n\n{machine['cpu']}, {machine['threads']} threads, torch "
             f"{machine['torch']}, Python {machine['python']}.\n\n{NOTES}"]  # fmt: skip
    parts += [section(list(rows)) for _, rows in groupby(run["rows"], key=lambda row: row["group"])]
    return "\n".join(parts)


def section(rows: list[dict]) -> str:
    """The table of one group: what is compared with each other."""
    first = rows[0]
    about = first["text"]
    if "shape" in first:
        m, n = first["shape"]
        about = (f"R {m:,} × {n:,} ({first['layer'] or 'whole map'}), {first['gflop_per_product']:.3g} GFLOP a "
                 f"product; {about}")  # fmt: skip
    medians = {row["peer"]: row["median"] for row in rows}
    against = [peer for peer in AGAINST if peer in medians]
    table = [[row["peer"], seconds(row["median"]), row["rounds"], number(row.get("error")),
              number(row.get("estimate")), number(row.get("residual")), number(row.get("values_error")),
              products(row), rate(row, "gflop"), number(row.get("of_peak"), "{:.0%}"),
              number(row.get("of_memory"), "{:.0%}"),
              rate(row, "gigabytes"), number(row.get("peak_mb"), "{:,.0f}"),
              *(f"{medians[peer] / row['median']:.2f}×" for peer in against)]
             for row in rows]  # fmt: skip
    heads = [*COLUMNS, *(f"× {peer}" for peer in against)]
    # A column that nothing in this group fills is left out.
    kept = [i for i in range(len(heads)) if any(line[i] != "–" for line in table)]
    lines = ["| " + " | ".join(str(line[i]) for i in kept) + " |" for line in (heads, ["---"] * len(heads), *table)]
    left_out: dict[str, list[str]] = {}
    for peer, why in first.get("left_out", {}).items():
        left_out.setdefault(why, []).append(peer)
    lines += [f"\nNot here: {', '.join(peers)} ({why})." for why, peers in left_out.items()]
    if any("seconds_fresh" in row for row in rows):
        fresh = {row["peer"]: row["seconds_fresh"] for row in rows}
        base = fresh.get("bare torch.export")
        lines.append("\nIn a fresh process: " + ", ".join(
            f"{peer} {seconds(value)}" + (f" ({base / value:.2f}×)" if base else "") for peer, value in fresh.items()))
    return f"## {first['group']}\n\n{about}\n\n" + "\n".join(lines) + "\n"


def products(row: dict) -> str:
    if "products" not in row:
        return "–"
    return f"{row['products']} ({row['method']}, {row['rank']} triplets" + ("" if row["converged"] else "*") + ")"


def rate(row: dict, work: str) -> str:
    return f"{row[work] / row['median']:.3g}" if work in row else "–"


def seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def number(value: float | None, form: str = "{:.1e}") -> str:
    return "–" if value is None else form.format(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="what pytest --benchmark-json wrote, or a saved result")
    parser.add_argument("--save", metavar="STEM", type=Path, help="keep the rows in STEM.json and the table in STEM.md")
    arguments = parser.parse_args()
    run = load(arguments.run)
    text = markdown(run)
    print(text)
    if arguments.save:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.with_suffix(".json").write_text(json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        arguments.save.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
