"""Multi-dSprites and Tetrominoes as published: TFRecords by independent code, and what comes in."""

import numpy as np
import pytest
from published import ROOMS, write_records

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.sprites import LAYOUTS, Sprites
from pyro_lom.errors import UserError


def scene(seed, name):
    """One scene in the published layout: `mask` (H, W, E, 1), or (E, H, W, 1) for Tetrominoes."""
    rng = np.random.default_rng(seed)
    if name == "tetrominoes":
        side, num_entities, channels, axes, floats = 35, 4, 3, (2, 0, 1), ["x", "y", "shape"]
    else:
        side, axes, floats = 64, (0, 1, 2), ["x", "y", "shape", "orientation", "scale"]
        num_entities, channels = {"binarized": (4, 1), "grayscale": (6, 3), "colored": (5, 3)}[name.split("-")[-1]]
    num_objects = 2 + seed % 2
    labels = rng.integers(0, num_objects + 1, (side, side))
    masks = (labels[..., None] == np.arange(num_entities)).transpose(axes)[..., None]
    features = {
        "image": rng.integers(0, 256, (side, side, channels), dtype=np.uint8),
        "mask": masks.astype(np.uint8) * 255,
        "visibility": (np.arange(num_entities) <= num_objects).astype(np.float32),
        "color": rng.random((num_entities, channels), np.float32),
    }
    return features | {key: rng.random(num_entities, np.float32) for key in floats}, labels, num_objects


def read_all(reader, place=None):
    damage = Damage("file", False, [])
    return list(reader.blocks(place, damage))


@pytest.mark.parametrize("name", LAYOUTS)
def test_published_scenes(tmp_path, name):
    scenes = [scene(seed, name) for seed in range(3)]
    path = write_records(tmp_path / "a.tfrecords", [features for features, _, _ in scenes])
    size = 48 if name == "tetrominoes" else 64
    reader = Sprites(path, size, name)
    [block] = read_all(reader)
    inner = slice(6, 41) if name == "tetrominoes" else slice(None)
    np.testing.assert_array_equal(block.images[:, inner, inner], [features["image"] for features, _, _ in scenes])
    np.testing.assert_array_equal(block.labels[:, inner, inner], [labels for _, labels, _ in scenes])
    assert block.images.sum() == sum(int(features["image"].sum()) for features, _, _ in scenes)  # borders are black
    assert block.labels.sum() == sum(labels.sum() for _, labels, _ in scenes)
    channels = scenes[0][0]["color"].shape[1]
    floats = set(scenes[0][0]) - {"image", "mask", "visibility", "color"}
    assert set(block.factors) == floats | {f"color_{channel}" for channel in range(channels)} | {"present"}
    for row, (features, _, number) in enumerate(scenes):
        assert block.factors["present"][row].tolist() == [1] * number + [0] * (len(features["x"]) - 1 - number)
        for key in floats:
            np.testing.assert_array_equal(block.factors[key][row, :number], features[key][1 : number + 1])
        np.testing.assert_array_equal(block.factors["color_0"][row, :number], features["color"][1 : number + 1, 0])
    assert (reader.num_background, block.done, reader.notes(block.place)) == (1, reader.total, [])
    assert reader.splits(100) == {"test": range(10), "validation": range(10, 20), "train": range(20, 100)}


def test_tetrominoes_at_other_sizes(tmp_path):
    path = write_records(tmp_path / "a.tfrecords", [scene(0, "tetrominoes")[0]])
    [block] = read_all(Sprites(path, 64, "tetrominoes"))
    np.testing.assert_array_equal(block.images[0, 14:49, 14:49], scene(0, "tetrominoes")[0]["image"])
    [block] = read_all(Sprites(path, 32, "tetrominoes"))
    assert block.images.shape == (1, 32, 32, 3)


def test_the_wrong_file(tmp_path):
    path = write_records(tmp_path / "rooms", [ROOMS[0]])
    with pytest.raises(UserError, match=r"it has no feature 'x' \(it holds image, mask\); name the right data set"):
        read_all(Sprites(path, 64, "multi-dsprites-colored-on-grayscale"))
    path = write_records(tmp_path / "six", [scene(0, "multi-dsprites-colored-on-grayscale")[0]])
    with pytest.raises(UserError, match="in its first record, its x holds 24 bytes of floats where 20 are expected"):
        read_all(Sprites(path, 64, "multi-dsprites-colored-on-colored"))


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "place"), [("x", 1), ("scale", 2), ("color", (2, 1)), ("visibility", 1), ("visibility", 0)]
)
def test_records_that_are_not_finite(tmp_path, number, name, place, value):
    kind = "multi-dsprites-colored-on-colored"
    records = [scene(seed, kind)[0] for seed in range(3)]
    records[number][name][place] = value
    path = write_records(tmp_path / "a.tfrecords", records)
    with pytest.raises(UserError, match=f"file: record {number} is damaged: its {name}.* is NaN or infinite; fetch it"):
        read_all(Sprites(path, 64, kind))
    damage = Damage("file", True, [])
    [block] = Sprites(path, 64, kind).blocks(None, damage)
    assert (len(block.images), damage.positions) == (2, [f"record {number}"])
    records[number][name][place], records[number]["x"][4] = 1, value  # of a sprite that is not there
    path = write_records(tmp_path / "b.tfrecords", records)
    [block] = read_all(Sprites(path, 64, kind))
    assert np.isfinite(block.factors["x"]).all()
