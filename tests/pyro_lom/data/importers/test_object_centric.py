"""Files in the layout of object-centric-library, whole and broken."""

import h5py
import numpy as np
import pytest
from PIL import Image
from published import ROOMS

from pyro_lom.data.importers import object_centric
from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.object_centric import ObjectCentric
from pyro_lom.errors import UserError


@pytest.fixture
def clevr():
    """Eleven entities, of which 1 + (3, 7, 6, 0) are there."""
    rng = np.random.default_rng(0)
    numbers = np.array([3, 7, 6, 0])
    visibility = (np.arange(11) <= numbers[:, None]).astype(np.float32)
    return {
        "image": rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        "mask": (rng.integers(0, 100, (4, 16, 16, 1)) % (numbers[:, None, None, None] + 1)).astype(np.uint8),
        "visibility": visibility,
        "num_actual_objects": numbers[:, None],
        "x": rng.normal(size=(4, 11)).astype(np.float32),
        "shape": rng.integers(0, 3, (4, 11, 1)),
        "pixel_coords": rng.normal(size=(4, 11, 3)),
        "name": np.array([b"a"] * 4),
    }


@pytest.fixture
def write(tmp_path):
    def write(values, **layout):
        path = tmp_path / "some-full.hdf5"
        with h5py.File(path, "w") as file:
            for name, array in values.items():
                file.create_dataset(name, data=array, **layout)
        return path

    return write


def read_all(reader, skip=False, place=None):
    damage = Damage("file", skip, [])
    return list(reader.blocks(place, damage)), damage.positions


@pytest.mark.parametrize("layout", [{}, {"chunks": True, "compression": "gzip"}], ids=["contiguous", "gzip"])
def test_clevr6(write, clevr, layout):
    [block], _ = read_all(ObjectCentric(write(clevr, **layout), 16, 1, max_objects=6))
    rows = [0, 2, 3]
    np.testing.assert_array_equal(block.images, clevr["image"][rows])
    np.testing.assert_array_equal(block.labels, clevr["mask"][rows, ..., 0])
    expected = {"x": clevr["x"], "shape": clevr["shape"][..., 0]}
    expected |= {f"pixel_coords_{k}": clevr["pixel_coords"][..., k] for k in range(3)}
    expected |= {"present": clevr["visibility"]}
    assert block.factors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(block.factors[name], (values * (clevr["visibility"] > 0))[rows, 1:7])


def test_gaps_are_closed(write, clevr):
    clevr["visibility"][0] = [1, 0, 1, 0, 1] + [0] * 6
    clevr["mask"][0] = np.arange(256).reshape(16, 16, 1) % 3 * 2
    [block], _ = read_all(ObjectCentric(write(clevr), 16, 1, max_objects=6))
    np.testing.assert_array_equal(block.labels[0], np.arange(256).reshape(16, 16) % 3)
    np.testing.assert_array_equal(block.factors["x"][0], [*clevr["x"][0, [2, 4]], 0, 0, 0, 0])


def test_objects_room(write):
    masks = np.stack([scene["mask"].argmax(0) for scene in ROOMS]).astype(np.uint8)
    visibility = np.stack([np.isin(np.arange(7), mask) for mask in masks])[..., None]
    path = write({"image": np.stack([s["image"] for s in ROOMS]), "mask": masks, "visibility": visibility})
    reader = ObjectCentric(path, 64, 4)
    [block], _ = read_all(reader)
    masks[1][masks[1] >= 3] += 1
    np.testing.assert_array_equal(block.labels, masks[..., 0])
    assert block.factors == {}
    assert reader.notes(block.place) == ["in 1 scenes label 3 was an object and became 4"]


