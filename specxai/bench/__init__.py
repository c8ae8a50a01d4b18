"""Time, memory and error of SpecXAI beside what one would write instead: `specxai bench`."""

from __future__ import annotations

from specxai.bench.run import run
from specxai.bench.table import markdown

__all__ = ["markdown", "run"]
