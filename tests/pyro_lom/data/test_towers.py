"""Towers stand, colour alone does not solve them, and the same seed always draws the same ones.

The pinned statistics change with the generator only, and then `towers.VERSION` must grow; print the new ones with
`python tests/pyro_lom/data/test_towers.py`.
"""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

from pyro_lom.data import towers
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.data.minibatches import to_float
from pyro_lom.data.towers import MAX_BLOCKS, NUM_BACKGROUND, SIZE, ensure_towers, make_towers
from pyro_lom.errors import UserError
from pyro_lom.metrics.ari import mean_ari
from pyro_lom.metrics.kmeans import kmeans_rgb

PINNED = {
    "version": 2,
    "blocks": [0, 70, 158, 272],
    "pixels": [288424, 139464, 34818, 30198, 19096],
    "colour": [0.5732, 0.5811, 0.4949],
    "deviation": [0.2343, 0.2307, 0.2735],
    "rows": [0.7547, 0.7025, 0.6572, 0.628, 0.5987, 0.4482, 0.2952, 0.3135],
}


def statistics():
    scenes = make_towers(500, seed=0)
    images = scenes.images / 255.0
    return {
        "version": scenes.version,
        "blocks": np.bincount(scenes.factors["present"].sum(1).astype(int)).tolist(),
        "pixels": np.bincount(scenes.labels.ravel()).tolist(),
        "colour": images.mean((0, 1, 2)).round(4).tolist(),
        "deviation": images.std((0, 1, 2)).round(4).tolist(),
        "rows": images.mean((0, 2, 3)).reshape(8, 4).mean(1).round(4).tolist(),
    }


def test_statistics_are_pinned():
    found = statistics()
    for name in ("version", "blocks", "pixels"):
        assert found[name] == PINNED[name]
    for name in ("colour", "deviation", "rows"):
        assert found[name] == pytest.approx(PINNED[name], abs=1e-3)


@pytest.fixture(scope="module", params=range(1, MAX_BLOCKS + 1))
def scenes(request):
    return make_towers(200, seed=request.param, max_blocks=request.param)


def blocks_of(scenes, scene):
    """Boxes (left, top, right, bottom) of the blocks of one scene from the lowest up, from its factors."""
    columns = [scenes.factors[name][scene] for name in ("present", "left", "top", "width", "height")]
    return [(left, top, left + w, top + h) for present, left, top, w, h in zip(*columns, strict=True) if present]


def test_images_and_labels_have_the_agreed_layout(scenes):
    max_blocks = scenes.factors["present"].shape[1]
    assert (scenes.images.shape, scenes.images.dtype) == ((200, SIZE, SIZE, 3), np.uint8)
    assert (scenes.labels.shape, scenes.labels.dtype) == ((200, SIZE, SIZE), np.uint8)
    assert set(np.unique(scenes.labels)) == set(range(NUM_BACKGROUND + max_blocks))
    assert {values.shape for values in scenes.factors.values()} == {(200, max_blocks)}
    assert scenes.num_background == NUM_BACKGROUND


def test_larger_images_show_the_same_kind_of_scene():
    small, large = make_towers(500, seed=0), make_towers(500, seed=0, size=64)
    assert (large.images.shape, large.labels.shape) == ((500, 64, 64, 3), (500, 64, 64))
    for name in ("left", "top", "width", "height"):
        present = small.factors["present"] == 1
        assert large.factors[name][large.factors["present"] == 1].mean() == pytest.approx(
            2 * small.factors[name][present].mean(), rel=0.03
        )
    assert large.images.mean() == pytest.approx(small.images.mean(), rel=0.02)


@pytest.mark.parametrize("size", [0, 16, 48])
def test_sizes_are_multiples_of_32(size):
    with pytest.raises(UserError, match=f"^towers are drawn at multiples of 32 pixels, not at size={size}$"):
        make_towers(2, size=size)


def test_every_number_of_blocks_occurs(scenes):
    max_blocks = scenes.factors["present"].shape[1]
    counts = scenes.factors["present"].sum(1)
    assert set(counts) == set(range(1, max_blocks + 1))
    assert (np.diff(scenes.factors["present"], axis=1) <= 0).all()  # filled from the lowest up
    for values in scenes.factors.values():
        assert not values[scenes.factors["present"] == 0].any()


def test_factors_are_the_boxes_of_the_labels(scenes):
    for scene, labels in enumerate(scenes.labels):
        boxes = blocks_of(scenes, scene)
        assert labels.max() == NUM_BACKGROUND + len(boxes) - 1
        for k, (left, top, right, bottom) in enumerate(boxes):
            expected = np.zeros((SIZE, SIZE), bool)
            expected[int(top) : int(bottom), int(left) : int(right)] = True
            assert ((labels == NUM_BACKGROUND + k) == expected).all()


def test_nothing_floats(scenes):
    for scene, labels in enumerate(scenes.labels):
        boxes = blocks_of(scenes, scene)
        left, _, right, bottom = map(int, boxes[0])
        assert (labels[bottom, left:right] == towers.FLOOR).all()  # the lowest stands on the floor
        for (low_left, low_top, low_right, _), (left, _, right, bottom) in zip(boxes, boxes[1:], strict=False):
            assert bottom == low_top
            overlap = min(low_right, right) - max(low_left, left)
            assert overlap >= min(low_right - low_left, right - left) / 2


