"""`specxai lens`: fit a Jacobian lens, merge lenses, look at their spectra."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from specxai import lens
from specxai._text import printable
from specxai.cli.own import run_factory
from specxai.cli.settings import LensFitSettings, LensMergeSettings, LensSettings, LensSpectrumSettings
from specxai.lens.decoder import Decoder
from specxai.lens.memory import estimate


def run(settings: LensSettings) -> None:
    """Run the command that was chosen."""
    chosen = settings.command
    {LensFitSettings: _fit, LensMergeSettings: _merge, LensSpectrumSettings: _spectrum}[type(chosen)](chosen)


def _fit(settings: LensFitSettings) -> None:
    model, tokenizer = _load(settings.model)
    decoder = Decoder(model, settings.stack)
    layers = decoder.layers(list(settings.layers) or None)
    prompts = list(islice(_prompts(settings, tokenizer), settings.count))
    tokens = min(settings.max_length, max((ids.shape[1] for ids in prompts), default=1))
    memory = None if settings.max_memory is None else settings.max_memory << 20
    print(f"{printable(settings.model)}: {len(decoder)} blocks at {decoder.stack}, {len(layers)} source layers, "
          f"{len(prompts)} prompts of at most {tokens} tokens")
    print(estimate(decoder, layers, tokens, memory), flush=True)
    found = lens.fit(model, prompts, layers, settings.skip_first, settings.max_length, settings.rank,
                     stack=settings.stack, gates=settings.gates, products=settings.products, backend=settings.backend,
                     checkpoint=settings.checkpoint, every=settings.every, tol=settings.tol, max_memory=memory,
                     progress=None if settings.progress else False, seed=settings.seed)
    found.save(settings.out)
    print(f"{found}\nwritten to {settings.out}")


def _merge(settings: LensMergeSettings) -> None:
    first, *others = (lens.load(path) for path in settings.lenses)
    merged = first.merge(*others)
    merged.save(settings.out)
    print(f"{merged}\nwritten to {settings.out}")


def _spectrum(settings: LensSpectrumSettings) -> None:
    found = lens.load(settings.lens)
    print(found)
    print(f"{'layer':>5} {'a':>8} {'|J - aI|/|J|':>13} {'eff. rank':>10}  singular values of J - aI")
    for layer in list(settings.layers) or found.source_layers:
        if layer not in found.J:
            raise ValueError(f"--layers {layer}: this lens has {', '.join(map(str, found.source_layers))}")
        matrix = found.J[layer].double()
        scale = float(matrix.diagonal().mean())
        rest = matrix - scale * torch.eye(found.d_model, dtype=matrix.dtype)
        S = torch.linalg.svdvals(rest)
        shares = S / S.sum().clamp_min(torch.finfo(S.dtype).tiny)
        effective = float(torch.special.entr(shares).sum().exp())  # Roy and Vetterli 2007
        share = float(rest.norm() / matrix.norm().clamp_min(torch.finfo(S.dtype).tiny))
        print(f"{layer:>5} {scale:>8.4f} {share:>13.4f} {effective:>10.1f}  "
              + " ".join(f"{float(value):.4g}" for value in S[:settings.values]))


def _load(name: str) -> tuple[nn.Module, Callable | None]:
    """(the model of `--model`, its tokenizer or None).  Raises ValueError, FileNotFoundError or ImportError."""
    family, _, rest = name.partition(":")
    if name == "gpt":
        from specxai.zoo.gpt import load_gpt

        return load_gpt()
    if family == "hf":
        return _from_hub(rest)
    path, _, factory = name.rpartition(":")
    if not path.endswith(".py"):
        raise ValueError(f"--model {name!r} is none of: gpt, hf:NAME_OR_FOLDER, FILE.py:FACTORY")
    made = run_factory(Path(path), factory)
    model, tokenizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module) or not (tokenizer is None or callable(tokenizer)):
        raise ValueError(f"{name} returned {type(made).__name__}, not a torch.nn.Module or (module, tokenizer)")
    return model.eval(), tokenizer


def _from_hub(name: str) -> tuple[nn.Module, Callable]:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("--model hf:… needs transformers: pip install transformers") from error
    try:
        return (transformers.AutoModelForCausalLM.from_pretrained(name).eval(),
                transformers.AutoTokenizer.from_pretrained(name))
    except OSError as error:
        raise ValueError(f"--model hf:{name} cannot be loaded ({str(error).splitlines()[0]}); give a folder that "
                         "save_pretrained wrote") from error


def _prompts(settings: LensFitSettings, tokenizer: Callable | None) -> Iterator[Tensor]:
    """Token ids (1, T) of the prompts, those of `gpt` by default the texts that it was not trained on."""
    path = settings.prompts
    if path is None:
        if settings.model != "gpt":
            raise ValueError("--prompts is missing: a .txt, .jsonl or .pt file")
        from specxai.zoo.gpt import texts

        yield from _windows("\n\n".join(texts()[1]), tokenizer, settings.max_length)
        return
    if not path.is_file():
        raise FileNotFoundError(f"no prompts file {path}: give a .txt, .jsonl or .pt file")
    if path.suffix == ".pt":
        yield from _tensors(path)
        return
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"--prompts {path} must end in .txt, .jsonl or .pt")
    if tokenizer is None:
        raise ValueError(f"--prompts {path} holds text, and the factory returns no tokenizer: let it return (model, "
                         "tokenizer), or give ids as a .pt file")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        yield from _windows(text, tokenizer, settings.max_length)
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            given = json.loads(line)
            given = given["text"] if isinstance(given, dict) else given
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a JSON string or an object with \"text\"") from error
        yield torch.tensor([tokenizer(given)["input_ids"]])


def _windows(text: str, tokenizer: Callable, length: int) -> Iterator[Tensor]:
    """The whole text, cut into windows of `length` tokens."""
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    yield from ids.split(length, 1)


def _tensors(path: Path) -> Iterator[Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has errors of its own
        raise ValueError(f"{path} is no file of tensors: save a list of token ids (1, T) with torch.save") from error
    if not isinstance(found, list) or not all(isinstance(ids, Tensor) and ids.ndim == 2 for ids in found):
        raise ValueError(f"{path} holds no list of token ids (1, T)")
    yield from found
