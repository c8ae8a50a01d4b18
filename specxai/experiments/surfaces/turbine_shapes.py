"""Wind turbines with three twisted blades, and a formula for the peak bending stress along a blade.

The wind blows along x; y points to the side and z up; all lengths in metres.  Blade 1 points up, and the blades are
copies of each other, turned by 120° about the rotor's axis.  The twist has a sense, so the rotor has no mirror image
in the set.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specxai.experiments.surfaces.mesh import Parameter, ShapeSet, fan, grid_faces, named

PARAMETERS = (
    Parameter("blade", 18.0, 30.0, "m"), Parameter("root chord", 0.10, 0.14, "of the blade's length"),
    Parameter("tip chord", 0.30, 0.50, "of the root's"), Parameter("twist", 6.0, 22.0, "° at the root"),
    Parameter("hub", 1.2, 2.2, "m"), Parameter("tower", 38.0, 56.0, "m"), Parameter("tower radius", 1.3, 2.2, "m"),
)
BLADES, SPAN, OUTLINE = 3, 28, 14  # blades; cross sections of one; points of a section
TOWER_RINGS, ROUND = 12, 16
HUB_RINGS, NACELLE_RINGS = 5, 6
ORDER = ("blade 1", "blade 2", "blade 3", "hub", "nacelle", "tower")
THICKNESS = 0.25  # of the chord; chosen: blades have a fifth to all of it from tip to root
HOLLOW = 0.96  # inner over outer size of the blade's section; chosen
AIR = 1.225  # kg/m³, of the standard atmosphere at sea level
INDUCTION = 1 / 3  # of the wind, which an ideal rotor slows by a third; see `stress_along`
SHEAR = 0.2  # exponent of IEC 61400-1's normal wind profile
WIND, REFERENCE = 12.0, 50.0  # m/s at a height of so many metres; chosen
PLACES = 401  # along the blade, where the stress is looked for
SOURCE = (
    "A formula, not a finite-element analysis: the largest stress along a twisted, tapered, hollow blade that is bent "
    "by the wind, by Euler and Bernoulli's beam. The wind at the hub is 12 m/s · (H/50 m)^0.2, the normal wind profile "
    "of IEC 61400-1 with a speed and a height that we chose. The rotor's thrust is ½ ρ v² C_T π R², C_T = 4a(1 − a) = "
    "8/9 at Betz' induction a = 1/3, even over the disc, a third on each blade. The section is a hollow ellipse with "
    "axes of one chord and a quarter of it, the hollow of 0.96 times its size, turned by the twist; these shares we "
    "chose. The derivation is in the docstring of `turbine_shapes.stress_along`. Weight and the pull of rotation are "
    "left out; tower and hub enter through wind and radius only."
)


def stress(rows: Tensor) -> Tensor:
    """(N,) peak bending stress of a blade in MPa, of rows (N, P) of parameters.  See `SOURCE`."""
    return stress_along(rows)[1].amax(1)


def stress_along(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(radius in m, stress in MPa) at places (N, PLACES) along the blade.

    **Wind.**  v = 12 m/s · (H/50 m)^0.2 at the hub's height H (IEC 61400-1, normal wind profile).

    **Thrust.**  An actuator disc that slows the wind by a share a has v (1 − a) pass through it and v (1 − 2a) behind
    it; the momentum that is lost is ρ π R² v (1 − a) · 2 a v, so C_T = 4 a (1 − a) of ½ ρ v² π R².  The power is the
    thrust times v (1 − a), and 4 a (1 − a)² is largest at a = 1/3 (Betz): C_T = 8/9.  Even over the disc, a third of
    the thrust of each ring is one blade's: q(r) = ½ ρ v² C_T · 2 π r / 3 newtons per metre.

    **Moment.**  M(r) = ∫_r^R q(s) (s − r) ds = ½ ρ v² C_T (2 π/3) (R³/3 − r R²/2 + r³/6), out of the rotor's plane.

    **Section.**  An ellipse with half axes a along the chord and b across it has I_a = π/4 · a b³ about the chord and
    I_b = π/4 · a³ b about its other axis; a hollow of h times its size takes h⁴ of either.  Turned by the twist θ, M
    has the parts M cos θ about the chord and M sin θ about the other axis, and at the point (a cos t, b sin t)

        σ = M cos θ · b sin t / I_a + M sin θ · a cos t / I_b = 4 M / (π a b) · (cos θ sin t / b + sin θ cos t / a),

    whose largest value over t is 4 M / (π a b) · √(cos² θ / b² + sin² θ / a²), over 1 − h⁴.
    """
    p = named(PARAMETERS, rows)
    share = torch.linspace(0, 1, PLACES, dtype=rows.dtype)
    r, tip = p["hub"] + share * p["blade"], p["hub"] + p["blade"]
    wind = WIND * (p["tower"] / REFERENCE) ** SHEAR
    pressure = AIR * wind**2 * 4 * INDUCTION * (1 - INDUCTION) / 2
    moment = pressure * (2 * math.pi / BLADES) * (tip**3 / 3 - r * tip**2 / 2 + r**3 / 6)
    chord, twist = sections(p, share)
    a, b = chord / 2, THICKNESS * chord / 2
    bent = 4 * moment / (math.pi * a * b) * (twist.cos()**2 / b**2 + twist.sin()**2 / a**2).sqrt()
    return r, bent / (1 - HOLLOW**4) / 1e6