def test_every_block_is_in_the_image_with_room_around_it(scenes):
    for scene in range(len(scenes.images)):
        for left, top, right, bottom in blocks_of(scenes, scene):
            assert 0 < left < right < SIZE and 0 < top < bottom < SIZE


def test_the_wall_is_above_the_floor(scenes):
    rows = np.arange(SIZE)[:, None]
    lowest_wall = np.where(scenes.labels == towers.WALL, rows, -1).max((1, 2))
    highest_floor = np.where(scenes.labels == towers.FLOOR, rows, SIZE).min((1, 2))
    assert (lowest_wall < highest_floor).all()


def test_no_entity_is_flat(scenes):
    images = scenes.images.astype(float)
    for label in np.unique(scenes.labels):
        for image, labels in zip(images[:20], scenes.labels[:20], strict=True):
            if (labels == label).any():
                assert image[labels == label].std(0).max() > 1


@pytest.mark.parametrize("num_clusters", [5, 7])
def test_colour_alone_does_not_solve_them(num_clusters):
    scenes = make_towers(100, seed=1)
    labels = kmeans_rgb(to_float(torch.from_numpy(scenes.images).movedim(-1, 1)), num_clusters, seed=0)
    assert mean_ari(labels, torch.from_numpy(scenes.labels).long(), scenes.num_background) <= 0.7


def test_same_seed_same_scenes_and_another_seed_others():
    first, again, other = make_towers(5, seed=3), make_towers(5, seed=3), make_towers(5, seed=4)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    for name, values in first.factors.items():
        np.testing.assert_array_equal(values, again.factors[name])
    assert (first.images != other.images).any((1, 2, 3)).all()


@pytest.mark.parametrize("max_blocks", [0, 6, -1])
def test_an_impossible_number_of_blocks_is_refused(max_blocks):
    with pytest.raises(UserError, match=f"1 to 5 blocks, not max_blocks={max_blocks}"):
        make_towers(2, max_blocks=max_blocks)


class TestEnsure:
    @pytest.fixture
    def path(self, tmp_path, monkeypatch):
        for name, size in dict(_TRAIN=6, _VALIDATION=3, _TEST=2).items():
            monkeypatch.setattr(towers, name, size)
        return tmp_path / "data" / "towers.h5"

    @staticmethod
    def check(scenes):
        assert {name: len(scenes.split(name).images) for name in scenes.splits} == {
            "train": 6,
            "validation": 3,
            "test": 2,
        }
        assert (scenes.name, scenes.version) == ("towers", towers.VERSION)
        np.testing.assert_array_equal(scenes.images, make_towers(11, seed=0).images)

    def test_a_missing_file_is_made(self, path):
        self.check(ensure_towers(path))

    def test_a_good_file_is_left_alone(self, path):
        ensure_towers(path)
        before = path.stat()
        self.check(ensure_towers(str(path)))
        after = path.stat()
        assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)

    @pytest.mark.parametrize("kind", ["truncated", "empty", "no HDF5", "folder", "dangling link"])
    def test_what_cannot_be_read_is_left_alone(self, path, kind):
        ensure_towers(path)
        content = path.read_bytes()
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "dangling link":
            path.symlink_to("nowhere")
        else:
            path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "no HDF5": b"towers"}[kind])
        before = path.lstat()
        with pytest.raises(UserError, match=f"{path}.*; rename or remove it, and towers are rendered$"):
            ensure_towers(path)
        after = path.lstat()  # reading changes the time of access
        assert (after.st_mode, after.st_mtime_ns, after.st_ino) == (before.st_mode, before.st_mtime_ns, before.st_ino)

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            ({"version": towers.VERSION - 1}, f"towers, version {towers.VERSION - 1}, 32x32"),
            ({"name": "castles"}, f"castles, version {towers.VERSION}, 32x32"),
            (
                {"images": np.zeros((4, 64, 64, 3), np.uint8), "labels": None},
                f"towers, version {towers.VERSION}, 64x64",
            ),
        ],
    )
    def test_other_scenes_are_left_alone(self, path, change, found):
        write_scenes(path, replace(make_towers(4), **change), source="a test", seed=0)
        before = path.read_bytes()
        with pytest.raises(
            UserError, match=f"^{path} holds {found}; expected towers, version {towers.VERSION}, 32x32: "
        ):
            ensure_towers(path)
        assert path.read_bytes() == before

    def test_a_file_of_the_user_is_left_alone(self, path):
        path.parent.mkdir()
        with h5py.File(path, "w") as file:
            file["images"] = np.full((4, 32, 32, 3), 77, np.uint8)
        before = path.read_bytes()
        with pytest.raises(UserError, match=f"^{path} holds towers, version 0, 32x32; expected towers, version"):
            ensure_towers(path)
        assert path.read_bytes() == before

    def test_what_cannot_be_written_is_told(self, path):
        path.parent.write_text("a file where a folder should be")
        with pytest.raises(UserError, match="cannot write"):
            ensure_towers(path)


if __name__ == "__main__":
    print(f"PINNED = {statistics()}")
