"""Engines that may not be here, and what must hold of every rendered scene."""

import numpy as np
import pytest

from pyro_lom.data.renderers.renderer import pixels_of
from pyro_lom.data.renderers.view import mujoco_with_gl
from pyro_lom.errors import UserError


@pytest.fixture(scope="session")
def mujoco():
    """MuJoCo with OpenGL; tests are skipped where it is not."""
    try:
        return mujoco_with_gl()
    except UserError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def mitsuba():
    """Mitsuba; tests are skipped where it is not."""
    return pytest.importorskip("mitsuba", reason="Mitsuba is not installed: it comes with the extra clevr")


@pytest.fixture
def hold_together():
    """`hold_together(renderer, scenes, min_share)` asserts that labels, factors and images agree in every scene."""

    def check(renderer, scenes, min_share):
        kinds = {name: (values.dtype, values.shape) for name, values in scenes[0].factors.items()}
        for scene in scenes:
            image, labels, factors = scene
            assert (image.shape, image.dtype) == ((renderer.size, renderer.size, 3), np.uint8)
            assert (labels.shape, labels.dtype) == ((renderer.size, renderer.size), np.uint8)
            assert {name: (values.dtype, values.shape) for name, values in factors.items()} == kinds
            count = int(factors["present"].sum())
            assert factors["present"][:count].all()  # no gaps
            assert labels.max() < renderer.num_background + max(count, 1)
            assert (pixels_of(labels, renderer.num_background, count) >= min_share * labels.size).all()
            for values in factors.values():
                assert np.isfinite(values).all() and not (len(values) > 1 and values[count:].any())

    return check
