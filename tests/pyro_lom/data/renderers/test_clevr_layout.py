"""Layouts keep CLEVR's rules of distance, and labels are where the geometry says."""

import numpy as np
import pytest

from pyro_lom.data.renderers.clevr_layout import CUBE, CYLINDER, SPHERE, VIEW, Layout, labels_of, lay_out


def alone(shape, *, size=0, position=(0.0, 0.0), rotation=0.0):
    scale = (0.7, 0.35)[size]
    code = np.array([0])
    middle = np.array([[*position, scale]])
    camera = np.array([7.48, -6.51, 5.34])
    return Layout(np.array([shape]), np.array([size]), code, code, middle, np.array([rotation]), camera)


def test_rules_of_distance():
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(50):
        layout = lay_out(rng)
        counts.add(len(layout.shape))
        assert np.abs(layout.position[:, :2]).max() <= 3
        np.testing.assert_array_equal(layout.position[:, 2], layout.scale)
        right, _, ahead = layout.axes
        for a in range(len(layout.shape)):
            for b in range(a):
                away = (layout.position[a] - layout.position[b])[:2]
                assert np.linalg.norm(away) >= layout.scale[a] + layout.scale[b] + 0.25
                assert abs(away @ right[:2]) >= 0.4
                assert abs(away @ ahead[:2]) / np.linalg.norm(ahead[:2]) >= 0.4
    assert counts == {3, 4, 5, 6}


@pytest.mark.parametrize("shape", [CUBE, SPHERE, CYLINDER])
def test_labels_agree_with_points_on_the_surface(shape):
    """Random points inside of the object project to its label; points beside its bounding sphere do not."""
    layout, rng, size = alone(shape, rotation=25, position=(0.4, -0.8)), np.random.default_rng(1), 192
    labels = labels_of(layout, size)
    points = rng.uniform(-1, 1, (4000, 3))
    inside = {
        CUBE: np.ones(4000, bool),
        SPHERE: (points**2).sum(1) < 1,
        CYLINDER: (points[:, :2] ** 2).sum(1) < 1,
    }[shape]
    cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
    turned = points[inside] @ np.array([(cos, -sin, 0), (sin, cos, 0), (0, 0, 1)]).T
    places = layout._replace(position=layout.position[0] + 0.7 * turned).in_image(size)
    columns, rows = places[:, :2].astype(int).T
    assert (labels[rows, columns] == 1).mean() > 0.985  # those at the outline may fall beside it
    covered = np.zeros_like(labels)
    covered[rows, columns] = 1
    seen = np.argwhere(labels == 1)
    drawn = np.argwhere(covered)
    np.testing.assert_allclose([seen.min(0), seen.max(0)], [drawn.min(0), drawn.max(0)], atol=4)


def test_the_nearer_object_hides_the_farther():
    towards = np.array([7.48, -6.51]) / np.hypot(7.48, 6.51)
    far, near = alone(SPHERE), alone(SPHERE, size=1, position=tuple(1.2 * towards))
    both = Layout(*(np.concatenate(pair) for pair in zip(far[:-1], near[:-1], strict=True)), far.camera)
    labels, behind, before = labels_of(both, 96), labels_of(far, 96), labels_of(near, 96)
    overlap = (behind == 1) & (before == 1)
    assert overlap.any() and (labels[overlap] == 2).all()
    assert (labels[(behind == 1) & ~overlap] == 1).all()


def test_what_the_camera_looks_towards():
    layout = alone(CUBE)
    assert layout.looks_towards(np.zeros(3))
    assert not layout.looks_towards(np.array([20.0, -20.0, 10.0]))  # behind it
    edge = layout.camera + 10 * (layout.axes[2] + np.tan(VIEW / 2) * layout.axes[0])
    assert layout.looks_towards(edge) and not layout.looks_towards(edge + 2 * layout.axes[0])
