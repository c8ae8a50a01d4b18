"""`specxai reproduce`: figures of the paper from scratch."""

from __future__ import annotations

from dataclasses import asdict

from specxai.cli.output import save_settings, staged
from specxai.cli.settings import ReproduceSettings


def run(settings: ReproduceSettings) -> None:
    """Train, draw, and write figures, weights, numbers and settings to `settings.out`."""
    from specxai.experiments.squares import reproduce_squares

    with staged(settings.out) as folder:
        reproduce_squares(folder, seed=settings.seed, epochs=settings.epochs)
        save_settings(asdict(settings), folder)
        names = sorted(path.name for path in folder.iterdir())
    print(f"written to {settings.out}: {', '.join(names)}")
