"""Arrays in .npz, .npy and HDF5 files as numpy and h5py write them, among them the layout of EMORL."""

import math
import os
import re
import resource
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest

from pyro_lom.data.importers.array_file import ArrayFile
from pyro_lom.data.importers.block import Damage
from pyro_lom.errors import UserError

N, SIDE, K = 20, 32, 4


@pytest.fixture
def scenes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, SIDE, SIDE, 3), dtype=np.uint8)
    return images, rng.integers(0, K, (N, SIDE, SIDE), dtype=np.uint8)


def one_hot(labels):
    return (labels[:, None] == np.arange(K)[None, :, None, None])[..., None].astype(np.uint8) * 255


def read_all(reader, place=None, skip=False):
    damage = Damage("file", skip, [])
    blocks = list(reader.blocks(place, damage))
    images = np.concatenate([block.images for block in blocks])
    labels = None if blocks[0].labels is None else np.concatenate([block.labels for block in blocks])
    return images, labels, damage.positions


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [("images", "labels"), ("x", "masks"), ("imgs", "mask")])
def test_npz(tmp_path, scenes, save, names):
    images, labels = scenes
    save(tmp_path / "a.npz", **{names[0]: images.transpose(0, 3, 1, 2), names[1]: one_hot(labels)})
    reader = ArrayFile(tmp_path / "a.npz", None)
    found = read_all(reader)
    np.testing.assert_array_equal(found[0], images)
    np.testing.assert_array_equal(found[1], labels)
    assert (reader.size, reader.num_background, reader.total) == (SIDE, 1, N)
    assert reader.splits(N) == {"train": range(18), "test": range(18, 20)}
    path = tmp_path / "a.npz"
    assert reader.remarks() == [f"{path}: images (20, 3, 32, 32); labels below 1 are background"]


def test_arrays_of_other_names_are_left_out_and_named(tmp_path, scenes):
    path = tmp_path / "a.npz"
    np.savez(path, x=scenes[0], imgs=scenes[0], factors=np.array({"shape": [1]}, object))
    reader = ArrayFile(path, None)
    assert read_all(reader)[1] is None and reader.num_background == 0
    pickled = f"left out: factors in {path} is pickled, which may run code, and is not read: save it as numbers"
    assert reader.remarks()[1:] == [pickled, f"left out: x in {path}, beside imgs"]


UNREADABLE = {
    "pickled": (lambda array: np.full(array.shape, None, object), "is pickled"),
    "complex": (lambda array: array.astype(np.complex64), "is complex64; expected an array of numbers"),
    "text": (lambda array: array.astype(str), "is <U.; expected an array of numbers"),
    "dates": (lambda array: array.astype("M8[s]"), "is datetime64.s.; expected an array of numbers"),
    "fields": (lambda array: np.zeros(array.shape, [("\u00e9", "u1")]), "is .*; expected an array of numbers"),
    "two axes": (lambda array: array[0, 0], r"has the shape \(32, ?3?\); expected three axes or more: rename it"),
    "none": (lambda array: array[(0,) * array.ndim], r"has the shape \(\); expected three axes or more: rename it"),
}


