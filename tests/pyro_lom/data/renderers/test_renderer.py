"""What all renderers have in common, shown with one that needs no engine."""

from pathlib import Path

import numpy as np
import pytest
from noise import Noise

from pyro_lom.data.renderers.pool import RenderPool
from pyro_lom.data.renderers.renderer import padded, pixels_of
from pyro_lom.errors import UserError

ROOT = Path(__file__).parents[4]


def rendered(workers, rows=range(10), seed=0, **options):
    with RenderPool(Noise(**options), workers) as pool:
        images, labels, factors = zip(*pool.blocks(seed, rows), strict=True)
    return np.concatenate(images), np.concatenate(labels), np.concatenate([f["index"] for f in factors])[:, 0], factors


@pytest.mark.slow
def test_blocks_are_in_order_and_the_same_from_any_number_of_processes():
    images, labels, index, _ = rendered(1)
    assert index.tolist() == list(range(10)) and images.shape == (10, 8, 8, 3)
    for other in (rendered(2), rendered(3)):
        np.testing.assert_array_equal(images, other[0])
        np.testing.assert_array_equal(labels, other[1])
    np.testing.assert_array_equal(rendered(2, range(4, 9))[0], images[4:9])
    assert (rendered(1, range(1), seed=1)[0] != images[:1]).any()


def test_processes_that_render_have_no_torch():
    assert not any(f["has_torch"].any() for f in rendered(1, range(2))[3])


def test_an_engine_that_does_not_start_is_told_before_anything_is_rendered():
    with pytest.raises(UserError, match="^no noise here; make some$"), RenderPool(Noise(fails_to="start"), 2):
        pass
    with (
        pytest.raises(UserError, match="^numpy [0-9.]+ ended the process that it was started in$"),
        RenderPool(Noise(fails_to="live"), 2),
    ):
        pass


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def test_an_engine_that_is_not_installed_is_named():
    renderer = Noise()
    object.__setattr__(renderer, "package", "no-such-engine")
    with pytest.raises(UserError) as told:
        _ = renderer.engine
    assert str(told.value) == (
        'no-such-engine is not installed: run pip install -e ".[noise]" in the project\'s folder'
    )


def test_counting_and_padding():
    labels = np.array([[0, 2, 2], [1, 1, 4]], np.uint8)
    assert pixels_of(labels, 1, 4).tolist() == [2, 2, 0, 1]
    assert padded({"hue": np.array([3.0, 4.0])}, 4)["hue"].tolist() == [3, 4, 0, 0]
