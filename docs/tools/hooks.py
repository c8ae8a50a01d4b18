"""What mkdocs calls: a page that is made from the code, and a check that pages load nothing from elsewhere."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from supported_ops import page as supported_ops  # beside this file, which mkdocs loads by its path

LOADS = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=["']?((?:https?:)?//[^"' >]+)""")
log = logging.getLogger("mkdocs.plugins.hooks")


def on_files(files: Files, config) -> Files:
    files.append(File.generated(config, "supported-ops.md", content=supported_ops()))
    return files


def on_post_page(output: str, page, config) -> str:
    """A warning, which a strict build fails by, for whatever a page would fetch."""
    for address in LOADS.findall(output):
        log.warning("%s loads %s: pages are read offline", page.file.src_uri, address)
    return output