@pytest.mark.filterwarnings("ignore:Stored array in format 3.0")
@pytest.mark.parametrize("wrong", ["images", "labels"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_arrays_without_pictures_are_left_out_and_named(tmp_path, scenes, wrong, kind):
    spoil, reason = UNREADABLE[kind]
    arrays = {"images": scenes[0], "imgs": scenes[0], "labels": scenes[1], "masks": scenes[1]}
    np.savez(tmp_path / "a.npz", **arrays | {wrong: spoil(arrays[wrong])})
    reader = ArrayFile(tmp_path / "a.npz", None)
    for found, expected in zip(read_all(reader), scenes, strict=False):
        np.testing.assert_array_equal(found, expected)
    assert any(re.match(rf"left out: {wrong} in .*a.npz {reason}", remark) for remark in reader.remarks())
    del arrays[{"images": "imgs", "labels": "masks"}[wrong]]
    np.savez(tmp_path / "a.npz", **arrays | {wrong: spoil(arrays[wrong])})
    if wrong == "images":
        with pytest.raises(UserError, match=rf"^images in .*a.npz {reason}"):
            ArrayFile(tmp_path / "a.npz", None)
    else:
        assert read_all(ArrayFile(tmp_path / "a.npz", None))[1] is None


@pytest.mark.parametrize("wrong", ["images", "labels"])
def test_arrays_of_pictures_by_column_are_refused(tmp_path, scenes, wrong):
    arrays = {"images": scenes[0], "imgs": scenes[0], "labels": scenes[1], "masks": scenes[1]}
    np.savez(tmp_path / "a.npz", **arrays | {wrong: np.asfortranarray(arrays[wrong])})
    with pytest.raises(
        UserError, match=f"^{wrong} in .*a.npz is stored column by column: save numpy.ascontiguousarray"
    ):
        ArrayFile(tmp_path / "a.npz", None)


def test_a_cut_array_is_no_reason_to_take_another(tmp_path, scenes):
    np.save(tmp_path / "labels.npy", scenes[1])
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name, length in {"images": None, "labels": -100, "masks": None}.items():
            archive.writestr(f"{name}.npy", (tmp_path / "labels.npy").read_bytes()[:length])
    with pytest.raises(
        UserError, match="^labels in .*a.npz has the shape .* it is truncated or damaged; fetch it again"
    ):
        ArrayFile(tmp_path / "a.npz", None)


def test_an_array_of_few_axes_names_its_shape(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((8, 8)))
    with pytest.raises(UserError, match=r"images in .*a.npy has the shape \(8, 8\); expected three axes or more"):
        ArrayFile(tmp_path / "a.npy", None)


@pytest.mark.parametrize("name", ["images", "labels"])
@pytest.mark.parametrize("kind", ["group", "text", "two axes", "null"])
def test_hdf5_arrays_without_pictures_are_left_out_and_named(tmp_path, scenes, name, kind):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"], file["imgs"], file["masks"] = *scenes, *scenes
        del file[name]
        if kind == "group":
            file.create_group(name)
        else:
            file[name] = {"text": np.full((2, 2, 2), b"a"), "two axes": scenes[1][0], "null": h5py.Empty("u1")}[kind]
    reader = ArrayFile(tmp_path / "a.h5", None)
    np.testing.assert_array_equal(read_all(reader)[0], scenes[0])
    pattern = f"left out: {name} in .*a.h5 (is no array|is .S1; expected|has the shape .* three axes)"
    assert any(re.match(pattern, remark) for remark in reader.remarks())
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["imgs"], file["masks"]
    if name == "images":
        with pytest.raises(UserError, match=pattern.removeprefix("left out: ")):
            ArrayFile(tmp_path / "a.h5", None)


def test_npy_and_sizes(tmp_path, scenes):
    np.save(tmp_path / "a.npy", scenes[0][:, :, 4:28] / 255)
    with pytest.raises(UserError, match="images in .*a.npy are 32x24, no square: pass --size, such as 64"):
        ArrayFile(tmp_path / "a.npy", None)
    cropped = ArrayFile(tmp_path / "a.npy", 24)
    np.testing.assert_array_equal(read_all(cropped)[0], scenes[0][:, 4:28, 4:28])
    padded = ArrayFile(tmp_path / "a.npy", 32, pad=True)
    np.testing.assert_array_equal(read_all(padded)[0][:, :, 4:28], scenes[0][:, :, 4:28])
    assert padded.remarks()[1].endswith("images of 32x24 (height x width) are padded with black to 32x32")


@pytest.fixture
def emorl(tmp_path, scenes):
    """EMORL's HDF5 file: images and masks have channels, and are floats or bytes from 0 to 255."""
    images, labels = scenes
    path = tmp_path / "multi_dsprites.h5"
    with h5py.File(path, "w") as file:
        for name, rows in {"train": slice(0, 12), "val": slice(12, 15), "test": slice(15, 20)}.items():
            file[f"{name}/imgs"] = images[rows].astype(np.float32)
            masks = np.repeat(one_hot(labels[rows]), 3, -1)
            file.create_dataset(f"{name}/masks", data=masks, chunks=(2, K, 16, 16, 3), compression="gzip")
        file["test/factors"] = np.zeros((5, 11, 9))
    return path


def test_emorl(emorl, scenes):
    reader = ArrayFile(emorl, None)
    images, labels, _ = read_all(reader)
    np.testing.assert_array_equal(images, scenes[0])
    np.testing.assert_array_equal(labels, scenes[1])
    assert reader.splits(N) == {"train": range(12), "validation": range(12, 15), "test": range(15, 20)}
    half = ArrayFile(emorl, None, num=10)
    np.testing.assert_array_equal(read_all(half)[0], scenes[0][[*range(6), 12, *range(15, 18)]])
    assert half.splits(10) == {"train": range(6), "validation": range(6, 7), "test": range(7, 10)}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda images: images[..., :1], "validation has grey images of 32x32 from 0 to 255"),
        (lambda images: images[:, :16], "validation has RGB images of 16x32 from 0 to 255"),
        (lambda images: images / 255, "validation has RGB images of 32x32 from 0 to 1"),
        (lambda images: images > 99, "validation has RGB images of 32x32 from 0 to 1"),
    ],
)
def test_groups_that_differ(emorl, change, found):
    with h5py.File(emorl, "a") as file:
        changed = change(file["val/imgs"][:])
        del file["val/imgs"]
        file["val/imgs"] = changed
    with pytest.raises(UserError, match=f"the groups of .* differ: train has RGB .*; {found}.*: store them alike$"):
        ArrayFile(emorl, None)


