"""What mkdocs calls: pages that are made from the code."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from supported_ops import page  # beside this file, which mkdocs loads by its path


def on_files(files: Files, config) -> Files:
    files.append(File.generated(config, "supported-ops.md", content=page()))
    return files
