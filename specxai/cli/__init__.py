"""The `specxai` command: explain, info, reproduce."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from inspect import cleandoc
from typing import Annotated

from specxai.cli.settings import ExplainSettings, InfoSettings, ReproduceSettings

DESCRIPTION = """SpecXAI: spectral explanations of neural networks, exact and certified.

Examples:
    specxai explain --model digits --image 3
    specxai info
    specxai reproduce squares --out squares
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for errors of use)."""
    import tyro

    def command(name: str, kind: type):
        return Annotated[kind, tyro.conf.subcommand(name, description=cleandoc(kind.__doc__))]

    Command = command("explain", ExplainSettings) | command("info", InfoSettings) | command(
        "reproduce", ReproduceSettings)
    settings = tyro.cli(Command, prog="specxai", description=DESCRIPTION, args=argv,
                        config=(tyro.conf.OmitSubcommandPrefixes,))
    try:
        _run(settings)
    except KeyboardInterrupt:
        print("specxai: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        # Every error of the library names cause and remedy; a traceback would bury it.
        if getattr(settings, "debug", False):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"specxai: {reason} (--debug shows where)", file=sys.stderr)
        return 2
    return 0


def _run(settings) -> None:
    if isinstance(settings, InfoSettings):
        from specxai.cli.info import info

        print(info())
    elif isinstance(settings, ReproduceSettings):
        from specxai.squares import reproduce_squares

        written = reproduce_squares(settings.out, seed=settings.seed, epochs=settings.epochs)
        print(f"written to {settings.out}: {len(written)} entries")
    else:
        from specxai.cli.explain import run

        run(settings)


def entry() -> None:
    """The console script."""
    sys.exit(main())