def test_emorl_without_masks_for_training(emorl, scenes):
    with h5py.File(emorl, "a") as file:
        del file["train/masks"]
    reader = ArrayFile(emorl, None)
    labels = read_all(reader)[1]
    assert not labels[:12].any()
    np.testing.assert_array_equal(labels[12:], scenes[1][12:])
    assert reader.remarks()[-1] == f"train in {emorl} has no masks: its labels are 0"


def test_groups_of_other_types_of_one_range(emorl, scenes):
    with h5py.File(emorl, "a") as file:
        for name, images in {"train": scenes[0][:12], "val": scenes[0][12:15].astype(float)}.items():
            del file[f"{name}/imgs"]
            file[f"{name}/imgs"] = images
    np.testing.assert_array_equal(read_all(ArrayFile(emorl, None))[0], scenes[0])


def test_two_groups_of_one_split(emorl):
    with h5py.File(emorl, "a") as file:
        file["training"] = file["train"]
    with pytest.raises(UserError, match="multi_dsprites.h5 has groups train and training: rename or remove one"):
        ArrayFile(emorl, None)


def test_groups_without_train(emorl):
    with h5py.File(emorl, "a") as file:
        del file["train"]
    reader = ArrayFile(emorl, None)
    assert reader.splits(8) == {"train": range(7), "test": range(7, 8)}
    found = "the images of validation and test are taken together, and the last tenth is for testing"
    assert reader.remarks()[-1] == f"{emorl} has no group train: {found}"


@pytest.mark.parametrize("value", ["2", 300, -1, np.nan, 2.0, [1, 2], np.zeros(1, [("a", "u1")]), h5py.Empty("u1")])
def test_an_invalid_number_of_background_labels(tmp_path, scenes, value):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = scenes
        file.attrs["num_background"] = value
    with pytest.raises(UserError, match="the attribute num_background in .* is .*; expected an integer from 0 to 255"):
        ArrayFile(tmp_path / "a.h5", None)
    assert ArrayFile(tmp_path / "a.h5", None, 3).num_background == 3


@pytest.mark.parametrize("shape", [(12, 0, SIDE, SIDE, 1), (12, K, SIDE, SIDE, 0), (0, K, SIDE, SIDE, 1)])
@pytest.mark.parametrize("options", [{}, {"chunks": (1, 1, 8, 8, 1), "maxshape": (None,) * 5}])
def test_emorl_with_empty_masks(emorl, shape, options):
    with h5py.File(emorl, "a") as file:
        del file["train/masks"]
        file.create_dataset("train/masks", shape, np.uint8, **options)
    with pytest.raises(UserError, match="train/masks in .* has the shape .*, which is empty: store one image or more"):
        ArrayFile(emorl, None)


