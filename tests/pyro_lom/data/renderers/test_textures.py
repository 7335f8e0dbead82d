"""Textures lie within their range, differ from point to point, and repeat without a seam."""

import numpy as np
import pytest

from pyro_lom.data.renderers import textures

PATTERNS = {
    "clouds": lambda: textures.clouds(0),
    "masonry": lambda: textures.masonry(4, 4, 0),
    "planks": lambda: textures.planks(6, 3, 0),
    "checks": lambda: textures.checks(4),
    "hexagons": lambda: textures.hexagons(6),
    "waves": lambda: textures.waves(2, 0),
    "stripes": lambda: textures.stripes(8),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_range_and_repeatability(name):
    pattern = PATTERNS[name]()
    assert pattern.shape == (256, 256) and 0 <= pattern.min() < pattern.max() <= 1
    np.testing.assert_array_equal(pattern, PATTERNS[name]())


@pytest.mark.parametrize("name", ["clouds", "waves", "hexagons"])
def test_no_seam(name):
    pattern = PATTERNS[name]()
    for axis in (0, 1):
        steps = np.abs(np.diff(pattern, axis=axis)).mean(1 - axis)
        seam = np.abs(np.take(pattern, 0, axis) - np.take(pattern, -1, axis)).mean()
        assert seam < 1.3 * steps.max()


def test_colours_and_png():
    dyed = textures.coloured(np.array([[0.0, 1.0], [0.5, 2.0]]), (0, 100, 200), (100, 100, 0))
    assert dyed.tolist() == [[[0, 100, 200], [100, 100, 0]], [[50, 100, 100], [100, 100, 0]]]
    assert textures.png(dyed).startswith(b"\x89PNG")
