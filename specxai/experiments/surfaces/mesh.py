"""Sets of triangle meshes in correspondence: the same vertices and faces for every shape of a set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """A dimension of a shape, drawn uniformly from [low, high]."""

    name: str
    low: float
    high: float
    unit: str


@dataclass(frozen=True, eq=False)
class ShapeSet:
    """A parametric set of shapes, and the quantity that a formula gives for each.

    name        of one shape, as in "car"
    parameters  what a row of parameters (N, P) means
    build       parameters (N, P) -> vertices (N, 3, V) in metres: x, y, z
    faces       (F, 3) vertex indices, counter-clockwise from outside
    parts       {name: (V,) mask}
    mirror      (V,) the vertex that reflection in the plane y = 0 makes of each; exact or not, see `mirrored`
    quantity    parameters (N, P) -> (N,) the formula
    symbol, unit, what, source   of the quantity: how it is written, in what, in words, and whose formula it is
    valid       parameters (N, P) -> (N,) bool, which of the drawn rows are shapes at all; None for all
    eye         direction from the shape to the camera of the stills
    shades      (V,) how dark each vertex is drawn where nothing else colours it
    focus       (V,) mask of what stills of contributions are close to; None for the whole shape
    """

    name: str
    parameters: tuple[Parameter, ...]
    build: Callable[[Tensor], Tensor]
    faces: Tensor
    parts: dict[str, Tensor]
    mirror: Tensor
    quantity: Callable[[Tensor], Tensor]
    symbol: str
    unit: str
    what: str
    source: str
    valid: Callable[[Tensor], Tensor] | None = None
    eye: tuple[float, float, float] = (-1.0, 0.8, 0.5)
    shades: Tensor | None = field(default=None, repr=False)
    focus: Tensor | None = field(default=None, repr=False)

    @property
    def vertices(self) -> int:
        return len(self.mirror)

    @cached_property
    def edges(self) -> Tensor:
        """(E, 2) every edge once."""
        pairs = torch.cat([self.faces[:, [0, 1]], self.faces[:, [1, 2]], self.faces[:, [2, 0]]])
        return pairs.sort(1).values.unique(dim=0)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, P) float64 rows of parameters, uniform over the valid ones."""
        if count < 1:
            raise ValueError(f"{count} shapes were asked for; it must be at least 1")
        low, high = (torch.tensor([getattr(p, end) for p in self.parameters], dtype=torch.float64)
                     for end in ("low", "high"))
        found: list[Tensor] = []
        while sum(map(len, found)) < count:
            rows = low + (high - low) * torch.rand(count, len(low), generator=generator, dtype=torch.float64)
            found.append(rows if self.valid is None else rows[self.valid(rows)])
        return torch.cat(found)[:count]

    def column(self, rows: Tensor, name: str) -> Tensor:
        """(N,) one parameter of rows (N, P)."""
        return rows[:, [p.name for p in self.parameters].index(name)]

    def reflect(self, vectors: Tensor) -> Tensor:
        """Fields (..., 3, V) reflected in the plane y = 0: vertices exchanged, y turned round."""
        return vectors[..., self.mirror] * vectors.new_tensor([1.0, -1.0, 1.0])[:, None]


def named(parameters: Sequence[Parameter], rows: Tensor) -> dict[str, Tensor]:
    """{name: (N, 1)} of rows (N, P); columns, so that they broadcast against points along a line."""
    if rows.ndim != 2 or rows.shape[1] != len(parameters):
        raise ValueError(f"parameters have shape {tuple(rows.shape)}; {len(parameters)} columns are needed: "
                         f"{', '.join(p.name for p in parameters)}")
    return {p.name: rows[:, i:i + 1] for i, p in enumerate(parameters)}


def grid_faces(rows: int, columns: int, start: int = 0, closed: bool = True) -> Tensor:
    """(F, 3) faces of a grid of `rows` rings with `columns` points each, numbered ring by ring from `start`.

    closed    the last point of a ring is followed by its first

    >>> grid_faces(2, 3).shape
    torch.Size([6, 3])
    """
    row = torch.arange(rows - 1)[:, None] * columns + start
    here = torch.arange(columns if closed else columns - 1)[None]
    after = (here + 1) % columns
    a, b, c, d = (row + here).ravel(), (row + after).ravel(), (row + columns + after).ravel(), \
        (row + columns + here).ravel()
    return torch.cat([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)])


def fan(ring: Sequence[int] | Tensor, centre: int) -> Tensor:
    """(F, 3) faces from a closed ring of vertices to one in its middle."""
    ring = torch.as_tensor(ring)
    return torch.stack([ring, ring.roll(-1), torch.full_like(ring, centre)], 1)


def spline_weights(points: int, controls: int) -> Tensor:
    """(points, controls) float64: a clamped quadratic B-spline at evenly spaced places, as weights that add up to 1.

    >>> w = spline_weights(5, 4)
    >>> bool((w.sum(1) - 1).abs().max() < 1e-12), w[0].tolist()
    (True, [1.0, 0.0, 0.0, 0.0])
    """
    knots = torch.cat([torch.zeros(2), torch.linspace(0, 1, controls - 1), torch.ones(2)]).double()
    at = torch.linspace(0, 1, points, dtype=torch.float64)[:, None]
    basis = ((at >= knots[:-1]) & (at < knots[1:])).double()
    basis[-1, controls - 1] = 1  # the last place belongs to the last interval
    for degree in (1, 2):
        left, right = knots[degree:-1] - knots[:-degree - 1], knots[degree + 1:] - knots[1:-degree]
        rise = torch.where(left > 0, (at - knots[:-degree - 1]) / left.clamp(min=1e-300), 0.0)
        fall = torch.where(right > 0, (knots[degree + 1:] - at) / right.clamp(min=1e-300), 0.0)
        basis = rise * basis[:, :-1] + fall * basis[:, 1:]
    return basis


def rounded(corners: Tensor, share: float) -> Tensor:
    """(N, n, d) corners of a line as control points (N, 3n − 2, d) of a quadratic spline that cuts them little.

    Each corner is joined by a point at `share` of the way to either neighbour: the spline runs along the line between
    these and rounds off the rest.
    """
    after = corners[:, :-1] + share * (corners[:, 1:] - corners[:, :-1])
    before = corners[:, 1:] + share * (corners[:, :-1] - corners[:, 1:])
    middle = torch.stack([after, before, corners[:, 1:]], 2).flatten(1, 2)
    return torch.cat([corners[:, :1], middle], 1)


def areas(vertices: Tensor, faces: Tensor) -> Tensor:
    """(N, F, 3) area vectors of vertices (N, 3, V): along the outward normal, as long as the face is large."""
    a, b, c = (vertices[:, :, faces[:, i]].transpose(1, 2) for i in range(3))
    return torch.linalg.cross(b - a, c - a) / 2


def volume(vertices: Tensor, faces: Tensor) -> Tensor:
    """(N,) enclosed volume by the divergence theorem; positive where the faces look outward."""
    middle = vertices[:, :, faces].mean(3).transpose(1, 2)
    return (areas(vertices, faces) * middle).sum((1, 2)) / 3
