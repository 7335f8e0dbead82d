"""Objects Room and CLEVR6: what TensorFlow wrote comes in to the pixel."""

import gzip
import tracemalloc

import google_crc32c
import numpy as np
import pytest
from PIL import Image
from published import CLEVRS, FIXTURES, ROOMS, SIX_OBJECTS, example, feature, field, framed, room, write_records

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.multi_object import Clevr6, ObjectsRoom
from pyro_lom.errors import UserError

ROOMS_FILE = FIXTURES / "objects_room_train.tfrecords"
CLEVR_FILE = FIXTURES / "clevr_with_masks_train.tfrecords"


def read_all(reader, place=None, skip=False):
    damage = Damage("file", skip, [])
    blocks = list(reader.blocks(place, damage))
    return blocks, damage.positions


def entities(scene):
    """The entity of each pixel, from the masks."""
    return scene["mask"][..., 0].argmax(0)


class TestObjectsRoom:
    def test_pixels_and_labels(self):
        reader = ObjectsRoom(ROOMS_FILE, 64, 7)
        [block], _ = read_all(reader)
        np.testing.assert_array_equal(block.images, [scene["image"] for scene in ROOMS])
        expected = [entities(scene) for scene in ROOMS]
        expected[1] = np.where(expected[1] >= 3, expected[1] + 1, expected[1])  # a room with one wall in view
        np.testing.assert_array_equal(block.labels, expected)
        assert (block.labels.dtype, block.factors, block.done) == (np.uint8, {}, reader.total)
        assert reader.notes(block.place) == ["in 1 of 3 scenes label 3 was an object and became 4"]

    def test_variants(self):
        reader = ObjectsRoom(FIXTURES / "objects_room_six_objects.tfrecords", 64, 10)
        [block], _ = read_all(reader)
        np.testing.assert_array_equal(block.images, [scene["image"] for scene in SIX_OBJECTS])
        assert [sorted(set(labels.flat)) for labels in block.labels] == [list(range(10)), [0, 1, 2, 4, 5, 6, 7, 8]]
        assert reader.splits(1000) == {"test": range(1000)}

    def test_the_empty_room(self, tmp_path):
        path = write_records(tmp_path / "empty", [room(k, num_entities=4, num_objects=0) for k in range(2)])
        [block], _ = read_all(ObjectsRoom(path, 64, 4))
        assert [sorted(set(labels.flat)) for labels in block.labels] == [[0, 1, 2, 3]] * 2

    def test_another_size(self):
        [block], _ = read_all(ObjectsRoom(ROOMS_FILE, 48, 7))
        picture = Image.fromarray(ROOMS[0]["image"]).resize((48, 48), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(block.images[0], np.asarray(picture))
        centre = (np.arange(48) + 0.5) * 64 / 48
        untied = centre % 1 != 0
        nearest = np.ix_(centre[untied].astype(int), centre[untied].astype(int))
        np.testing.assert_array_equal(block.labels[0][np.ix_(untied, untied)], entities(ROOMS[0])[nearest])

    @pytest.mark.parametrize("num_scenes", [999, 100_000, 1_000_000])
    def test_splits_are_those_of_genesis(self, num_scenes):
        splits = ObjectsRoom(ROOMS_FILE, 64, 7).splits(num_scenes)
        n = min(10_000, num_scenes // 10)
        assert splits == {"test": range(n), "validation": range(n, 2 * n), "train": range(2 * n, num_scenes)}

    def test_goes_on_from_any_block(self, tmp_path, monkeypatch):
        monkeypatch.setattr("pyro_lom.data.importers.block.BLOCK_BYTES", 2 * 64 * 64 * 3)
        path = write_records(tmp_path / "rooms", [room(k, one_wall=k % 2 == 0) for k in range(7)])
        reader = ObjectsRoom(path, 64, 7)
        blocks, _ = read_all(reader)
        assert [len(block.images) for block in blocks] == [2, 2, 2, 1]
        for number, block in enumerate(blocks[:-1]):
            rest, _ = read_all(reader, place=block.place)
            np.testing.assert_array_equal(
                np.concatenate([b.images for b in rest]), np.concatenate([b.images for b in blocks[number + 1 :]])
            )
            assert rest[-1].place == blocks[-1].place

    def test_damage_is_left_out_on_request(self, tmp_path):
        bodies = [example(scene) for scene in ROOMS]
        bodies[1] = example({"image": ROOMS[1]["image"]})
        path = tmp_path / "rooms"
        content = b"".join(framed(body, google_crc32c.value) for body in bodies)
        path.write_bytes(gzip.compress(content[:-1] + b"x"))  # the last checksum is wrong
        with pytest.raises(UserError, match=r"^file: record 1 is damaged: it has no feature 'mask' \(it holds image\)"):
            read_all(ObjectsRoom(path, 64, 7))
        [block], positions = read_all(ObjectsRoom(path, 64, 7), skip=True)
        np.testing.assert_array_equal(block.images, [ROOMS[0]["image"]])
        assert positions[0] == "record 1"
        assert positions[1].startswith("record 2, at byte ")

    def test_pixels_of_no_mask_are_told(self, tmp_path):
        scene = room(0)
        scene["mask"][0, 0, 0] = 0
        reader = ObjectsRoom(write_records(tmp_path / "rooms", [scene, room(1)]), 64, 7)
        [block], _ = read_all(reader)
        assert reader.notes(block.place) == [
            "1 scenes have pixels of no mask or of several: the first of these took them"
        ]

    def test_the_wrong_file(self):
        with pytest.raises(UserError, match="in its first record, its mask holds 40960 bytes where 28672 are expected"):
            read_all(ObjectsRoom(FIXTURES / "objects_room_six_objects.tfrecords", 64, 7), skip=True)
        with pytest.raises(UserError, match="claims 3226280 bytes, more than the 229376"):
            read_all(ObjectsRoom(CLEVR_FILE, 64, 7), skip=True)

    @pytest.mark.slow
    def test_a_record_that_would_fill_the_memory(self, tmp_path):
        """As many bytes as are allowed, all in fields of two bytes."""
        bomb = field(1, field(1, field(1, b"image") + field(2, field(1, b"\x0a\x00" * 100_000))))
        path = tmp_path / "bomb"
        path.write_bytes(gzip.compress(framed(bomb, google_crc32c.value) * 50))
        tracemalloc.start()
        with pytest.raises(UserError, match="its image holds 0 bytes where 12288 are expected"):
            read_all(ObjectsRoom(path, 64, 7))
        assert tracemalloc.get_traced_memory()[1] < 30e6
        tracemalloc.stop()


class TestClevr6:
    def test_scenes_of_six_objects_or_fewer(self):
        reader = Clevr6(CLEVR_FILE, 192)
        [block], _ = read_all(reader)
        kept = [CLEVRS[0], CLEVRS[2]]
        np.testing.assert_array_equal(block.images, [scene["image"][29:221, 64:256] for scene in kept])
        np.testing.assert_array_equal(block.labels, [entities(scene)[29:221, 64:256] for scene in kept])
        for row, (scene, number) in enumerate(zip(kept, (3, 6), strict=True)):
            assert block.factors["present"][row].tolist() == [1] * number + [0] * (6 - number)
            for name in ("x", "y", "z", "rotation", "size", "material", "shape", "color"):
                expected = np.append(scene[name][1 : number + 1], np.zeros(6 - number))
                np.testing.assert_array_equal(block.factors[name][row], expected.astype(scene[name].dtype))
            coords = scene["pixel_coords"][1 : number + 1]
            np.testing.assert_allclose(block.factors["pixel_x"][row, :number], coords[:, 0] - 64, rtol=1e-6)
            np.testing.assert_allclose(block.factors["pixel_y"][row, :number], coords[:, 1] - 29, rtol=1e-6)
        assert reader.splits(53_483)["test"] == range(5_348)

    def test_resized_to_the_papers_size(self):
        [block], _ = read_all(Clevr6(CLEVR_FILE, 96))
        crop = Image.fromarray(CLEVRS[0]["image"]).crop((64, 29, 256, 221))
        np.testing.assert_array_equal(block.images[0], np.asarray(crop.resize((96, 96), Image.Resampling.BILINEAR)))
        np.testing.assert_array_equal(block.labels[0], entities(CLEVRS[0])[29:221, 64:256][1::2, 1::2])
        np.testing.assert_allclose(
            block.factors["pixel_x"][0, 0], (CLEVRS[0]["pixel_coords"][1, 0] - 64) / 2, rtol=1e-6
        )

    def test_the_wrong_file(self):
        with pytest.raises(UserError, match=r"in its first record, it has no feature 'x' \(it holds image, mask\)"):
            read_all(Clevr6(ROOMS_FILE, 96))


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("visibility", np.nan, "its visibility is NaN or infinite"),
        ("rotation", np.inf, "its rotation is NaN or infinite"),
        ("pixel_coords", np.nan, "its depth is NaN or infinite"),
        ("pixel_coords", 3e38, "its pixel_x is NaN or infinite"),
    ],
)
def test_records_that_are_not_finite(tmp_path, number, name, value, reason):
    scenes = [scene | {name: scene[name].copy()} for scene in CLEVRS]
    if value == 3e38:
        scenes[number][name][1, 0] = value
    else:
        scenes[number][name][1] = value
    path = write_records(tmp_path / "clevr", scenes)
    with pytest.raises(UserError, match=f"file: record {number} is damaged: {reason}; fetch it again"):
        read_all(Clevr6(path, 384))
    [block], positions = read_all(Clevr6(path, 384), skip=True)
    assert (len(block.images), positions) == (1, [f"record {number}"])


@pytest.mark.parametrize("value", [1, 3, 127, 254])
def test_masks_of_rooms_that_are_not_binary(tmp_path, value):
    scene = room(0) | {"mask": room(0)["mask"].copy()}
    scene["mask"][2, 5, 6] = value
    path = write_records(tmp_path / "rooms", [scene, room(1)])
    with pytest.raises(UserError, match=f"record 0 is damaged: its mask holds {value} where 0 or 255 is expected"):
        read_all(ObjectsRoom(path, 64, 7))
    [block], positions = read_all(ObjectsRoom(path, 64, 7), skip=True)
    assert (len(block.images), positions) == (1, ["record 0"])


def test_floats_and_bytes_are_told_apart(tmp_path):
    scene = CLEVRS[0] | {"size": CLEVRS[0]["size"].astype(np.float32)}
    path = write_records(tmp_path / "clevr", [scene])
    with pytest.raises(UserError, match="in its first record, its size is of another type"):
        read_all(Clevr6(path, 96))
    assert feature(scene["size"]) != feature(CLEVRS[0]["size"])
