"""Measures a card: roofs, kernels, and peers and engines on real networks; one JSON and one Markdown table.

    python benchmarks/gpu/measure.py [--dry] [--seconds 300] [--out FOLDER]
    python benchmarks/gpu/measure.py --more          # a second call: what six minutes have no room for

`--dry` rehearses all of it on the CPU at tiny sizes, the kernels in Triton's interpreter: its times mean nothing.
Every time stands beside its error.  What the time did not reach is named.  Layers run in the ways that are counted,
which compiles least; the second call measures them too, and says which layers change theirs and by how much.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import re
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import choices
import estimate
import questions
import rates
import streams
import torch
from report import markdown
from timing import Clock, tf32
from torch import nn

import decoders
import specxai
from specxai._files import replacing
from specxai.backends.cuda.engine import PRECISION
from specxai.bench.cases import CASES, COLUMNS, QUESTIONS, SOLVER_SEED, Case, vision
from specxai.bench.operators import TorchFunc
from specxai.bench.peers import Subject
from specxai.operators import LinearOperator
from specxai.svd.certify import HELD_OUT

FP32, TF32, TORCH, CUDA = "torch.func fp32", "torch.func TF32", "specxai torch", "specxai cuda"
COLUMNS_DRY, RANK_DRY = 4, 2
PASSES, CALLS = (0.3, 10), (0.5, 2)  # seconds that each is timed for, and the most runs


class Tf32(LinearOperator):
    """Another operator's products with TF32 allowed, also inside of a solver that forbids it."""

    def __init__(self, of: LinearOperator) -> None:
        super().__init__(of.shape, of.dtype, of.device, block_size=of.block_size)
        self._of = of

    def _matmat(self, X):
        with tf32(True):
            return self._of.matmat(X)

    def _rmatmat(self, Y):
        with tf32(True):
            return self._of.rmatmat(Y)


def tiny(name: str) -> Case:
    """A rehearsal's stand-in: the same kinds of layers, few of them."""
    def make():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
                            nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU6(), nn.Conv2d(6, 2, 1))
        return net.eval(), torch.randn(1, 3, 4, 4)

    return Case(f"tiny, for {name}", make, "6", ())


def cases(dry: bool, more: bool) -> list[Case]:
    real = [CASES["vgg11_bn"], CASES["efficientnet_lite0"]]
    if more:
        real = [Case("resnet50", lambda: vision("resnet50"), "layer4", ()), CASES["densenet121"], CASES["vgg11_bn"]]
    return [tiny(case.name) for case in real[:1]] if dry else real


def settings(question: str, dry: bool) -> dict:
    if not dry:
        return QUESTIONS[question].settings
    small = {"rank": RANK_DRY}
    if question == "equal":
        small |= {"block_size": COLUMNS_DRY - RANK_DRY, "max_products": HELD_OUT + 3 * COLUMNS_DRY}
    return QUESTIONS[question].settings | small


class Measured:
    """One case on the device: its peers' operators, made once."""

    def __init__(self, case: Case, clock: Clock, dry: bool, roof: dict[str, float]) -> None:
        self.clock, self.dry, self.roof = clock, dry, roof
        self.columns = COLUMNS_DRY if dry else COLUMNS
        self.passes, self.calls = ((0.01, 1), (0.0, 1)) if dry else (PASSES, CALLS)
        self.subject = Subject(case, chunk=self.columns)
        self.subject.model, self.subject.x = self.subject.model.to(clock.device), self.subject.x.to(clock.device)

    def operator(self, peer: str) -> LinearOperator:
        """R with the gates fixed at x."""
        if peer in (FP32, TF32):
            plain = TorchFunc(self.subject.function, self.subject.x, self.columns, "jvp")
            return plain if peer == FP32 else Tf32(plain)
        return self.subject.operator(peer)

    def rows(self) -> Iterator[dict]:
        name = self.subject.case.name
        for peer in (FP32, TF32, TORCH, CUDA):
            if self.clock.left < 0:
                yield {"case": name, "peer": peer, "left_out": "no time was left"}
                continue
            try:
                with tf32(False):
                    yield from self._of(peer)
            except torch.cuda.OutOfMemoryError as error:
                yield {"case": name, "peer": peer, "left_out": str(error).splitlines()[0]}

    def _of(self, peer: str) -> Iterator[dict]:
        name = self.subject.case.name
        operator = self.operator(peer)
        g = torch.Generator().manual_seed(SOLVER_SEED)
        X, Y = (torch.randn(n, self.columns, generator=g).to(self.subject.x) for n in operator.shape[::-1])
        reference = self.subject.reference
        for question, product, block, want in (("forward", operator.matmat, X, reference.matmat(X[:, :2])),
                                               ("adjoint", operator.rmatmat, Y, reference.rmatmat(Y[:, :2]))):
            got = product(block)[:, :2]
            told = self.clock.of(lambda product=product, block=block: product(block), *self.passes)
            gflop = reference.flops if peer in (FP32, TF32) else operator.flops
            yield {"case": name, "peer": peer, "question": question, "gflop": gflop * self.columns / 1e9,
                   "error": float((got - want).norm() / want.norm()), **self._bound(peer, operator, told), **told}
        for question, work in (("equal", self._equal(operator)), ("default", self._default(peer))):
            if self.clock.left < 0:
                yield {"case": name, "peer": peer, "question": question, "left_out": "no time was left"}
                continue
            result = work()
            told = self.clock.of(work, *self.calls, warm=False)  # kernels are compiled by now
            answer = self.subject.answer(result)
            yield {"case": name, "peer": peer, "question": question, "error": answer.residual, "captured": answer.error,
                   "products": answer.products, "converged": answer.converged, "method": answer.method, **told}

    def _bound(self, peer: str, operator: LinearOperator, told: dict) -> dict:
        """Which roof a pass of the engine hits first, and the share of it that is reached."""
        if peer != CUDA:
            return {}
        unit, products = rates.PRODUCTS[PRECISION]
        least = {"copy": operator.bytes_moved(self.columns) / self.roof["copy"],
                 unit: operator.flops * self.columns * products / self.roof[unit]}
        roof = max(least, key=least.get)
        return {"roof": roof, "of_roof": least[roof] / told["seconds"]}

    def _equal(self, operator: LinearOperator) -> Callable[[], object]:
        return lambda: specxai.svd(operator, seed=SOLVER_SEED, progress=False, **settings("equal", self.dry))

    def _default(self, peer: str) -> Callable[[], object]:
        """From a new input: gates are fixed within the time."""
        chosen, subject = settings("default", self.dry), self.subject
        if peer in (FP32, TF32):
            return lambda: specxai.svd(self.operator(peer), seed=SOLVER_SEED, progress=False, **chosen)
        # A model of its own each time, as a capture would be found again.
        return lambda: specxai.explain(copy.deepcopy(subject.model), subject.x, subject.case.layer, rank=chosen["rank"],
                                       seed=SOLVER_SEED, progress=False, backend=peer.removeprefix("specxai "))


