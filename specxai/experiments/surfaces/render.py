"""Stills of triangle meshes: a small rasteriser with a depth buffer, so that no face shows through another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SUPERSAMPLE = 2  # pixels are averaged over squares of this side: smooth outlines
# (direction to the light: right, up, towards the viewer; strength).  The lamps go with the camera.
LIGHTS = (((-0.45, 0.85, 0.75), 0.46), ((0.8, 0.2, 0.6), 0.14), ((0.0, 0.0, 1.0), 0.08))
AMBIENT = 0.44


def camera(eye: Sequence[float]) -> np.ndarray:
    """(3, 3) rotation whose rows are right, up and towards a viewer in the direction `eye`; z is up in the world.

    >>> (camera((0.0, -1.0, 0.0)).round(6) + 0.0).tolist()  # no negative zeros
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]
    """
    towards = np.asarray(eye, float) / np.linalg.norm(eye)
    right = np.cross([0.0, 0.0, 1.0], towards)
    if not np.linalg.norm(right):
        raise ValueError("the camera looks straight down; give `eye` a part along x or y")
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(towards, right), towards])


def vertex_normals(vertices: np.ndarray, faces: np.ndarray, crease: float = 40.0) -> np.ndarray:
    """(F, 3 corners, 3) unit normals, averaged over the faces at a vertex that bend by less than `crease` degrees."""
    a, b, c = (vertices[:, faces[:, i]].T for i in range(3))
    area = np.cross(b - a, c - a)
    size = np.linalg.norm(area, axis=1, keepdims=True)
    flat = area / np.where(size > 0, size, 1)
    smooth = np.zeros((vertices.shape[1], 3))
    for corner in range(3):
        np.add.at(smooth, faces[:, corner], area)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-30)
    corners = smooth[faces]
    bent = (corners * flat[:, None]).sum(2) < np.cos(np.radians(crease))
    return np.where(bent[..., None], flat[:, None], corners)


def still(vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, eye: Sequence[float], width: int = 520,
          height: int = 320, *, frame: tuple[np.ndarray, float] | None = None) -> np.ndarray:
    """A picture (height, width, 4) in [0, 1], transparent round the shape; parallel projection.

    vertices  (3, V);  faces (F, 3), counter-clockwise from outside;  colours (V, 3) in [0, 1]
    eye       direction from the shape to the camera
    frame     (centre (3,), half width in the vertices' unit) to draw several shapes at one scale; None fits this one
    """
    shade, wide, tall = camera(eye), width * SUPERSAMPLE, height * SUPERSAMPLE
    centre, half = frame or fit(vertices, eye, width / height)
    seen = shade @ (vertices - np.asarray(centre, float)[:, None])
    scale = wide / (2 * half)
    screen = np.stack([wide / 2 + scale * seen[0], tall / 2 - scale * seen[1], seen[2]], 1)
    lit = _light(vertex_normals(vertices, faces) @ shade.T)
    depth = np.full((tall, wide), -np.inf)
    image = np.zeros((tall, wide, 4))
    for face, light in zip(faces, lit, strict=True):
        _triangle(screen[face], colours[face] * light[:, None], depth, image)
    image[..., :3] = image[..., :3].clip(0, 1)
    blocks = image.reshape(height, SUPERSAMPLE, width, SUPERSAMPLE, 4)
    alpha = blocks[..., 3:].mean((1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean((1, 3)) / np.maximum(alpha, 1e-9)
    return np.concatenate([colour, alpha], 2)


def fit(vertices: np.ndarray, eye: Sequence[float], ratio: float) -> tuple[np.ndarray, float]:
    """(centre (3,), half width) of the view that just holds vertices (3, V) in a picture of width/height `ratio`."""
    shade = camera(eye)
    seen = shade @ vertices
    low, high = seen.min(1), seen.max(1)
    half = max(high[0] - low[0], (high[1] - low[1]) * ratio) / 2
    return shade.T @ ((low + high) / 2), 1.03 * half


def _light(normals: np.ndarray) -> np.ndarray:
    """(F, 3) brightness at the corners of every face, from normals (F, 3, 3) as the camera sees them."""
    bright = np.full(normals.shape[:2], AMBIENT)
    for direction, strength in LIGHTS:
        bright += strength * np.clip(normals @ (np.asarray(direction) / np.linalg.norm(direction)), 0, None)
    return bright


def _triangle(points: np.ndarray, colours: np.ndarray, depth: np.ndarray, image: np.ndarray) -> None:
    """Fill one triangle of `points` (3, x y depth) into the buffers; colours (3, 3) are those of its corners."""
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = points
    area = (x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)
    if area >= 0:  # y runs downwards on the screen: this side is the back
        return
    left, right = max(int(np.floor(points[:, 0].min())), 0), min(int(points[:, 0].max()) + 1, depth.shape[1])
    top, bottom = max(int(np.floor(points[:, 1].min())), 0), min(int(points[:, 1].max()) + 1, depth.shape[0])
    if left >= right or top >= bottom:
        return
    x, y = np.arange(left, right) + 0.5, (np.arange(top, bottom) + 0.5)[:, None]
    weights = _barycentric(points, x, y, area)
    inside = (weights >= -1e-9).all(2)
    behind = weights @ points[:, 2]
    window = depth[top:bottom, left:right]
    nearer = inside & (behind > window)
    window[nearer] = behind[nearer]
    target = image[top:bottom, left:right]
    target[nearer, :3] = weights[nearer] @ colours
    target[nearer, 3] = 1


def _barycentric(points: np.ndarray, x: np.ndarray, y: np.ndarray, area: float) -> np.ndarray:
    """(h, w, 3) weights of the corners at pixels with columns x (w,) and rows y (h, 1)."""
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = points
    first = ((x1 - x) * (y2 - y) - (x2 - x) * (y1 - y)) / area
    second = ((x2 - x) * (y0 - y) - (x0 - x) * (y2 - y)) / area
    return np.stack([first, second, 1 - first - second], 2)
