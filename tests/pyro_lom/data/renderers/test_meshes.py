"""Meshes are closed, face outwards, and have the volume that they should."""

from collections import Counter

import numpy as np
import pytest

from pyro_lom.data.renderers import meshes

VOLUMES = {
    "cone": 2 * np.pi / 3,
    "icosahedron": 5 / 12 * (3 + np.sqrt(5)) / np.sin(2 * np.pi / 5) ** 3,
    "torus": 2 * np.pi**2 * 0.68 * 0.32**2,
    "hollow_triangle": 2 * 0.35 * 3 * np.sqrt(3) / 4 * (1 - 0.4**2),
    "rounded_cube": 8,
    "rounded_cylinder": 2 * np.pi,
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volume(name):
    vertices, *_, triangles = getattr(meshes, name)()
    volume = np.linalg.det(vertices[triangles]).sum() / 6
    assert volume == pytest.approx(VOLUMES[name], rel=0.03)


@pytest.mark.parametrize("name", ["cone", "icosahedron", "torus", "hollow_triangle"])
def test_every_edge_has_a_triangle_on_each_side(name):
    _, triangles = getattr(meshes, name)()
    edges = Counter((a, b) for t in triangles.tolist() for a, b in zip(t, t[1:] + t[:1], strict=True))
    assert set(edges.values()) == {1}
    assert {(b, a) for a, b in edges} == set(edges)


@pytest.mark.parametrize("name", ["rounded_cube", "rounded_cylinder"])
def test_normals_point_outwards_and_away_from_the_triangles(name):
    vertices, normals, triangles = getattr(meshes, name)()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-9)
    a, b, c = vertices[triangles].transpose(1, 0, 2)
    across = np.cross(b - a, c - a)
    assert ((across * normals[triangles].sum(1)).sum(1) >= -1e-12).all()
    np.testing.assert_allclose([vertices.min(0), vertices.max(0)], [[-1] * 3, [1] * 3], atol=1e-9)