def card(device: torch.device, dry: bool) -> dict:
    found = {"dry": dry, "torch": torch.__version__, "python": platform.python_version(),
             "specxai": specxai.__version__, "date": date.today().isoformat()}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found |= {"card": facts.name, "capability": f"{facts.major}.{facts.minor}", "cuda": torch.version.cuda,
                  "multiprocessors": facts.multi_processor_count, "memory": facts.total_memory}
    else:
        found["card"] = "no card: the CPU in Triton's interpreter"
    return found


def others(keep: Callable[[str, Iterator[dict]], list[dict]], clock: Clock, dry: bool, roof: dict[str, float]) -> None:
    """What is asked beside networks."""
    keep("cases", questions.rows(clock, dry))
    keep("cases", decoders.rows(clock, dry, roof))  # last: whatever they take, the rest is there


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="rehearse on the CPU")
    parser.add_argument("--more", action="store_true", help="ResNet-50, DenseNet-121, kernels by themselves, "
                        "and the ways of layers, to more.json and more.md")
    parser.add_argument("--seconds", type=float, default=240, help="no new measurement starts after so many")
    parser.add_argument("--out", type=Path, help="folder; by default benchmarks/results/gpu/CARD, dry build/gpu")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA device; rehearse with --dry")
    os.environ["SPECXAI_TUNE"] = "0"
    device = torch.device("cpu" if options.dry else "cuda")
    torch.manual_seed(0)
    clock, found = Clock(device, options.seconds), {"machine": card(device, options.dry)}
    root = Path(__file__).parents[2]
    name = re.sub(r"[^a-z0-9]+", "-", found["machine"]["card"].lower()).strip("-")
    stem = "more" if options.more else "result"
    out = options.out or (root / "build/gpu/dry" if options.dry else root / "benchmarks/results/gpu" / name)

    def keep(part: str, rows: Iterator[dict]) -> list[dict]:
        """Written after each row, so that what was measured is there whatever happens next."""
        kept = found.setdefault(part, [])
        for row in rows:
            kept.append(row)
            print(part, {key: f"{v:.3g}" if isinstance(v, float) else v for key, v in row.items()}, flush=True)
            out.mkdir(parents=True, exist_ok=True)
            for file, text in ((f"{stem}.json", json.dumps(found, indent=1) + "\n"), (f"{stem}.md", markdown(found))):
                with replacing(out / file) as draft:
                    draft.write_text(text)
        return kept

    if options.dry:
        steps = estimate.more_steps if options.more else estimate.steps
        found["estimate"] = [vars(step) for step in steps(PASSES, CALLS)]
        for step in found["estimate"]:
            print(f"on an H100, {step['name']}: {step['seconds']:.0f} s ({step['why']})")
        print(f"on an H100, all: {sum(step['seconds'] for step in found['estimate']):.0f} s expected")
    roof = {row["what"]: row["rate"] for row in keep("roofs", rates.roofs(clock, options.dry))}
    for case in cases(options.dry, options.more):
        measured = Measured(case, clock, options.dry, roof)
        if not options.more or options.dry or case.name in estimate.MORE:
            keep("cases", measured.rows())
        if options.more and (options.dry or case.name in estimate.TRIED):
            choices.ask(keep, clock, options.dry, measured.subject, measured.columns, measured.passes)
    if options.more:
        keep("kernels", rates.layers(clock, options.dry, roof))
        keep("streams", streams.rows(clock, options.dry, roof["copy"]))
    else:
        others(keep, clock, options.dry, roof)
    print(f"wrote {out / stem}.json and {out / stem}.md")


if __name__ == "__main__":
    main()
