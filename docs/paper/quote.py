"""Write the numbers that docs/paper.md quotes into it, from the JSON that `specxai reproduce` wrote.

A number stands in the text as <!--= squares operator/c1 -->14.5<!--/-->: the file docs/paper/squares.json, the path of
the number, and what a reader sees.  An index as in operator/c[1] picks one of a list; a table's cell is
tables/NAME[row]/COLUMN with _ for spaces.

    python docs/paper/quote.py             # rewrite docs/paper.md
    python docs/paper/quote.py out/all     # first copy out/all/NAME/numbers.json here
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
DOCUMENT = FOLDER.parent / "paper.md"
QUOTE = re.compile(r"<!--= ([\w-]+) (.+?) -->.*?<!--/-->")


def look_up(numbers: dict, path: str) -> str:
    """The number at a path as people read it, with its interval.

    >>> look_up({"a": {"b": {"value": 0.12345, "interval": [0.1, 0.2]}}, "l": {"value": [1, 2]}}, "a/b")
    '0.123 [0.1, 0.2]'
    """
    place = numbers
    for part in path.split("/"):
        name, *indices = re.split(r"[\[\]]+", part.rstrip("]"))
        key = next((key for key in place if key in (name, name.replace("_", " "))), None)
        if key is None:
            raise KeyError(f"no number at {path}: {name!r} is not among {list(place)}")
        place = place[key]
        for index in indices:
            place = (place["value"] if isinstance(place, dict) else place)[int(index)]
    if not isinstance(place, dict):
        return shown(place)
    return shown(place["value"]) + (" [{}, {}]".format(*map(shown, place["interval"])) if "interval" in place else "")


def shown(value: object) -> str:
    """Three digits, true minus; lists with commas."""
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return ("—" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)).replace("-", "−", 1)


def quoted(text: str, folder: Path = FOLDER) -> str:
    """The text with every quoted number as it is in the folder's files."""
    files: dict[str, dict] = {}

    def one(match: re.Match) -> str:
        name, path = match[1], match[2]
        if name not in files:
            files[name] = json.loads((folder / f"{name}.json").read_text("utf-8"))
        return f"<!--= {name} {path} -->{look_up(files[name], path)}<!--/-->"

    return QUOTE.sub(one, text)


if __name__ == "__main__":
    for found in sorted(Path(sys.argv[1]).glob("*/numbers.json")) if len(sys.argv) > 1 else ():
        shutil.copyfile(found, FOLDER / f"{found.parent.name}.json")
    DOCUMENT.write_text(quoted(DOCUMENT.read_text("utf-8")), "utf-8")
