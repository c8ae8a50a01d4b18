"""What was measured as Markdown: each figure with its error."""

from __future__ import annotations


def markdown(found: dict) -> str:
    machine = found["machine"]
    lines = [f"# {machine['card']}", ""]
    if machine["dry"]:
        lines += ["A rehearsal at tiny sizes: its times mean nothing.", ""]
    lines += [", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("card", "dry")), "",
              "## Roofs", "", "| what | rate | relative error |", "| --- | --- | --- |"]
    for row in found.get("roofs", []):
        scale, unit = (1e12, "TFLOP/s") if row["unit"] == "FLOP/s" else (1e9, "GB/s")
        lines.append(f"| {row['what']} | {row['rate'] / scale:.3g} {unit} | {row['error']:.1e} |")
    lines += ["", "## Networks", "",
              "Passes are of 64 columns: their error is the difference from the reference's float32 products. Equal "
              "products and the default `explain(rank=50)`, capture and certificates included: the largest residual, "
              "relative to λ₁. Ratios are to the first peer of a question. A pass is held against the roof that binds "
              "it: the copied bytes of its rows, or its operations at the rate of the instruction.", "",
              "| case | question | peer | time | IQR | ratio | GFLOP/s | of the roof | error | products |",
              "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    lines += [_case(row, found["cases"]) for row in found.get("cases", [])]
    lines += ["", "## Kernels", "",
              "Operations of live units, against the measured roof of the instruction over the products that a "
              "precision takes.", "", "| what | precision | tile | time | TFLOP/s | of the roof | relative error |",
              "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in found.get("kernels", []):
        tile = row["tile"] + (" (chosen)" if row["chosen"] else "")
        lines.append(f"| {row['what']} | {row['precision']} | {tile} | {_time(row['seconds'])} | "
                     f"{row['rate'] / 1e12:.3g} | {row['of_roof']:.0%} | {row['error']:.1e} |")
    if "streams" in found:
        lines += ["", "## Kernels that only read and write", "", "Bytes of everything once, against the measured copy.",
                  "", "| what | tile | time | GB/s | of the roof | relative error |",
                  "| --- | --- | --- | --- | --- | --- |"]
        lines += [f"| {row['what']} | {row['tile']} | {_time(row['seconds'])} | {row['rate'] / 1e9:.3g} | "
                  f"{row['of_roof']:.0%} | {row['error']:.1e} |" for row in found["streams"]]
    if "choices" in found:
        lines += _choices(found["choices"])
    return "\n".join(lines) + "\n"


def _choices(rows: list[dict]) -> list[str]:
    """What measuring changed, the largest gains first."""
    changed = [row for row in rows if row["chosen"] != row["counted"]]
    both = [row for row in rows if row["gain"]]
    counted, chosen = (sum(row["seconds"][row[which]] for row in both) for which in ("counted", "chosen"))
    lines = ["", "## Ways of layers", "",
             f"{len(changed)} of {len(rows)} stages run another way than the counted one. One run of each takes "
             f"{_time(chosen)} in place of {_time(counted)}. Ways beyond twice the best by counts were not tried; "
             "all times are in the JSON.", "",
             "| case | stage | counted | time | measured best | time | ratio | did not run |",
             "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in sorted(changed, key=lambda row: -(row["gain"] or 0)):
        times = [_time(row["seconds"][row[which]]) if row[which] in row["seconds"] else ""
                 for which in ("counted", "chosen")]
        gain = f"{row['gain']:.2f}" if row["gain"] else ""
        lines.append(f"| {row['case']} | {row['stage']} | {row['counted']} | {times[0]} | {row['chosen']} | {times[1]} "
                     f"| {gain} | {'; '.join(row['failed'])} |")
    failed = sorted({f"{name} ({why})" for row in rows for name, why in row["failed"].items()})
    return [*lines, "", *(f"- did not run: {one}" for one in failed)]


def _case(row: dict, rows: list[dict]) -> str:
    question = row.get("question", "all")
    if "left_out" in row:
        return f"| {row['case']} | {question} | {row['peer']} | left out: {row['left_out']} | | | | | | |"
    first = next(other for other in rows if other["case"] == row["case"] and other.get("question") == question)
    ratio = f"{first['seconds'] / row['seconds']:.2f}" if "seconds" in first else ""
    rate = f"{row['gflop'] / row['seconds']:.4g}" if "gflop" in row else ""
    roof = f"{row['of_roof']:.0%} ({row['roof']})" if "roof" in row else ""
    return (f"| {row['case']} | {question} | {row['peer']} | {_time(row['seconds'])} | {_time(row['iqr'])} | {ratio} | "
            f"{rate} | {roof} | {row['error']:.1e} | {row.get('products', '')} |")


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