def sections(p: dict[str, Tensor], share: Tensor) -> tuple[Tensor, Tensor]:
    """(chord in m, twist in radians) (N, places) at shares of the blade's length."""
    root = p["root chord"] * p["blade"]
    return root * (1 + (p["tip chord"] - 1) * share), torch.deg2rad(p["twist"]) * (1 - share)


def build(rows: Tensor) -> Tensor:
    """Vertices (N, 3, V) of rows (N, P) of parameters."""
    p = named(PARAMETERS, rows)
    overhang = 1.6 * p["hub"] + p["tower radius"]
    hub = torch.stack([-overhang, torch.zeros_like(overhang), p["tower"]], 1)  # (N, 3, 1)
    blade = _blade(p)
    parts = [hub + _turn(2 * math.pi * k / BLADES) @ blade for k in range(BLADES)]
    parts.append(hub + _spinner(p))
    parts.append(hub + _nacelle(p, overhang))
    return torch.cat([*parts, _tower(p)], 2)


def _turn(angle: float) -> Tensor:
    """(3, 3) rotation about x."""
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.tensor([[1.0, 0, 0], [0, cos, -sin], [0, sin, cos]], dtype=torch.float64)


def outline() -> Tensor:
    """(2, OUTLINE) closed section at chord 1: along the chord, trailing edge first, and across it."""
    angle = torch.arange(OUTLINE, dtype=torch.float64) * (2 * math.pi / OUTLINE)
    along = 0.5 * angle.cos()
    # An ellipse that is pulled to a point at the trailing edge.
    return torch.stack([along, THICKNESS / 2 * angle.sin() * (1 - 0.35 * angle.cos())])


def _blade(p: dict[str, Tensor]) -> Tensor:
    """(N, 3, SPAN·OUTLINE + 1): the blade that points up, seen from the hub's middle."""
    share = torch.linspace(0, 1, SPAN, dtype=torch.float64)
    chord, twist = sections(p, share)
    along, across = outline()
    cos, sin = twist.cos()[..., None], twist.sin()[..., None]
    chord, r = chord[..., None], (p["hub"] * 0.8 + share * (p["blade"] + 0.2 * p["hub"]))[..., None]
    y = chord * (along * cos + across * sin)
    x = chord * (across * cos - along * sin)
    z = r.expand_as(x)
    tip = torch.stack([0 * p["hub"], 0 * p["hub"], p["hub"] + p["blade"] + 0.15 * chord[:, -1]], 1)
    return torch.cat([torch.stack([x, y, z], 1).flatten(2), tip], 2)


def _spinner(p: dict[str, Tensor]) -> Tensor:
    """Half an ellipsoid and a collar, open at the back."""
    angle = torch.linspace(math.pi / 2, 0.22, HUB_RINGS - 1, dtype=torch.float64)
    along = torch.cat([torch.tensor([0.9], dtype=torch.float64), -1.5 * angle.cos()])
    radius = torch.cat([torch.ones(1, dtype=torch.float64), angle.sin()])
    rings = _rings(along * p["hub"], radius * p["hub"])
    return torch.cat([rings, torch.stack([-1.55 * p["hub"], 0 * p["hub"], 0 * p["hub"]], 1)], 2)


