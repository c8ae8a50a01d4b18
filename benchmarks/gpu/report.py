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
              "relative to λ₁. Ratios are to torch.func in fp32.", "",
              "| case | question | peer | time | IQR | ratio | GFLOP/s | error | products |",
              "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    lines += [_case(row, found["cases"]) for row in found.get("cases", [])]
    lines += ["", "## Kernels", "",
              "Operations of live units, against the measured roof of the instruction over the products that a "
              "precision takes.", "", "| what | precision | tile | time | TFLOP/s | of the roof | relative error |",
              "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in found.get("kernels", []):
        tile = row["tile"] + (" (chosen)" if row["chosen"] else "")
        lines.append(f"| {row['what']} | {row['precision']} | {tile} | {_time(row['seconds'])} | "
                     f"{row['rate'] / 1e12:.3g} | {row['of_roof']:.0%} | {row['error']:.1e} |")
    return "\n".join(lines) + "\n"


def _case(row: dict, rows: list[dict]) -> str:
    question = row.get("question", "all")
    if "left_out" in row:
        return f"| {row['case']} | {question} | {row['peer']} | left out: {row['left_out']} | | | | | |"
    base = next((other["seconds"] for other in rows if other["case"] == row["case"] and "seconds" in other
                 and other["question"] == question and other["peer"] == "torch.func fp32"), None)
    ratio = "" if base is None else f"{base / row['seconds']:.2f}"
    rate = f"{row['gflop'] / row['seconds']:.4g}" if "gflop" in row else ""
    return (f"| {row['case']} | {question} | {row['peer']} | {_time(row['seconds'])} | {_time(row['iqr'])} | {ratio} | "
            f"{rate} | {row['error']:.1e} | {row.get('products', '')} |")


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
