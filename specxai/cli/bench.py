"""`specxai bench`: ratios from one run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from specxai.cli.near import near
from specxai.cli.output import save_settings, staged
from specxai.cli.settings import BenchSettings


def run(settings: BenchSettings) -> None:
    """Measure, print the tables, and with `settings.out` keep them with every number behind them."""
    import torch

    from specxai.bench.cases import CASES, QUESTIONS
    from specxai.bench.peers import PEERS
    from specxai.bench.run import PASSES
    from specxai.bench.run import run as measure
    from specxai.bench.table import markdown

    cases = [_known("case", name, CASES) for name in settings.cases]
    peers = [_known("peer", name, PEERS) for name in settings.peers or PEERS]
    questions = [_known("question", name, (*QUESTIONS, PASSES)) for name in settings.questions]
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)

    def work() -> dict:
        found = measure(cases, questions, peers, settings.full, settings.memory,
                        say=lambda text: print(text, file=sys.stderr, flush=True))
        if not found["rows"]:
            raise ValueError(f"{', '.join(cases)} have no answer to {', '.join(settings.questions)}; leave --questions "
                             "out to ask each case its own")
        return found

    if settings.out is None:
        print(markdown(work()))
        return
    with staged(settings.out) as folder:
        found = work()
        text = markdown(found)
        (folder / "bench.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "bench.md").write_text(text, encoding="utf-8")
        save_settings(asdict(settings), folder)
    print(text)
    print(f"written to {settings.out}: bench.json, bench.md, settings.json")


def _known(what: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise ValueError(f"no {what} is named {name!r}; there are {', '.join(names)}{near(name, names)}")
    return name