def _nacelle(p: dict[str, Tensor], overhang: Tensor) -> Tensor:
    share = torch.tensor([0.0, 0.04, 0.35, 0.75, 0.97, 1.0], dtype=torch.float64)
    width = torch.tensor([0.55, 0.80, 1.0, 0.95, 0.7, 0.35], dtype=torch.float64)
    start = 0.9 * p["hub"]
    along = start + share * (overhang - start + 3.4 * p["tower radius"])
    rings = _rings(along, width * (0.85 * p["hub"] + 0.35 * p["tower radius"]))
    return torch.cat([rings, torch.stack([along[:, -1:], 0 * start, 0 * start], 1)], 2)


def _rings(along: Tensor, radius: Tensor) -> Tensor:
    """(N, 3, rings·ROUND) circles round x, at places and with radii (N, rings)."""
    angle = torch.arange(ROUND, dtype=torch.float64) * (2 * math.pi / ROUND)
    x = along[..., None].expand(-1, -1, ROUND)
    return torch.stack([x, radius[..., None] * angle.sin(), radius[..., None] * angle.cos()], 1).flatten(2)


def _tower(p: dict[str, Tensor]) -> Tensor:
    share = torch.linspace(0, 1, TOWER_RINGS, dtype=torch.float64)
    circle = _rings(share * p["tower"], p["tower radius"] * (1 - 0.4 * share))
    return torch.stack([circle[:, 2], -circle[:, 1], circle[:, 0]], 1)  # upright


def turbine_set() -> ShapeSet:
    """The set of turbines.

    >>> turbines = turbine_set()
    >>> rows = turbines.draw(2, torch.Generator().manual_seed(0))
    >>> turbines.build(rows).shape[1:] == (3, turbines.vertices)
    True
    """
    sizes = [SPAN * OUTLINE + 1] * BLADES + [HUB_RINGS * ROUND + 1, NACELLE_RINGS * ROUND + 1, TOWER_RINGS * ROUND]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    faces = []
    for start in starts[:BLADES]:
        top = start + (SPAN - 1) * OUTLINE
        faces += [grid_faces(SPAN, OUTLINE, start).flip(1), fan(torch.arange(OUTLINE) + top, top + OUTLINE).flip(1)]
    hub, nacelle, tower = starts[BLADES:]
    last = (HUB_RINGS - 1) * ROUND
    faces += [grid_faces(HUB_RINGS, ROUND, hub), fan(torch.arange(ROUND) + hub + last, hub + last + ROUND)]
    last = (NACELLE_RINGS - 1) * ROUND
    faces += [grid_faces(NACELLE_RINGS, ROUND, nacelle).flip(1),
              fan(torch.arange(ROUND) + nacelle + last, nacelle + last + ROUND).flip(1)]
    faces += [grid_faces(TOWER_RINGS, ROUND, tower).flip(1)]
    total = sum(sizes)
    index = torch.arange(total)
    parts = {name: (index >= start) & (index < start + size)
             for name, start, size in zip(ORDER, starts, sizes, strict=True)}
    shades = torch.ones(total)
    shades[parts["hub"] | parts["nacelle"]] = 0.85
    return ShapeSet("turbine", PARAMETERS, build, torch.cat(faces), parts, _mirror(starts, sizes), stress, "σ_max",
                    "MPa", "peak bending stress of a blade", SOURCE, eye=(-1.0, 0.62, 0.16), shades=shades,
                    focus=~parts["tower"])


def _mirror(starts: list[int], sizes: list[int]) -> Tensor:
    """(V,) partners in a reflection at y = 0: blades 2 and 3 change places, and leading with trailing edges.

    The twist turns the other way in the reflection and the sharp edge lies on the other side, so that the vertices do
    not coincide.
    """
    point, ring = torch.arange(OUTLINE), torch.arange(ROUND)
    section = (OUTLINE // 2 - point) % OUTLINE
    own = torch.cat([(torch.arange(SPAN)[:, None] * OUTLINE + section).ravel(), torch.tensor([SPAN * OUTLINE])])
    circle = -ring % ROUND

    def rings(count: int) -> Tensor:
        return (torch.arange(count)[:, None] * ROUND + circle).ravel()

    parts = [own, own, own, torch.cat([rings(HUB_RINGS), torch.tensor([HUB_RINGS * ROUND])]),
             torch.cat([rings(NACELLE_RINGS), torch.tensor([NACELLE_RINGS * ROUND])]), rings(TOWER_RINGS)]
    places = [0, 2, 1, 3, 4, 5]
    assert [len(part) for part in parts] == sizes
    return torch.cat([starts[place] + part for place, part in zip(places, parts, strict=True)])
