"""Cars: a lofted body and four wheels, mirror-symmetric, and a formula for their drag coefficient.

x points backwards from the middle of the car, y to its left, z up from the road; all lengths in metres.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from specxai.experiments.surfaces.mesh import (
    Parameter,
    ShapeSet,
    fan,
    grid_faces,
    named,
    rounded,
    spline_weights,
)

PARAMETERS = (
    Parameter("length", 3.9, 4.9, "m"), Parameter("width", 1.65, 1.95, "m"), Parameter("height", 1.35, 1.65, "m"),
    Parameter("hood", 0.85, 1.25, "m"), Parameter("hood height", 0.82, 0.98, "m"),
    Parameter("windscreen", 25.0, 42.0, "° from the horizontal"), Parameter("roof", 0.9, 1.5, "m"),
    Parameter("rear slant", 14.0, 30.0, "° from the horizontal"), Parameter("deck height", 0.95, 1.12, "m"),
    Parameter("cabin", 0.72, 0.84, "of the width, at the roof"), Parameter("clearance", 0.13, 0.22, "m"),
    Parameter("wheel", 0.29, 0.36, "m"), Parameter("wheelbase", 0.58, 0.63, "of the length"),
)
STATIONS, HALF = 45, 17  # cross sections along the car; points of one from underbody to roof
RING = 2 * HALF - 2
SPOKES, TYRE_WIDTH = 16, 0.21
# (share of the radius, offset from the wheel's middle in widths, outwards) of the rings of a wheel.
TYRE = ((0.60, 0.42), (0.72, 0.50), (0.96, 0.46), (1.0, 0.25), (1.0, -0.25), (0.90, -0.5))
SPEED, VISCOSITY = 30.0, 1.5e-5  # m/s, chosen; m²/s, of air at 20 °C (1.81e-5 Pa s / 1.204 kg/m³)
# Slant in degrees and drag coefficient of the body measured by Ahmed, Ramm and Faltin.
AHMED = ((12.5, 0.230), (25.0, 0.285), (30.0, 0.378))
# What of these is not made at the rear: 15 % of 0.378 is friction, by their breakdown; the rest is for the forebody.
AHMED_REST = 0.057 + 0.013
FRONTAL = 0.86  # frontal area over width · height: the mesh's own, 0.83 to 0.89 of it
WHEEL_DRAG = 0.58  # of a rotating wheel on the road, by its own frontal area
SHELTERED = 0.5  # of a front wheel's drag is a rear wheel's; chosen
SCREEN_PRESSURE = 0.5  # chosen: of the stagnation pressure, for a screen that stood upright behind a hood
CORNERS, SIDES = 0.85, 0.8  # of a box's surface and of its sides, which leaves the mesh's surface within 10 %
SOURCE = (
    "A formula, not a flow simulation: a drag build-up C_D = C_rear + C_screen + C_friction + C_wheels on the frontal "
    "area A = 0.86 · width · height, which is that of the meshes' silhouettes (for real cars the US EPA has 0.80: "
    "Goodall and Thompson, Prediction of Vehicle Reference Frontal Area, 1977). "
    "C_rear: the parabola through the drag coefficients 0.230, 0.285, 0.378 that Ahmed, Ramm and Faltin (SAE 840300, "
    "1984) measured at rear slants of 12.5°, 25°, 30°, less 0.07 that is not made there: their breakdown has 15 % of "
    "the drag as friction, 0.057 at most, and for the forebody we chose 0.013. Above 30° their flow changes its "
    "regime, and no car here goes there. "
    "C_screen = 0.5 sin²θ · A_screen/A, Newton's sine-squared law for the windscreen with a pressure coefficient that "
    "we chose. "
    "C_friction = c_f · S/A with c_f = 0.455/(log10 Re)^2.58, Prandtl and Schlichting's mean of a turbulent plate, at "
    "30 m/s. "
    "C_wheels = 0.58 on the part of the wheels below the body; the number is the one that is commonly given for the "
    "rotating wheel of Fackrell and Harvey (1975), whose report we have not seen, so take it as chosen. The rear pair, "
    "in the wake of the front pair, counts by half, which we chose."
)


def profile(p: dict[str, Tensor]) -> dict[str, Tensor]:
    """Places (N, 1) along the side view that follow from the parameters."""
    nose = -p["length"] / 2
    cowl = nose + p["hood"]
    front = cowl + (p["height"] - p["hood height"]) / torch.deg2rad(p["windscreen"]).tan()
    back = front + p["roof"]
    deck = back + (p["height"] - p["deck height"]) / torch.deg2rad(p["rear slant"]).tan()
    return {"nose": nose, "cowl": cowl, "front": front, "back": back, "deck": deck, "tail": p["length"] / 2}


def valid(rows: Tensor) -> Tensor:
    """(N,) is there a deck behind the slant, and one that is shorter than the hood?"""
    p = named(PARAMETERS, rows)
    at = profile(p)
    room = at["tail"] - at["deck"]
    return ((room > 0.12) & (room < p["hood"]))[:, 0]


def drag(rows: Tensor) -> Tensor:
    """(N,) drag coefficient C_D of rows (N, P) of parameters; dimensionless.  See `SOURCE`."""
    return sum(drag_parts(rows).values())


def drag_parts(rows: Tensor) -> dict[str, Tensor]:
    """{part: (N,)} of the drag coefficient; they add up to it."""
    p = {name: column[:, 0] for name, column in named(PARAMETERS, rows).items()}
    area = FRONTAL * p["width"] * p["height"]
    (a, fa), (b, fb), (c, fc) = AHMED
    slant = p["rear slant"]
    rear = (fa * (slant - b) * (slant - c) / ((a - b) * (a - c)) + fb * (slant - a) * (slant - c) / ((b - a) * (b - c))
            + fc * (slant - a) * (slant - b) / ((c - a) * (c - b)))
    screen = (p["height"] - p["hood height"]) * p["width"] * (1 + p["cabin"]) / 2
    skin = wetted(p)
    friction = 0.455 / (SPEED * p["length"] / VISCOSITY).log10() ** 2.58
    return {"rear": rear - AHMED_REST,
            "screen": SCREEN_PRESSURE * torch.deg2rad(p["windscreen"]).sin() ** 2 * screen / area,
            "friction": friction * skin / area,
            "wheels": WHEEL_DRAG * 2 * (1 + SHELTERED) * TYRE_WIDTH * p["clearance"] / area}


def wetted(p: dict[str, Tensor]) -> Tensor:
    """(N,) surface of the body in m², as a box with the corners taken off."""
    tall = p["height"] - p["clearance"]
    return CORNERS * 2 * (p["length"] * p["width"] + p["length"] * tall * SIDES + p["width"] * tall)


def build(rows: Tensor) -> Tensor:
    """Vertices (N, 3, V) of rows (N, P) of parameters."""
    p = named(PARAMETERS, rows)
    return torch.cat([_body(p), *_wheels(p)], 2)


def _body(p: dict[str, Tensor]) -> Tensor:
    at, half = profile(p), p["width"] / 2
    low, cowl, deck, top = p["clearance"], p["hood height"], p["deck height"], p["height"]
    bumper, one = low + 0.26, torch.ones_like(half)
    hood = 0.78 * cowl

    def belt(x: Tensor) -> Tensor:
        """Height of the line below the windows."""
        return cowl + (deck - cowl) * (x - at["cowl"]) / (at["deck"] - at["cowl"])

    # Corners of the side view: x, top, belt, bottom, half widths at the belt and at the top.
    corners = [
        (at["nose"], bumper, bumper, bumper, 0.66 * half, 0.60 * half),
        (at["nose"] + 0.02, hood - 0.05, hood - 0.09, low + 0.05, 0.80 * half, 0.70 * half),
        (at["nose"] + 0.24, hood + 0.02, hood - 0.03, low, 0.95 * half, 0.80 * half),
        (at["cowl"] - 0.02, cowl, cowl - 0.05, low, half, 0.86 * half),
        (at["front"], top, belt(at["front"]), low, half, p["cabin"] * half),
        (at["back"], top, belt(at["back"]), low, half, p["cabin"] * half),
        (at["deck"], deck, deck - 0.05, low, 0.98 * half, 0.84 * half),
        (at["tail"] - 0.05, deck - 0.01, deck - 0.07, low + 0.05, 0.90 * half, 0.80 * half),
        (at["tail"], deck - 0.12, deck - 0.16, low + 0.10, 0.86 * half, 0.76 * half),
        (at["tail"], bumper + 0.16, bumper + 0.16, bumper + 0.16, 0.66 * half, 0.60 * half),
    ]
    line = torch.stack([torch.cat([c * one for c in corner], 1) for corner in corners], 1)  # (N, corners, 6)
    controls = rounded(line, 0.22)
    stations = spline_weights(STATIONS, controls.shape[1]) @ controls
    x, high, belts, bottom, wide, narrow = stations.unbind(2)
    side = belts - bottom
    crown = 0.04 * (high - bottom)  # nothing at nose and tail, where the body closes
    section = [(0 * wide, bottom), (0.55 * wide, bottom), (0.93 * wide, bottom), (wide, bottom + 0.25 * side),
               (wide, bottom + 0.65 * side), (0.985 * wide, belts), (0.95 * wide, belts + 0.04 * (high - belts)),
               (narrow, high - crown / 2), (0.72 * narrow, high), (0 * wide, high)]
    y, z = (torch.stack([point[i] for point in section], 2) @ spline_weights(HALF, len(section)).T for i in range(2))
    y, z = (torch.cat([v, sign * v[:, :, 1:-1].flip(2)], 2) for v, sign in ((y, -1), (z, 1)))
    return torch.stack([x[:, :, None].expand_as(y), y, z], 1).flatten(2)


def _wheels(p: dict[str, Tensor]) -> list[Tensor]:
    angle = torch.arange(SPOKES, dtype=p["wheel"].dtype) * (2 * math.pi / SPOKES)
    share, offset = (torch.tensor(column, dtype=angle.dtype)[:, None] for column in zip(*TYRE, strict=True))
    wheels = []
    for axle in (-1, 1):
        for side in (1, -1):
            middle = axle * p["wheelbase"] * p["length"] / 2 - 0.03 * p["length"]
            track = side * (p["width"] / 2 - TYRE_WIDTH / 2 + 0.015)
            radius = p["wheel"]
            x = (middle[:, :, None] + radius[:, :, None] * share * angle.cos()).flatten(1)
            z = (radius[:, :, None] * (1 + share * angle.sin())).flatten(1)
            y = (track[:, :, None] + side * TYRE_WIDTH * offset.expand(-1, SPOKES)).flatten(1)
            hub = torch.stack([middle, track + side * TYRE_WIDTH * 0.42, radius], 1)
            wheels.append(torch.cat([torch.stack([x, y, z], 1), hub], 2))
    return wheels


def car_set() -> ShapeSet:
    """The set of cars.

    >>> cars = car_set()
    >>> rows = cars.draw(2, torch.Generator().manual_seed(0))
    >>> cars.build(rows).shape[1:] == (3, cars.vertices)
    True
    """
    each, body = SPOKES * len(TYRE) + 1, STATIONS * RING
    total = body + 4 * each
    faces = [grid_faces(STATIONS, RING)]
    for wheel in range(4):
        start = body + wheel * each
        rings = grid_faces(len(TYRE), SPOKES, start)
        cap = fan(torch.arange(SPOKES) + start, start + each - 1)
        # Left and right wheels are each other's mirror image, which turns faces inside out.
        faces.append(torch.cat([rings, cap.flip(1)]) if wheel % 2 == 0 else torch.cat([rings.flip(1), cap]))
    ring = torch.arange(RING)
    mirror = [(torch.arange(STATIONS)[:, None] * RING + (-ring % RING)).ravel()]
    mirror += [torch.arange(each) + body + other * each for other in (1, 0, 3, 2)]
    parts = {"body": torch.arange(total) < body, "wheels": torch.arange(total) >= body}
    return ShapeSet("car", PARAMETERS, build, torch.cat(faces), parts, torch.cat(mirror), drag, "C_D", "",
                    "drag coefficient", SOURCE, valid, eye=(-1.0, 0.85, 0.52), shades=_shades(body, total, each))


def _shades(body: int, total: int, wheel: int) -> Tensor:
    """Windows and tyres are drawn darker."""
    shades = torch.ones(total)
    station, ring = torch.arange(body) // RING, torch.arange(body) % RING
    level = torch.minimum(ring, RING - ring)  # 0 underbody, HALF − 1 roof
    share = station / (STATIONS - 1)
    cabin = (share > 0.37) & (share < 0.64)
    side = (level >= HALF - 6) & (level <= HALF - 4)
    screens = ((share > 0.33) & (share < 0.43) | (share > 0.57) & (share < 0.68)) & (level >= HALF - 3)
    shades[:body][cabin & side | screens] = 0.72
    place = (torch.arange(total - body) % wheel) // SPOKES
    shades[body:] = torch.where(place < 2, 0.8, 0.45)
    return shades
