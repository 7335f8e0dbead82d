"""What must hold of every rendered scene."""

import numpy as np
import pytest

from pyro_lom.data.renderers.renderer import pixels_of


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
