"""The interactive element of a report: shapes that can be turned, their contributions to choose from."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources

import numpy as np
from torch import Tensor

from specxai.experiments.surfaces.figures import half_range
from specxai.experiments.surfaces.mesh import ShapeSet

WIDTH, HEIGHT = 860, 560  # pixels


def viewer(shapes: ShapeSet, scenes: Sequence[tuple[str, Tensor, Sequence[tuple[str, Tensor]]]]) -> str:
    """An HTML fragment that loads nothing.

    scenes   (name, vertices (3, V), [(name, contributions (V,))]) of each shape; names are text, whatever they hold

    Contributions are kept in 255 steps up to the 98th percentile of their size.
    """
    if shapes.vertices > 0xFFFF:
        raise ValueError(f"{shapes.vertices} vertices are more than the page's 16-bit indices can name: 65535")
    scene = {"faces": _base64(shapes.faces.numpy().astype("<u2")), "turn": _turn(shapes),
             "shades": _base64((shapes.shades.numpy() * 255).round().astype("u1")),
             "shapes": [_shape(*one) for one in scenes]}
    # A "<" in a script element might end it.
    text = json.dumps(scene, ensure_ascii=False).replace("<", "\\u003c")
    name = "surface-" + hashlib.sha256(text.encode()).hexdigest()[:10]
    script = resources.files("specxai.experiments.surfaces").joinpath("viewer.js").read_text("utf-8")
    return f"""<div id="{name}" class="surface">
<p><label>shape <select></select></label> <label>colours <select></select></label> <output></output></p>
<canvas width="{WIDTH}" height="{HEIGHT}" tabindex="0" role="img" aria-label="{escape(shapes.name)}, to be turned with \
the mouse or the arrow keys" style="max-width:100%;touch-action:none;cursor:grab"></canvas>
<p><span style="color:#b2182b">■ red raises</span> the {escape(shapes.what)}, \
<span style="color:#2166ac">■ blue lowers</span> it; white: no contribution. Drag or arrow keys turn, the wheel zooms, \
a double click goes back.</p>
<noscript>This element needs JavaScript; the figures show the same from one side.</noscript>
<script>
(() => {{
{script}
specxaiViewer(document.getElementById("{name}"), {text});
}})();
</script>
</div>"""


def _shape(name: str, vertices: Tensor, maps: Sequence[tuple[str, Tensor]]) -> dict:
    points = vertices.double().numpy()
    low, high = points.min(1), points.max(1)
    centred = (points - ((low + high) / 2)[:, None]) / np.linalg.norm(high - low)
    halves = [half_range([field]) for _, field in maps]
    scaled = [np.clip(field.double().numpy() / half, -1, 1) * 127
              for (_, field), half in zip(maps, halves, strict=True)]
    return {"name": name, "points": _base64(centred.T.astype("<f4")), "maps_name": [title for title, _ in maps],
            "maps_half": [f"{half:.2g}" for half in halves],
            "maps": [{"values": _base64(values.round().astype("i1"))} for values in scaled]}


def _turn(shapes: ShapeSet) -> dict[str, float]:
    """The stills' point of view."""
    x, y, z = shapes.eye
    return {"azimuth": math.atan2(y, x), "elevation": math.atan2(z, math.hypot(x, y)), "zoom": 1.15}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
