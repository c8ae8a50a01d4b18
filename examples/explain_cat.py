"""The README's picture: what a trained network looks at when it sees a cat.

    make extras                # or pip install 'specxai[paper]'
    python examples/explain_cat.py --out docs/cat.png
"""

from __future__ import annotations

import argparse
import sys

import specxai
from specxai.experiments.photographs import LAST_CONV_LAYER, class_names, load_efficientnet, photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="cat.png", help="the picture to write")
    out = parser.parse_args().out
    try:
        (cat,), model = photographs(["chelsea"]), load_efficientnet()
    except ImportError as error:
        sys.exit(str(error))
    e = specxai.explain(model, cat.x, LAST_CONV_LAYER, rank=20)
    print(e)
    name = class_names()[int(model(cat.x).argmax())]
    e.plot(out, image=cat.raw, title=f"EfficientNet-Lite0 sees a {name}: {LAST_CONV_LAYER}")
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