def test_resized(write, clevr):
    [block], _ = read_all(ObjectCentric(write(clevr), 8, 1))
    picture = Image.fromarray(clevr["image"][1]).resize((8, 8), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(block.images[1], np.asarray(picture))
    np.testing.assert_array_equal(block.labels, clevr["mask"][:, 1::2, 1::2, 0])


def test_goes_on_from_any_block(write, clevr, monkeypatch):
    monkeypatch.setattr("pyro_lom.data.importers.object_centric.BLOCK_BYTES", 16 * 16 * 3)
    reader = ObjectCentric(write(clevr), 16, 1)
    blocks, _ = read_all(reader)
    assert [len(block.images) for block in blocks] == [1] * 4
    rest, _ = read_all(reader, place=blocks[1].place)
    np.testing.assert_array_equal(rest[0].images, blocks[2].images)


def test_a_mask_of_unknown_entities(write, clevr):
    clevr["mask"][2, 5, 5] = 11
    with pytest.raises(UserError, match="^file: scene 2 is damaged: its mask names none of 11 entities"):
        read_all(ObjectCentric(write(clevr), 16, 1))
    [block], positions = read_all(ObjectCentric(write(clevr), 16, 1), skip=True)
    assert (len(block.images), positions) == (3, ["scene 2"])


def test_a_damaged_chunk(write, clevr):
    path = write(clevr, chunks=True, compression="gzip")
    with h5py.File(path) as file:
        chunk = file["image"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = bytes(chunk.size)
    path.write_bytes(content)
    with pytest.raises(UserError, match="^file: one of the scenes 0 to 3 is damaged: "):
        read_all(ObjectCentric(path, 16, 1))
    assert read_all(ObjectCentric(path, 16, 1), skip=True)[0] == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mask": None}, r'has no "mask" \(it holds image, .*\); name a \*-full.hdf5 file'),
        ({"image": np.zeros((4, 16, 16, 3), np.float32)}, r"image in .* is float32 \(4, 16, 16, 3\); expected uint8"),
        ({"image": np.zeros((4, 16, 16, 1), np.uint8)}, "expected uint8"),
        ({"image": np.zeros((0, 16, 16, 3), np.uint8)}, "expected uint8"),
        ({"mask": np.zeros((4, 16, 16), np.uint8)}, r"mask in .* is uint8 \(4, 16, 16\); expected integers \(4, 16"),
        ({"mask": np.zeros((4, 8, 8, 1), np.uint8)}, r"expected integers \(4, 16, 16, 1\)"),
        ({"visibility": np.zeros((3, 11))}, "visibility in .* has 3 rows, image 4"),
        ({"visibility": np.zeros(4)}, r"visibility in .* is float64 \(4,\); expected numbers \(N, entities\)"),
        ({"visibility": np.zeros((4, 300))}, r"visibility in .* is float64 \(4, 300\)"),
        ({"visibility": np.zeros((4, 11, 2))}, r"visibility in .* is float64 \(4, 11, 2\)"),
        ({"visibility": np.full((4, 11), b"yes")}, r"visibility in .* is \|S3 \(4, 11\); expected numbers"),
        ({"image": np.zeros((4, 0, 16, 3), np.uint8)}, r"image in .* is uint8 \(4, 0, 16, 3\); expected uint8"),
        ({"x": np.zeros((9, 11))}, "x in .* has 9 rows, image 4"),
        ({"visibility": np.zeros((4, 1))}, r"expected numbers \(N, entities\), more than the 1 of the background"),
    ],
)
def test_another_layout(write, clevr, changes, reason):
    values = {name: array for name, array in (clevr | changes).items() if array is not None}
    with pytest.raises(UserError, match=reason):
        ObjectCentric(write(values), 16, 1)


def test_two_factors_of_one_name(write, clevr):
    values = clevr | {"c": np.zeros((4, 11, 2)), "c_0": np.ones((4, 11))}
    with pytest.raises(UserError, match="has two factors c_0: rename one"):
        read_all(ObjectCentric(write(values), 16, 1))


def test_chunks_that_would_fill_the_memory(tmp_path, clevr, write):
    path = write({name: array for name, array in clevr.items() if name != "image"})
    with h5py.File(path, "a") as file:
        file.create_dataset("image", (4, 8000, 8000, 3), np.uint8, chunks=(4, 8000, 8000, 3), compression="gzip")
        del file["mask"]
        file.create_dataset("mask", (4, 8000, 8000, 1), np.uint8, chunks=(1, 64, 64, 1), compression="gzip")
    with pytest.raises(UserError, match=r"image in .* has chunks of \(4, 8000, 8000, 3\): store it with smaller ones"):
        ObjectCentric(path, 16, 1)


@pytest.mark.parametrize("name", ["n" * 300, "present", "..", "a\x1b"])
def test_names_that_no_factor_can_have(write, clevr, name):
    with pytest.raises(UserError, match="has a name that is too long, not printable, or that this project gives"):
        ObjectCentric(write(clevr | {name: clevr["x"]}), 16, 1)


def test_more_factors_than_an_object_has(write, clevr):
    with pytest.raises(UserError, match="has 305 factors of an object; expected at most 256"):
        ObjectCentric(write(clevr | {"many": np.zeros((4, 11, 300))}), 16, 1)


def test_small_scenes_that_become_large(write, clevr, monkeypatch):
    """Blocks are bounded by the scenes after resizing, too."""
    monkeypatch.setattr(object_centric, "BLOCK_BYTES", 4 * 64**2)
    blocks, _ = read_all(ObjectCentric(write(clevr), 64, 1))
    assert [len(block.images) for block in blocks] == [1, 1, 1, 1]


def test_no_hdf5(tmp_path):
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="cannot read .*text: not an HDF5 file, .*; make or fetch it again"):
        ObjectCentric(tmp_path / "text", 16, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "place"), [("visibility", 0), ("visibility", 9), ("x", 3), ("pixel_coords", (1, 2))])
def test_scenes_that_are_not_finite(write, clevr, name, place, value):
    clevr[name][2][place] = value
    path = write(clevr)
    with pytest.raises(UserError, match=f"file: scene 2 is damaged: its {name}.* is NaN or infinite"):
        read_all(ObjectCentric(path, 16, 1))
    [block], positions = read_all(ObjectCentric(path, 16, 1), skip=True)
    assert (len(block.images), positions) == (3, ["scene 2"])