@pytest.mark.parametrize("shape", [(10**8 + 1, 2, 2), (2**31 - 1, 1, 1)])
@pytest.mark.parametrize("is_hdf5", [False, True])
def test_many_rows_take_no_memory(tmp_path, shape, is_hdf5):
    """Sparse files of gigabytes."""
    path = tmp_path / ("a.h5" if is_hdf5 else "a.npy")
    if is_hdf5:
        with h5py.File(path, "w") as file:
            images = file.create_dataset("images", shape, np.uint8)
            images[0] = 1
            end = images.id.get_offset() + math.prod(shape)
    else:
        np.save(path, np.zeros((1, *shape[1:]), np.uint8))
        head = path.read_bytes()[:128].replace(b"(1, ", b"(%d, " % shape[0]).replace(b" " * 10, b"", 1)
        path.write_bytes(head.ljust(127) + b"\n")
        end = 128 + math.prod(shape)
    os.truncate(path, end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"has {shape[0]} images; expected at most 100000000: split the file"):
        ArrayFile(path, None)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_the_rows_of_many_scenes_take_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((10**8, 1, 1), np.uint8))
    tracemalloc.start()
    reader = ArrayFile(tmp_path / "a.npy", None, num=10**8 - 1)
    blocks = reader.blocks({"row": 10**8 - 4, "damaged": [], "on_white": 0}, Damage("file", False, []))
    assert sum(len(block.images) for block in blocks) == 3
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_a_sample_of_large_images_is_small(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((12, 2048, 2048), np.float32))
    tracemalloc.start()
    ArrayFile(tmp_path / "a.npy", 64)
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_our_own_layout_keeps_splits_and_background(tmp_path, scenes):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"], file["labels"] = scenes
        file.attrs.update(num_background=2, split_train=[5, 20], split_test=[0, 5])
    reader = ArrayFile(tmp_path / "a.h5", 48)
    assert read_all(reader)[0].shape == (N, 48, 48, 3)
    assert reader.num_background == 2
    assert {name: len(rows) for name, rows in reader.splits(N).items()} == {"train": 15, "test": 5}


def test_goes_on_from_any_block(emorl, scenes, monkeypatch):
    monkeypatch.setattr("pyro_lom.data.importers.block.BLOCK_BYTES", 3 * SIDE**2 * 7)
    blocks = list(ArrayFile(emorl, None).blocks(None, Damage("file", False, [])))
    assert [len(block.images) for block in blocks] == [7, 7, 6]
    for number in range(2):
        rest = read_all(ArrayFile(emorl, None), place=blocks[number].place)
        np.testing.assert_array_equal(rest[0], scenes[0][7 * (number + 1) :])


def test_damage(tmp_path, scenes):
    images, labels = scenes[0].astype(np.float32), scenes[1].astype(np.int32)
    images[7], labels[9] = np.nan, 1000
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    with pytest.raises(UserError, match="file: image 7 is damaged: images in .*a.npz has values from nan to nan"):
        read_all(ArrayFile(tmp_path / "a.npz", None))
    found = read_all(ArrayFile(tmp_path / "a.npz", None), skip=True)
    assert (len(found[0]), found[2]) == (18, ["image 7", "image 9"])


def test_too_much_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("pyro_lom.data.importers.block._MAX_DAMAGED", 5)
    np.save(tmp_path / "a.npy", np.full((9, 8, 8), np.nan))
    with pytest.raises(UserError, match="file: more than 5 records or images are damaged: fetch it again"):
        read_all(ArrayFile(tmp_path / "a.npy", None), skip=True)


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"faces": np.zeros((4, 8, 8, 3))}, r"a.npz has no images \(it holds faces\): name an array of them images"),
        ({"images": np.zeros((4, 8, 8, 2))}, "expected .N, H, W, C. or .N, C, H, W. with 1, 3 or 4 channels"),
        ({"images": np.zeros((0, 8, 8, 3))}, "is empty"),
        ({"images": np.zeros((4, 8, 9000), np.uint8)}, "expected at most 100000000 of 8192 pixels a side"),
        ({"images": np.zeros((4, 8, 8)), "masks": np.zeros((4, 8, 7), int)}, r"labels in .* is int64 \(4, 8, 7\)"),
        ({"images": np.zeros((4, 8, 8)), "masks": np.zeros((3, 8, 8), int)}, "has 3 labels for 4 images: store one"),
    ],
)
def test_wrong_arrays(tmp_path, arrays, reason):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=reason):
        ArrayFile(tmp_path / "a.npz", None)
