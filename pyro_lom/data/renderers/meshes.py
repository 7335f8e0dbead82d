"""Closed meshes of shapes. They are centred at the origin and about as large as the unit sphere.

The vertices of each triangle are in counterclockwise order, seen from outside.
"""

from itertools import combinations, product

import numpy as np
from jaxtyping import Float, Int

Mesh = tuple[Float[np.ndarray, "vertices 3"], Int[np.ndarray, "triangles 3"]]
RoundedMesh = tuple[Float[np.ndarray, "vertices 3"], Float[np.ndarray, "vertices 3"], Int[np.ndarray, "triangles 3"]]
"""Vertices, normals of the vertices, and triangles."""


def cone(sides: int = 48) -> Mesh:
    """Return a cone of radius 1 from z = -1 to z = 1."""
    angles = 2 * np.pi * np.arange(sides) / sides
    ring = np.stack([np.cos(angles), np.sin(angles), -np.ones(sides)], 1)
    vertices = np.concatenate([ring, [[0, 0, 1], [0, 0, -1]]])
    here, following = np.arange(sides), np.roll(np.arange(sides), -1)
    top, bottom = np.full(sides, sides), np.full(sides, sides + 1)
    return vertices, np.concatenate([np.stack([here, following, top], 1), np.stack([following, here, bottom], 1)])


def icosahedron() -> Mesh:
    """Return an icosahedron whose vertices have distance 1 from the origin."""
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([(0, a, b * golden) for a in (-1, 1) for b in (-1, 1)])
    vertices = np.concatenate([corners, corners[:, [1, 2, 0]], corners[:, [2, 0, 1]]])
    near = np.isclose(np.linalg.norm(vertices[:, None] - vertices, axis=2), 2)
    triples = [t for t in combinations(range(12), 3) if all(near[pair] for pair in combinations(t, 2))]
    triangles = np.array([t if np.linalg.det(vertices[list(t)]) > 0 else t[::-1] for t in triples])
    return vertices / np.linalg.norm(vertices[0]), triangles


def torus(thickness: float = 0.32, around: int = 40, across: int = 16) -> Mesh:
    """Return an upright ring with axis y. Its outer radius is 1, and the radius of its tube is `thickness`."""
    a, b = np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in (around, across)), indexing="ij")
    distance = 1 - thickness + thickness * np.cos(b)
    vertices = np.stack([distance * np.cos(a), thickness * np.sin(b), distance * np.sin(a)], -1)
    return vertices.reshape(-1, 3), _tiled(around, across)


def hollow_triangle(thickness: float = 0.3, depth: float = 0.35) -> Mesh:
    """Return an upright triangular frame with axis y that stands on one side."""
    corners = np.array([(np.cos(a), np.sin(a)) for a in np.pi * np.array([1 / 2, 7 / 6, 11 / 6])])
    outer, inner = corners, corners * (1 - 2 * thickness)
    profile = [(outer, -depth), (outer, depth), (inner, depth), (inner, -depth)]
    vertices = np.array([[(points[k, 0], y, points[k, 1]) for points, y in profile] for k in range(3)])
    return vertices.reshape(-1, 3), _tiled(3, 4)


def _tiled(around: int, across: int) -> Int[np.ndarray, "triangles 3"]:
    """Return the triangles of a closed tube of `around` x `across` vertices."""
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(around), np.arange(across), indexing="ij"))
    c, d = (a + 1) % around, (b + 1) % across
    corners = [a * across + b, c * across + b, c * across + d, a * across + d]
    return np.concatenate([np.stack([corners[k] for k in order], 1) for order in ((0, 2, 1), (0, 3, 2))])


def rounded_cube(bevel: float = 0.12, steps: int = 5) -> RoundedMesh:
    """Return a cube from -1 to 1 with edges rounded by radius `bevel`."""
    tilt, side = np.repeat([-1, 1], steps), np.concatenate([np.linspace(-1, 0, steps), np.linspace(0, 1, steps)])
    u, v = np.meshgrid(side, side, indexing="ij")
    corner_u, corner_v = np.meshgrid(tilt, tilt, indexing="ij")
    normals, corners, triangles = [], [], []
    for face, (axis, sign) in enumerate(product(range(3), (-1, 1))):
        out = np.full_like(u, sign)
        towards = np.roll(np.stack([out, u, v], -1), -axis, axis=-1).reshape(-1, 3)
        corners.append(np.roll(np.stack([out, corner_u, corner_v], -1), -axis, axis=-1).reshape(-1, 3))
        normals.append(towards / np.linalg.norm(towards, axis=-1, keepdims=True))
        triangles.append(_grid(2 * steps, 2 * steps)[:, ::sign] + face * 4 * steps**2)
    normals, corners = np.concatenate(normals), np.concatenate(corners)
    return (1 - bevel) * corners + bevel * normals, normals, np.concatenate(triangles)


def rounded_cylinder(bevel: float = 0.1, sides: int = 64, steps: int = 5) -> RoundedMesh:
    """Return a cylinder of radius 1 about z, from z = -1 to z = 1, with edges rounded by radius `bevel`."""
    angle = np.linspace(-np.pi / 2, 0, steps)
    angle = np.concatenate([[-np.pi / 2], angle, angle + np.pi / 2, [np.pi / 2]])
    out, up = np.cos(angle), np.sin(angle)
    radius = np.concatenate([[0], 1 - bevel + bevel * out[1:-1], [0]])
    height = np.repeat([-1, 1], steps + 1) * (1 - bevel) + bevel * up
    around = 2 * np.pi * np.arange(sides + 1) / sides
    cos, sin = np.cos(around)[:, None], np.sin(around)[:, None]
    vertices = np.stack(np.broadcast_arrays(radius * cos, radius * sin, height), -1)
    normals = np.stack(np.broadcast_arrays(out * cos, out * sin, up), -1)
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), _grid(sides + 1, len(angle))


def _grid(rows: int, columns: int) -> Int[np.ndarray, "triangles 3"]:
    """Return the triangles of a grid of `rows` x `columns` vertices."""
    a = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    return np.concatenate([np.stack([a, a + columns, a + columns + 1], 1), np.stack([a, a + columns + 1, a + 1], 1)])
