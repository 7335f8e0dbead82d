"""Scenes survive the disk, foreign files are read, and every mistake is told in one line."""

import errno
import os
import pickle

import h5py
import numpy as np
import pytest
from PIL import Image

from pyro_lom.data import layout
from pyro_lom.data.hdf5 import Scenes, read_image_folder, read_scenes, write_scenes
from pyro_lom.errors import UserError


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def scenes(rng):
    return Scenes(
        images=rng.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8),
        labels=rng.integers(0, 4, (20, 6, 5), dtype=np.uint8),
        factors={"hue": rng.random((20, 2), dtype=np.float32), "present": rng.integers(0, 2, (20, 2))},
        num_background=2,
        splits={"train": range(12), "validation": range(12, 15), "test": range(15, 20)},
        name="toy",
        version=3,
    )


def write_foreign(path, attributes=(), **datasets):
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
        file.attrs.update(attributes)
    return path


def assert_refused(call, *fragments):
    """`call` raises a UserError of one line that holds every fragment."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert str(fragment) in message


class TestRoundTrip:
    def test_everything_comes_back_as_memory_maps(self, tmp_path, scenes):
        path = tmp_path / "made" / "on" / "demand" / "toy.h5"
        write_scenes(path, scenes, source="noise", seed=5)
        read = read_scenes(path)
        for array in (read.images, read.labels):
            assert isinstance(array, np.memmap)
            assert not array.flags.writeable
        np.testing.assert_array_equal(read.images, scenes.images)
        np.testing.assert_array_equal(read.labels, scenes.labels)
        assert read.factors.keys() == scenes.factors.keys()
        for name, values in scenes.factors.items():
            np.testing.assert_array_equal(read.factors[name], values)
            assert read.factors[name].dtype == values.dtype
        assert read.splits == scenes.splits
        assert (read.num_background, read.name, read.version) == (2, "toy", 3)
        assert read.image_shape == (3, 6, 5)

    def test_attributes_and_layout(self, tmp_path, scenes):
        write_scenes(tmp_path / "toy.h5", scenes, source="noise", seed=5)
        with h5py.File(tmp_path / "toy.h5") as file:
            attributes = dict(file.attrs)
            assert file["images"].chunks is None
        np.testing.assert_array_equal(attributes.pop("split_validation"), [12, 15])
        assert attributes.pop("split_train").tolist() == [0, 12]
        assert attributes.pop("split_test").tolist() == [15, 20]
        assert attributes == {
            "format": "pyro_lom scenes",
            "format_version": 1,
            "name": "toy",
            "version": 3,
            "source": "noise",
            "seed": 5,
            "num_background": 2,
        }

    def test_without_labels(self, tmp_path, scenes):
        bare = Scenes(scenes.images[..., :1], None, {}, 0, {"train": range(20)}, "bare", 1)
        write_scenes(tmp_path / "bare.h5", bare, source="noise", seed=0)
        read = read_scenes(tmp_path / "bare.h5")
        assert (read.labels, read.factors, read.num_background, read.splits) == (None, {}, 0, {"train": range(20)})
        assert read.image_shape == (1, 6, 5)

    def test_pickled_for_a_spawned_worker(self, tmp_path, scenes):
        write_scenes(tmp_path / "toy.h5", scenes, source="noise", seed=5)
        revived = pickle.loads(pickle.dumps(read_scenes(tmp_path / "toy.h5").split("test")))
        np.testing.assert_array_equal(revived.images, scenes.images[15:])
        assert revived.splits == {"test": range(5)}

    def test_replaces_a_file(self, tmp_path, scenes):
        path = tmp_path / "toy.h5"
        path.write_text("old")
        write_scenes(path, scenes, source="noise", seed=5)
        assert len(read_scenes(path).images) == 20
        assert os.listdir(tmp_path) == ["toy.h5"]


class TestSplit:
    def test_restricts_every_array_to_a_view(self, scenes):
        validation = scenes.split("validation")
        np.testing.assert_array_equal(validation.images, scenes.images[12:15])
        np.testing.assert_array_equal(validation.labels, scenes.labels[12:15])
        np.testing.assert_array_equal(validation.factors["hue"], scenes.factors["hue"][12:15])
        assert np.shares_memory(validation.images, scenes.images)
        assert validation.splits == {"validation": range(3)}
        assert (validation.num_background, validation.name) == (2, "toy")

    def test_unknown_name(self, scenes):
        assert_refused(lambda: scenes.split("val"), '"val"', "toy", "train, validation, test")


class TestFailedWrite:
    def test_full_disk_leaves_the_old_file_alone(self, tmp_path, scenes, monkeypatch):
        path = tmp_path / "toy.h5"
        path.write_text("old")
        create_dataset = h5py.File.create_dataset

        def full_after_images(file, name, **arguments):
            if name != "images":
                assert len(os.listdir(tmp_path)) == 2  # there is a partial file to remove
                raise OSError(errno.ENOSPC, "Can't write data (file write failed:\n time = now)")
            return create_dataset(file, name, **arguments)

        monkeypatch.setattr(h5py.File, "create_dataset", full_after_images)
        assert_refused(lambda: write_scenes(path, scenes, source="s", seed=0), path, "No space left on device")
        assert os.listdir(tmp_path) == ["toy.h5"]
        assert path.read_text() == "old"

    def test_full_disk_noticed_on_closing(self, tmp_path, scenes, monkeypatch):
        def fail(file):
            raise RuntimeError("Can't decrement id ref count (No space left on device)")

        monkeypatch.setattr(h5py.File, "__exit__", lambda file, *_: fail(file))
        assert_refused(lambda: write_scenes(tmp_path / "toy.h5", scenes, source="s", seed=0), "No space left on device")
        assert os.listdir(tmp_path) == []

    def test_interrupted(self, tmp_path, scenes, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_scenes(tmp_path / "toy.h5", scenes, source="s", seed=0)
        assert os.listdir(tmp_path) == []

    def test_permission_denied(self, tmp_path, scenes, monkeypatch):
        def deny(*_, **__):
            raise PermissionError(errno.EACCES, "Unable to open file")

        monkeypatch.setattr(h5py, "File", deny)
        path = tmp_path / "toy.h5"
        assert_refused(lambda: write_scenes(path, scenes, source="s", seed=0), path, "Permission denied")

    def test_folder_that_is_a_file(self, tmp_path, scenes):
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "toy.h5"
        assert_refused(lambda: write_scenes(path, scenes, source="s", seed=0), path)


class TestForeignFile:
    @pytest.mark.parametrize(("num_scenes", "num_test"), [(2, 1), (19, 1), (40, 4), (30_000, 1000)])
    def test_last_tenth_is_test(self, tmp_path, num_scenes, num_test):
        path = write_foreign(tmp_path / "foreign.h5", images=np.zeros((num_scenes, 2, 2, 1), np.uint8))
        scenes = read_scenes(str(path))
        first = num_scenes - num_test
        assert scenes.splits == {"train": range(first), "test": range(first, num_scenes)}
        assert (scenes.labels, scenes.num_background, scenes.name, scenes.version) == (None, 0, "foreign", 0)

    def test_one_scene_is_for_training(self, tmp_path):
        path = write_foreign(tmp_path / "one.h5", images=np.zeros((1, 2, 2, 1), np.uint8))
        assert read_scenes(path).splits == {"train": range(1)}

    def test_split_attributes_alone(self, tmp_path, scenes):
        attributes = {"split_train": [2, 8], "split_test": [8, 20]}
        path = write_foreign(tmp_path / "foreign.h5", attributes, images=scenes.images)
        assert read_scenes(path).splits == {"train": range(2, 8), "test": range(8, 20)}

    def test_attributes_of_others_are_left_alone(self, tmp_path, scenes):
        attributes = {"format": "theirs", "format_version": 9, "version": "v9", b"\xff": 0}
        path = write_foreign(tmp_path / "foreign.h5", attributes, images=scenes.images)
        assert (read_scenes(path).name, read_scenes(path).version) == ("foreign", 0)

    @pytest.mark.parametrize("kind", [">f4", ">i8", "<f2", "?", "u1"])
    def test_factors_of_any_number_type(self, tmp_path, scenes, kind):
        values = (10 * scenes.factors["hue"]).astype(kind)
        path = write_foreign(tmp_path / "foreign.h5", images=scenes.images, **{"factors/hue": values})
        found = read_scenes(path).factors["hue"]
        np.testing.assert_array_equal(found, values)
        assert found.dtype.isnative

    def test_compressed_is_read_into_memory(self, tmp_path, scenes):
        with h5py.File(tmp_path / "small.h5", "w") as file:
            file.create_dataset("images", data=scenes.images, compression="gzip")
        images = read_scenes(tmp_path / "small.h5").images
        assert not isinstance(images, np.memmap)
        np.testing.assert_array_equal(images, scenes.images)

    def test_one_chunk_without_compression(self, tmp_path, scenes):
        with h5py.File(tmp_path / "chunk.h5", "w") as file:
            file.create_dataset("images", data=scenes.images, chunks=scenes.images.shape)
        np.testing.assert_array_equal(read_scenes(tmp_path / "chunk.h5").images, scenes.images)


class TestRefusedFile:
    def test_missing(self, tmp_path):
        assert_refused(lambda: read_scenes(tmp_path / "none.h5"), "no such file", tmp_path / "none.h5")

    @pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(200)])
    def test_not_hdf5(self, tmp_path, content):
        path = tmp_path / "text.h5"
        path.write_bytes(content)
        assert_refused(lambda: read_scenes(path), path, "not an HDF5 file, or truncated or damaged")

    @pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
    def test_truncated(self, tmp_path, scenes, kept):
        path = tmp_path / "toy.h5"
        write_scenes(path, scenes, source="noise", seed=5)
        os.truncate(path, int(kept * path.stat().st_size))
        assert_refused(lambda: read_scenes(path), path, "truncated or damaged", "truncated file")

    def test_permission_denied(self, tmp_path, monkeypatch):
        def deny(*_, **__):
            raise PermissionError(errno.EACCES, "Unable to open file")

        path = write_foreign(tmp_path / "closed.h5", images=np.zeros((2, 2, 2, 1), np.uint8))
        monkeypatch.setattr(h5py, "File", deny)
        assert_refused(lambda: read_scenes(path), path, "permission denied")

    def test_no_images(self, tmp_path):
        path = write_foreign(tmp_path / "a.h5", image=np.zeros(2), mask=np.zeros(2))
        assert_refused(lambda: read_scenes(path), path, '"images"', "image, mask")

    def test_images_is_a_group(self, tmp_path):
        path = write_foreign(tmp_path / "a.h5", **{"images/train": np.zeros(2)})
        assert_refused(lambda: read_scenes(path), path, '"images"')

    def test_rank(self, tmp_path):
        path = write_foreign(tmp_path / "a.h5", images=np.zeros((9, 8, 8), np.uint8))
        assert_refused(lambda: read_scenes(path), path, "(9, 8, 8)", "(N, H, W, C)")

    @pytest.mark.parametrize("dtype", ["float32", "int32", "uint16", "bool"])
    def test_dtype(self, tmp_path, dtype):
        path = write_foreign(tmp_path / "a.h5", images=np.zeros((9, 8, 8, 3), dtype))
        assert_refused(lambda: read_scenes(path), path, dtype, "uint8", "astype")

    @pytest.mark.parametrize("shape", [(9, 3, 8, 8), (9, 8, 8, 4), (9, 8, 8, 2)])
    def test_channels(self, tmp_path, shape):
        path = write_foreign(tmp_path / "a.h5", images=np.zeros(shape, np.uint8))
        assert_refused(lambda: read_scenes(path), path, f"{shape[3]} channels", shape, "1 or 3")

    def test_no_scenes(self, tmp_path):
        path = write_foreign(tmp_path / "a.h5", images=np.zeros((0, 8, 8, 3), np.uint8))
        assert_refused(lambda: read_scenes(path), path, "empty", "(0, 8, 8, 3)")

    @pytest.mark.parametrize(
        "labels", [np.zeros((20, 6, 5, 1), np.uint8), np.zeros((19, 6, 5), np.uint8), np.zeros((20, 6, 5), np.int64)]
    )
    def test_labels(self, tmp_path, scenes, labels):
        path = write_foreign(tmp_path / "a.h5", {"num_background": 1}, images=scenes.images, labels=labels)
        assert_refused(lambda: read_scenes(path), path, f"{labels.dtype} {labels.shape}", "uint8 (20, 6, 5)")

    def test_labels_are_a_group(self, tmp_path, scenes):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, **{"labels/train": scenes.labels})
        assert_refused(lambda: read_scenes(path), path, "labels", "a group")

    @pytest.mark.parametrize("name", ["num_background", "split_train", "name", "format"])
    def test_a_large_attribute_is_not_read(self, tmp_path, scenes, name):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w", libver="latest") as file:
            file["images"], file["labels"] = scenes.images, scenes.labels
            file.attrs.update(format="pyro_lom scenes", format_version=1, num_background=1)
            file.attrs[name] = np.zeros(100_000, np.uint8)
        assert_refused(lambda: read_scenes(path), path, f"the attribute {name}", "takes 100000 bytes", "at most 65536")

    def test_labels_without_num_background(self, tmp_path, scenes):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, labels=scenes.labels)
        assert_refused(lambda: read_scenes(path), path, "num_background")

    @pytest.mark.parametrize("value", [-1, "two", 256, 300, 2.0, True, [1, 2], 2**64 - 1])
    def test_num_background(self, tmp_path, scenes, value):
        attributes = {"num_background": value}
        path = write_foreign(tmp_path / "a.h5", attributes, images=scenes.images, labels=scenes.labels)
        assert_refused(lambda: read_scenes(path), path, "num_background", "expected an integer from 0 to 255")

    @pytest.mark.parametrize("shape", [(19, 2), (20,), (20, 2, 2)])
    def test_factors(self, tmp_path, scenes, shape):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, **{"factors/hue": np.zeros(shape)})
        assert_refused(lambda: read_scenes(path), path, "factors/hue", shape, "(20, max_objects)")

    @pytest.mark.parametrize("kind", ["S3", "O", "c8", "g", [("a", "i4"), ("b", "f4")]], ids=str)
    def test_factors_of_other_types(self, tmp_path, scenes, kind):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["images"] = scenes.images
            file.create_dataset("factors/hue", (20, 2), h5py.string_dtype() if kind == "O" else np.dtype(kind))
        assert_refused(lambda: read_scenes(path), path, "factors/hue", "(20, 2)", "expected numbers (20, max_objects)")

    @pytest.mark.parametrize("kind", ["references", "arrays of any length"])
    def test_factors_that_are_no_arrays(self, tmp_path, scenes, kind):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["images"] = scenes.images
            dtype = h5py.ref_dtype if kind == "references" else h5py.vlen_dtype(np.uint8)
            file.create_dataset("factors/hue", (20, 2), dtype)
        assert_refused(lambda: read_scenes(tmp_path / "a.h5"), "factors/hue", "object", "expected numbers")

    @pytest.mark.parametrize("columns", [0, 257])
    def test_columns_of_factors(self, tmp_path, scenes, columns):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, **{"factors/hue": np.zeros((20, columns))})
        assert_refused(lambda: read_scenes(path), path, f"(20, {columns})", "at most 256 objects")

    def test_factors_are_a_data_set(self, tmp_path, scenes):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, factors=np.zeros((20, 2)))
        assert_refused(lambda: read_scenes(path), path, "factors", "is no group")

    def test_types_are_no_arrays(self, tmp_path, scenes):
        for name in ("images", "labels", "factors", "factors/hue"):
            arrays = {"images": scenes.images} | {name: np.dtype("f4")}
            assert_refused(lambda: read_scenes(write_foreign(tmp_path / "a.h5", **arrays)), name)  # noqa: B023

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_factors_that_are_not_finite(self, tmp_path, scenes, value):
        hue = np.zeros((20, 2), ">f4")
        hue[7, 1] = value
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, **{"factors/hue": hue})
        assert_refused(lambda: read_scenes(path), path, f"factors/hue in {path} is {value} in scene 7, column 1")

    def test_factors_that_take_the_memory(self, tmp_path, scenes, monkeypatch):
        monkeypatch.setattr(layout, "_MAX_FACTORS", 20 * 2 * 8)
        factors = {"factors/hue": np.zeros((20, 2))}
        assert read_scenes(write_foreign(tmp_path / "a.h5", images=scenes.images, **factors)).factors
        factors["factors/size"] = np.zeros((20, 1), np.uint8)
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, **factors)
        assert_refused(lambda: read_scenes(path), f"the factors in {path} take more than")

    def test_a_label_array_without_values(self, tmp_path, scenes):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images, labels=h5py.Empty("u1"))
        assert_refused(lambda: read_scenes(path), path, "labels", "uint8 None")

    @pytest.mark.parametrize("shape", [(3, 0, 8, 1), (3, 8, 0, 3)])
    def test_sides_of_zero(self, tmp_path, shape):
        path = write_foreign(tmp_path / "a.h5", images=np.zeros(shape, np.uint8))
        assert_refused(lambda: read_scenes(path), path, "empty", shape)

    @pytest.mark.parametrize("shape", [(1, 8193, 2, 1), (1, 2, 8193, 1), (10**8 + 1, 1, 1, 1)])
    def test_sizes_have_bounds(self, tmp_path, shape):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.create_dataset("images", shape, np.uint8)
        assert_refused(lambda: read_scenes(tmp_path / "a.h5"), shape, "at most 100000000 scenes of at most 8192 pixels")

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("version", np.inf, "the attribute version in .* is inf; expected an integer"),
            ("version", "3", "the attribute version in .* is '3'; expected an integer"),
            ("version", np.arange(1000), "the attribute version in .* is array"),
            ("version", 10**15, "the attribute version in .* is 1000000000000000; expected an integer from 0 to 2147"),
            ("version", None, "the attribute version in .* is missing"),
            ("name", 7, "the attribute name in .* expected a string"),
            ("name", ["a", "b"], "the attribute name in .* expected a string"),
            ("name", None, "the attribute name in .* is missing"),
            ("format_version", "new", "the attribute format_version in .* is 'new'; expected an integer"),
            ("format_version", None, "the attribute format_version in .* is missing"),
        ],
    )
    def test_attributes_of_our_own_files(self, tmp_path, scenes, name, value, reason):
        write_scenes(tmp_path / "toy.h5", scenes, source="noise", seed=5)
        with h5py.File(tmp_path / "toy.h5", "a") as file:
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
        with pytest.raises(UserError, match=reason):
            read_scenes(tmp_path / "toy.h5")

    def test_more_splits_than_make_sense(self, tmp_path, scenes):
        attributes = {f"split_{k}": [0, 1] for k in range(101)}
        path = write_foreign(tmp_path / "a.h5", attributes, images=scenes.images)
        assert_refused(lambda: read_scenes(path), path, "101 splits", "at most 100")

    @pytest.mark.parametrize("bounds", [[0, 21], [-1, 3], [5, 4], [3], [0.0, 3.0], [2**63, 3], ["a", "b"], [[0, 3]]])
    def test_split_range(self, tmp_path, scenes, bounds):
        path = write_foreign(tmp_path / "a.h5", {"split_test": bounds}, images=scenes.images)
        assert_refused(lambda: read_scenes(path), path, "split_test", "expected [start, stop] within 0..20")

    def test_a_split_of_a_million_numbers(self, tmp_path, scenes):
        with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
            file["images"] = scenes.images
            file.attrs["split_test"] = np.zeros(10**6, int)
        assert_refused(
            lambda: read_scenes(tmp_path / "a.h5"), "split_test", "takes 8000000 bytes; expected at most 65536"
        )

    def test_splits_that_overlap(self, tmp_path, scenes):
        splits = {"split_train": [0, 12], "split_test": [10, 20]}
        path = write_foreign(tmp_path / "a.h5", splits, images=scenes.images)
        assert_refused(lambda: read_scenes(path), path, "scenes 10 to 11 of", "split_")

    def test_transparency(self, tmp_path):
        path = write_foreign(tmp_path / "a.h5", images=np.zeros((3, 8, 8, 4), np.uint8))
        assert_refused(lambda: read_scenes(path), path, "4 channels", "images[..., :3] leaves out transparency")

    def test_format_from_the_future(self, tmp_path, scenes):
        write_scenes(tmp_path / "toy.h5", scenes, source="noise", seed=5)
        with h5py.File(tmp_path / "toy.h5", "a") as file:
            file.attrs["format_version"] = 2
        assert_refused(lambda: read_scenes(tmp_path / "toy.h5"), "toy.h5", "format_version 2", "update pyro_lom")

    def test_size(self, tmp_path, scenes):
        path = write_foreign(tmp_path / "a.h5", images=scenes.images)
        assert read_scenes(path, (6, 5)).image_shape == (3, 6, 5)
        scenes = read_scenes(path, (64, 64))
        assert scenes.images.shape == (20, 64, 64, 3) and scenes.name.endswith(" at 64x64")
        assert scenes.notes == (f"{path}: images of 6x5 (height x width) are cropped and resized to 64x64",)

    @pytest.mark.parametrize("start", [40, 100, 400])
    def test_overwritten_tables(self, tmp_path, scenes, start):
        path = tmp_path / "toy.h5"
        write_scenes(path, scenes, source="noise", seed=5)
        content = bytearray(path.read_bytes())
        content[start : start + 300] = bytes(300)
        path.write_bytes(content)
        assert_refused(lambda: read_scenes(path), path)


class TestImageFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "photos"
        folder.mkdir()
        return folder

    def test_sorted_rgb_of_any_suffix_case(self, folder, rng):
        pixels = rng.integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels[1]).save(folder / "b.PNG")
        Image.fromarray(pixels[0]).save(folder / "a.png")
        Image.fromarray(pixels[2, :, :, 0]).save(folder / "c.png")
        Image.fromarray(np.full((6, 5, 3), 90, np.uint8)).save(folder / "d.JPeG")
        (folder / "notes.txt").write_text("not an image")
        scenes = read_scenes(folder)
        assert scenes.images.shape == (4, 6, 5, 3)
        np.testing.assert_array_equal(scenes.images[:2], pixels[:2])
        np.testing.assert_array_equal(scenes.images[2], np.repeat(pixels[2, :, :, :1], 3, axis=2))
        np.testing.assert_allclose(scenes.images[3].astype(int), 90, atol=2)
        assert scenes.splits == {"train": range(3), "test": range(3, 4)}
        assert (scenes.name, scenes.labels, scenes.num_background) == ("photos", None, 0)

    def test_size_crops_the_centre_and_resizes(self, folder):
        wide = np.zeros((10, 30, 3), np.uint8)
        wide[:, 10:20, 1] = 255  # the centre is green, the sides are not
        Image.fromarray(wide).save(folder / "wide.png")
        Image.fromarray(wide.transpose(1, 0, 2)).save(folder / "tall.png")
        images = read_scenes(folder, size=(5, 5)).images
        assert images.shape == (2, 5, 5, 3)
        np.testing.assert_array_equal(images, np.broadcast_to(np.array([0, 255, 0], np.uint8), images.shape))

    def test_size_is_height_then_width(self, folder):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
        assert read_image_folder(folder, (4, 6)).image_shape == (3, 4, 6)

    def test_same_size_is_left_as_it_is(self, folder, rng):
        pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a.png")
        np.testing.assert_array_equal(read_image_folder(folder, (6, 5)).images[0], pixels)

    def test_sizes_differ(self, folder):
        Image.new("RGB", (5, 6)).save(folder / "a.png")
        Image.new("RGB", (7, 6)).save(folder / "b.png")
        assert_refused(lambda: read_scenes(folder), folder, "a.png is 6x5", "b.png is 6x7", "pass the size")

    def test_empty(self, folder):
        (folder / "notes.txt").write_text("")
        assert_refused(lambda: read_scenes(folder), "no images", folder, ".png")

    def test_more_than_fits_into_memory(self, folder, monkeypatch):
        for name in ("a.png", "b.png"):
            Image.new("RGB", (8, 8)).save(folder / name)
        assert len(read_scenes(folder, (4, 4)).images) == 2
        with pytest.raises(
            UserError, match="^2 images of 20000x20000 in .* take more than 1 GiB .* import images .*photos"
        ):
            read_scenes(folder, (20_000, 20_000))

    def test_unreadable(self, folder):
        Image.new("RGB", (50, 60)).save(folder / "a.png")
        (folder / "b.png").write_bytes(b"not an image")
        assert_refused(lambda: read_scenes(folder), folder / "b.png")

    def test_truncated(self, folder, rng):
        Image.fromarray(rng.integers(0, 256, (60, 50, 3), dtype=np.uint8)).save(folder / "a.png")
        os.truncate(folder / "a.png", 2000)
        assert_refused(lambda: read_scenes(folder), folder / "a.png")

    def test_more_than_eight_bits(self, folder):
        Image.fromarray(np.full((6, 5), 40_000, np.uint16)).save(folder / "deep.png")
        assert_refused(lambda: read_scenes(folder), folder / "deep.png", "more than 8 bits")
