"""The `specxai` command: explain, lens, info, reproduce, bench."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from inspect import cleandoc
from typing import Annotated

from specxai._text import printable
from specxai.cli.settings import BenchSettings, ExplainSettings, InfoSettings, LensSettings, ReproduceSettings
from specxai.cli.stop import stoppable

DESCRIPTION = """SpecXAI: spectral explanations of neural networks, exact and certified.

Examples:
    specxai explain --model digits --image 3
    specxai lens fit --out lens.pt
    specxai info
    specxai reproduce squares --out squares --quick
    specxai bench --cases digits
"""

Settings = ExplainSettings | LensSettings | InfoSettings | ReproduceSettings | BenchSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for errors of use)."""
    settings = _parse(argv)
    try:
        with stoppable("specxai"):
            settings.check()
            _run(settings)
    except SystemExit as stop:
        return stop.code
    except BrokenPipeError:  # `specxai … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        # Every error of the library names cause and remedy; a traceback would bury it.
        if settings.debug:
            raise
        reason = " ".join(str(error).split())
        if not reason or isinstance(error, KeyError | AttributeError | AssertionError | NotImplementedError):
            reason = f"{type(error).__name__}: {reason}"  # Python's own words are no sentence
        print(f"specxai: {printable(reason)} (--debug shows where)", file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> Settings:
    """The settings; help and errors leave by SystemExit, an error as one line."""
    import tyro

    def command(name: str, kind: type):
        return Annotated[kind, tyro.conf.subcommand(name, description=cleandoc(kind.__doc__))]

    Command = command("explain", ExplainSettings) | command("lens", LensSettings) | command(
        "info", InfoSettings) | command("reproduce", ReproduceSettings) | command("bench", BenchSettings)
    shown = io.StringIO()
    try:
        with redirect_stderr(shown):
            return tyro.cli(Command, prog="specxai", description=DESCRIPTION, args=argv,
                            config=(tyro.conf.OmitSubcommandPrefixes,))
    except SystemExit as stop:
        if stop.code:
            print(f"specxai: {_cause(shown.getvalue())}", file=sys.stderr)
        raise


def _cause(box: str) -> str:
    """The sentences of tyro's box of errors, without its frame (lines or dashes), its title and its page of help.

    >>> _cause("╭─ Wrong ─╮\\n│ no option -x │\\n│ ─── │\\n│ For full helptext, run a --help │\\n╰───╯")
    'no option -x; run a --help'
    """
    plain = re.sub(r"\x1b\[[\d;]*m", "", box)
    lines = [line.strip("│ ") for line in plain.splitlines()[1:] if not line.startswith("╰")]
    parts = " ".join(line if line.strip("─-") else "\n" for line in lines if line).split("\n")
    said = [part.partition("Got errors:")[0].strip().removeprefix("For full helptext, ").rstrip(".")
            for part in parts if part.strip() and not part.strip().startswith("Argument helptext:")]
    return "; ".join(said)


def _run(settings: Settings) -> None:
    if isinstance(settings, InfoSettings):
        from specxai.cli.info import info

        print(info())
    elif isinstance(settings, LensSettings):
        from specxai.cli.lens import run

        run(settings)
    elif isinstance(settings, ReproduceSettings):
        from specxai.cli.reproduce import run

        run(settings)
    elif isinstance(settings, BenchSettings):
        from specxai.cli.bench import run

        run(settings)
    else:
        from specxai.cli.explain import run

        run(settings)
    sys.stdout.flush()


def entry() -> None:
    """The console script."""
    sys.exit(main())
