"""What a GPT is about to say, layer by layer and position by position: a Jacobian lens read as one HTML page.

The page is one file, loads nothing, and shows the lens beside the logit lens (J = I).

Examples:
    python examples/lens_page.py --out lens.html
    python examples/lens_page.py --lens lens.pt --text "Return a list of the names in the module" --out lens.html
"""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import torch
import tyro
from torch import Tensor

import specxai
from specxai._files import replacing
from specxai.lens import Lens
from specxai.zoo.gpt import GPT, checkpoint_info, load_gpt, texts
from specxai.zoo.words import Words

TOP = 8  # tokens that a cell knows
TEXT = ("Return a list of the names of the files in the directory given by path. If the file does not exist, an error "
        "is raised. The default is None, which means that the value is not set.")
MODES = {"lens": "Jacobian lens", "logit": "logit lens"}


def windows(words: Words, length: int, count: int) -> list[Tensor]:
    """Token ids (1, T) of the texts that the GPT was not trained on, evenly spaced."""
    ids = torch.tensor([words.encode("\n\n".join(texts()[1]))])
    starts = torch.linspace(0, ids.shape[1] - length, count).long().tolist()
    return [ids[:, start:start + length] for start in starts]


def logits_by_layer(lens: Lens, model: GPT, ids: Tensor) -> dict[str, Tensor]:
    """{mode: (layers, T, vocabulary)}, the last layer being the model's own output."""
    found = specxai.lens.residuals(model, ids)
    last = lens.metadata["target_layer"]
    return {"lens": torch.stack([lens.readout(found[layer], layer) for layer in found]),
            "logit": torch.stack([lens.readout(found[layer], last) for layer in found])}


def agreement(lens: Lens, model: GPT, prompts: list[Tensor], skip: int) -> dict[str, list[float]]:
    """{mode: per layer, the share of positions at which the first token is the model's own}."""
    same: dict[str, list[Tensor]] = {mode: [] for mode in MODES}
    for ids in prompts:
        for mode, logits in logits_by_layer(lens, model, ids).items():
            first = logits[:, skip:].argmax(-1)
            same[mode].append((first == first[-1:]).double())
    return {mode: torch.cat(parts, 1).mean(1).tolist() for mode, parts in same.items()}


def visible(piece: str) -> str:
    """A piece as a cell shows it: the space before a word as a dot, ends of lines as arrows."""
    return piece.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥") or "∅"


def cells(logits: Tensor, ids: Tensor) -> list[list[dict]]:
    """[layer][position] -> the first tokens with their probabilities, and the place of the token that comes next."""
    chances = logits.softmax(-1)
    top = chances.topk(TOP, -1)
    following = torch.cat([ids[0, 1:], ids.new_tensor([-1])])
    found = []
    for layer in range(len(logits)):
        row = []
        for place, token in enumerate(following.tolist()):
            rank = None if token < 0 else 1 + int((chances[layer, place] > chances[layer, place, token]).sum())
            row.append({"t": top.indices[layer, place].tolist(), "rank": rank,
                        "p": [round(float(p), 4) for p in top.values[layer, place]]})
        found.append(row)
    return found


def curve(shares: list[float], box: tuple[int, int, int, int]) -> str:
    """Points of a polyline in a box (left, top, right, bottom) for shares from 0 to 1."""
    left, top, right, bottom = box
    step = (right - left) / max(len(shares) - 1, 1)
    return " ".join(f"{left + step * number:.1f},{bottom - share * (bottom - top):.1f}"
                    for number, share in enumerate(shares))


def main(out: Path = Path("lens.html"), lens: Path | None = None, text: str = TEXT, prompts: int = 60,
         skip_first: int = 16) -> None:
    """Fit a lens on the GPT that ships with the library, or read one, and write the page.

    Args:
        out: the page.
        lens: a lens file; fitted here where there is none.
        text: what the GPT reads, up to 128 tokens.
        prompts: windows of 128 tokens that the lens is fitted on.
        skip_first: positions at the beginning that do not count.
    """
    model, words = load_gpt()
    if lens is None:
        fitted = specxai.lens.fit(model, windows(words, 128, prompts), skip_first=skip_first)
    else:
        fitted = specxai.lens.load(lens, model)
    ids = torch.tensor([words.encode(text)[:128]])
    shown = logits_by_layer(fitted, model, ids)
    shares = agreement(fitted, model, windows(words, 128, 24), skip_first)
    box = (46, 14, 610, 190)
    data = {"modes": {mode: cells(logits, ids) for mode, logits in shown.items()},
            "ids": ids[0].tolist(), "pieces": [visible(words.decode([number])) for number in range(words.size)]}
    template = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent),
                                  undefined=jinja2.StrictUndefined).get_template("lens_page.html.j2")
    page = template.render(
        # No "<" in a script: a piece may read like the script's end.
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"), modes=MODES, n_prompts=fitted.n_prompts,
        layers=len(model.blocks), width=fitted.d_model, info=checkpoint_info(), box=box,
        curves={mode: curve(part, box) for mode, part in shares.items()}, shares=shares)
    with replacing(out) as draft:
        draft.write_text(page, encoding="utf-8")
    print(f"{fitted}; page: {out} ({out.stat().st_size / 2**10:.0f} KiB)")


if __name__ == "__main__":
    tyro.cli(main)
