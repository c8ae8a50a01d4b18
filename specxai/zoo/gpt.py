"""A small GPT that has read what Python says of itself: its checkpoint, its pieces and its text."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specxai.zoo.checkpoint import header, loaded
from specxai.zoo.words import BYTES, Words

WIDTH, HEADS, BLOCKS, CONTEXT, MERGES = 128, 4, 6, 128, 1792
HELD_OUT = 20  # every so many texts, one is not trained on
CHECKPOINT = Path(__file__).with_name("gpt.safetensors")


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), for x (N, T, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.ln_1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """GPT-2's architecture in plain torch: token ids (N, T) to logits (N, T, vocabulary); blocks are `blocks.0` ….

    >>> GPT(vocabulary=50, width=8, heads=2, blocks=2, context=16).eval()(torch.zeros(1, 5, dtype=torch.long)).shape
    torch.Size([1, 5, 50])
    """

    def __init__(self, vocabulary: int = BYTES + MERGES, width: int = WIDTH, heads: int = HEADS, blocks: int = BLOCKS,
                 context: int = CONTEXT) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                last = name.endswith(("out.weight", "down.weight"))  # what is added to the stream, block after block
                nn.init.normal_(parameter, std=0.02 / (2 * blocks) ** 0.5 if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@cache
def texts() -> tuple[list[str], list[str]]:
    """(trained on, held out): the texts that this Python ships about itself, the topics of its `help()` and, module by
    module of the standard library, the docstrings.
    """
    from pydoc_data.topics import topics  # as large as a book

    found = [*topics.values(), *_docstrings()]
    held = found[HELD_OUT - 1::HELD_OUT]
    return [text for number, text in enumerate(found, 1) if number % HELD_OUT], held


def _docstrings() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    all_texts = []
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data"} & set(path.parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # what tests of the parser read
                continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        text = "\n\n".join(inspect.cleandoc(part) for part in found if part)
        if len(text) > 200:
            all_texts.append(text)
    return all_texts


def checkpoint_info(path: Path = CHECKPOINT) -> dict:
    """What a checkpoint says of itself.

    Keys: merges, vocabulary, width, heads, blocks, context, held_out_loss (nats a piece), seed, steps, batch, torch,
    python.
    """
    return header(path)


def load_gpt(path: Path = CHECKPOINT) -> tuple[GPT, Words]:
    """(the trained net in eval mode and float32, its pieces); the shipped one unless another checkpoint is given.

    Raises ValueError for a checkpoint whose sizes are not this module's, FileNotFoundError where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}: train the GPT with python examples/train_gpt.py, which takes "
                                "three minutes of one core")
    sizes = {"width": WIDTH, "heads": HEADS, "blocks": BLOCKS, "context": CONTEXT, "vocabulary": BYTES + MERGES}
    return loaded(GPT(), path, sizes), Words(header(path)["merges"])
