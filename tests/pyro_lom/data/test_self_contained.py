"""An HDF5 file contributes its own bytes, in bounded memory and time, or is refused in one line."""

import fcntl
import os
import re
import resource
import subprocess
import sys
import time
import zlib

import h5py
import numpy as np
import pytest

from pyro_lom.data import self_contained, stored
from pyro_lom.data.hdf5 import Scenes, read_scenes, write_scenes
from pyro_lom.errors import UserError

SHAPE = (4, 8, 8, 3)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, images):
    """A folder with a file of images, part.h5, next to a file outside.h5 that nothing in the folder may read."""
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (folder / "part.h5", tmp_path / "outside.h5"):
        with h5py.File(path, "w") as file:
            file["images"] = images
    return folder


@pytest.fixture
def write(folder):
    """`write(**items)` writes items, arrays or links, into a file of the folder."""

    def run(name="scenes.h5", **items):
        with h5py.File(folder / name, "w") as file:
            for key, item in items.items():
                file[key] = item
        return folder / name

    return run


@pytest.fixture
def write_virtual(folder):
    """`write_virtual(source)` writes a virtual data set whose first rows are an array in another file."""

    def run(source, array="images", name="virtual.h5", rows=4, select=slice(None)):
        layout = h5py.VirtualLayout((rows, *SHAPE[1:]), np.uint8)
        layout[: len(range(4)[select])] = h5py.VirtualSource(source, array, SHAPE)[select]
        with h5py.File(folder / name, "w") as file:
            file.create_virtual_dataset("images", layout)
        return folder / name

    return run


def refusal(path):
    with pytest.raises(UserError) as caught:
        read_scenes(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


class TestLinks:
    @pytest.mark.parametrize("name", ["images", "labels", "factors/hue", "notes/of/others"])
    def test_external_links_are_refused_wherever_they_are(self, write, images, name):
        path = write(**{"images": images} | {name: h5py.ExternalLink("../outside.h5", "/images")})
        assert refusal(path).startswith(f"{name} in {path} is an external link: copy the data")

    def test_an_external_link_behind_a_soft_link(self, write):
        path = write(a=h5py.ExternalLink("part.h5", "/"), images=h5py.SoftLink("/a/images"))
        assert refusal(path).startswith(f"a in {path} is an external link")

    def test_soft_links_inside_of_the_file(self, write, images):
        path = write(deep=h5py.SoftLink("/stored"), **{"stored/a": images, "images": h5py.SoftLink("/deep/a")})
        np.testing.assert_array_equal(read_scenes(path).images, images)

    @pytest.mark.parametrize("name", ["images", "labels", "other"])
    def test_links_to_nothing(self, write, images, name):
        path = write(**{"images": images} | {name: h5py.SoftLink("/nowhere")})
        assert refusal(path).startswith(f"{name} in {path} is a link to nothing: remove it")

    def test_links_to_themselves(self, write, images):
        assert "too many links" in refusal(write(images=images, labels=h5py.SoftLink("/labels")))

    def test_a_group_that_contains_itself(self, write, images):
        path = write(images=images)
        with h5py.File(path, "a") as file:
            file["a/b"] = file["/"]
        np.testing.assert_array_equal(read_scenes(path).images, images)

    def test_more_objects_than_can_be_visited(self, write, images):
        """HDF5 needs hours to visit all of these groups."""
        path = write(images=images)
        with h5py.File(path, "a") as file:
            group = file
            for _ in range(5000):
                group = group.create_group("g")
        started = time.monotonic()
        assert refusal(path).startswith(f"{path} holds more than 10000 objects, or nests them deeper than 16 groups")
        assert time.monotonic() - started < 5


class TestStorage:
    def test_external_storage(self, folder, images):
        (folder / "raw").write_bytes(images.tobytes())
        with h5py.File(folder / "scenes.h5", "w") as file:
            file.create_dataset("images", SHAPE, np.uint8, external=[(folder / "raw", 0, images.nbytes)])
        assert refusal(folder / "scenes.h5").startswith(
            f"images in {folder}/scenes.h5 is stored in another file, {folder}/raw: copy the data into the file"
        )

    @pytest.mark.parametrize("in_memory", [stored.IN_MEMORY, 100])
    def test_virtual_data_sets_of_the_folder(self, folder, images, write_virtual, monkeypatch, in_memory):
        monkeypatch.setattr(stored, "IN_MEMORY", in_memory)
        np.testing.assert_array_equal(read_scenes(write_virtual("part.h5")).images[:], images)
        np.testing.assert_array_equal(read_scenes(write_virtual(str(folder / "part.h5"))).images[:], images)
        path = write_virtual("part.h5", rows=2, select=slice(1, 4, 2))
        np.testing.assert_array_equal(read_scenes(path).images[:], images[1:4:2])

    def test_a_virtual_data_set_of_the_file_itself(self, write_virtual, images):
        path = write_virtual(".", "stored")
        with h5py.File(path, "a") as file:
            file["stored"] = images
        np.testing.assert_array_equal(read_scenes(path).images, images)

    @pytest.mark.parametrize("source", ["../outside.h5", "{folder}/../outside.h5", "link.h5"])
    def test_virtual_sources_outside_of_the_folder(self, folder, write_virtual, source):
        (folder / "link.h5").symlink_to("../outside.h5")
        source = source.format(folder=folder)
        expected = f"is virtual, with a source outside of its folder, {source}: copy the data into one file"
        assert expected in refusal(write_virtual(source))

    def test_virtual_sources_that_hdf5_would_read_as_zeros(self, write, write_virtual, images):
        write("float.h5", images=images.astype(np.float32))
        write("short.h5", images=images[:2])
        write("linked.h5", images=h5py.ExternalLink("../outside.h5", "/images"))
        write_virtual("part.h5", name="nested.h5")
        stored_there = "is no data set of uint8 that is stored there"
        for source, reason in {
            "none.h5": "none.h5: no such file, or not an ordinary one",
            "float.h5": stored_there,
            "short.h5": "short.h5 has another shape, (2, 8, 8, 3)",
            "linked.h5": "linked.h5 is an external link",
            "nested.h5": stored_there,
            ".": stored_there,
            "virtual.h5": stored_there,
        }.items():
            assert reason in refusal(write_virtual(source))
        assert stored_there in refusal(write_virtual("part.h5", "labels"))
        assert "its source images in" in refusal(write_virtual("short.h5", rows=2, select=slice(1, 4, 2)))
        assert "sources hold 768 of its 1152 values" in refusal(write_virtual("part.h5", rows=6))

    def test_virtual_sources_that_overlap(self, folder):
        layout = h5py.VirtualLayout((8, *SHAPE[1:]), np.uint8)
        for _ in range(2):
            layout[:4] = h5py.VirtualSource("part.h5", "images", SHAPE)
        with h5py.File(folder / "virtual.h5", "w") as file:
            file.create_virtual_dataset("images", layout)
        assert "is virtual, and its sources hold 768 of its 1536 values" in refusal(folder / "virtual.h5")

    def test_a_virtual_data_set_of_many_pieces(self, folder, monkeypatch):
        """Each file is opened once."""
        with h5py.File(folder / "scenes.h5", "w") as file:
            layout = h5py.VirtualLayout((500, 8, 8, 1), np.uint8)
            for row in range(500):
                file[f"source/{row}"] = np.full((1, 8, 8, 1), row % 256, np.uint8)
                layout[row : row + 1] = h5py.VirtualSource(".", f"source/{row}", (1, 8, 8, 1))
            file.create_virtual_dataset("images", layout)
        start = time.monotonic()
        np.testing.assert_array_equal(
            np.asarray(read_scenes(folder / "scenes.h5").images)[:, 0, 0, 0], np.arange(500) % 256
        )
        assert time.monotonic() - start < 10
        monkeypatch.setattr(self_contained, "_MAX_SOURCES", 499)
        assert "is virtual in 500 pieces: copy the data into one file" in refusal(folder / "scenes.h5")

    def test_a_variable_that_leads_to_other_sources(self, write_virtual, monkeypatch):
        monkeypatch.setenv("HDF5_VDS_PREFIX", "/elsewhere")
        assert "HDF5_VDS_PREFIX leads to other sources: unset this variable" in refusal(write_virtual("part.h5"))

    @pytest.mark.parametrize("names", [("p%%.h5", "images"), ("part.h5", "image%%s")])
    def test_names_that_hdf5_changes(self, folder, write_virtual, names):
        (folder / names[0]).write_bytes((folder / "part.h5").read_bytes())
        assert "with a source that has % in its name" in refusal(write_virtual(*names))

    def test_names_that_are_not_text(self, write, images):
        path = write(images=images)
        with h5py.File(path, "a") as file:
            file.create_group("factors")
            h5py.h5d.create(file["factors"].id, b"\xff\xfe", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4, 2)))
        assert "has a name that is not UTF-8: rename it" in refusal(path)
        splits = {"train": range(4)}
        write_scenes(path, Scenes(images, None, {}, 0, splits, name="ZZZZ", version=0), source="tests", seed=0)
        path.write_bytes(path.read_bytes().replace(b"ZZZZ", b"\xff\xfe\xfd\xfc"))
        assert "the attribute name in" in refusal(path) and "which is not UTF-8" in refusal(path)

    def test_a_virtual_source_that_is_a_pipe(self, folder, write_virtual):
        os.mkfifo(folder / "pipe.h5")
        assert "pipe.h5: no such file, or not an ordinary one" in refusal(write_virtual("pipe.h5"))

    def test_a_virtual_data_set_without_a_size(self, folder):
        layout = h5py.VirtualLayout(SHAPE, np.uint8, maxshape=(None, *SHAPE[1:]))
        source = h5py.VirtualSource("part.h5", "images", SHAPE, maxshape=(None, *SHAPE[1:]))
        unlimited = slice(0, h5py.h5s.UNLIMITED)
        layout[unlimited, :, :, :] = source[unlimited, :, :, :]
        with h5py.File(folder / "virtual.h5", "w") as file:
            file.create_virtual_dataset("images", layout)
        assert "is virtual without a fixed size" in refusal(folder / "virtual.h5")

    def test_chunks_that_were_not_all_written(self, folder, images):
        for written in (0, 3):
            with h5py.File(folder / "scenes.h5", "w") as file:
                array = file.create_dataset("images", (9, *SHAPE[1:]), np.uint8, chunks=(1, *SHAPE[1:]))
                array[:written] = images[:written]
            expected = f"images in {folder}/scenes.h5 has {written} of 9 chunks, so it was not written to its end"
            assert refusal(folder / "scenes.h5").startswith(expected)

    def test_sizes_that_overflow(self, folder):
        with h5py.File(folder / "scenes.h5", "w") as file:
            file.create_dataset("images", (2**40, 2**12, 2**12, 1), np.uint8, chunks=(1, 64, 64, 1))
        assert "expected at most 100000000 scenes of at most 8192 pixels a side" in refusal(folder / "scenes.h5")

    def test_bytes_that_need_conversion_are_not_mapped(self, folder, images):
        """Numbers of 4 bits in bytes: the upper bits are not part of them."""
        kind = h5py.h5t.STD_U8LE.copy()
        kind.set_precision(4)
        with h5py.File(folder / "scenes.h5", "w") as file:
            dataset = h5py.h5d.create(file.id, b"images", kind, h5py.h5s.create_simple(SHAPE))
            dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, images % 16)
            offset = dataset.get_offset()
        content = bytearray((folder / "scenes.h5").read_bytes())
        content[offset : offset + images.size] = bytes(value | 0xF0 for value in content[offset : offset + images.size])
        (folder / "scenes.h5").write_bytes(content)
        np.testing.assert_array_equal(read_scenes(folder / "scenes.h5").images, images % 16)


class TestMemory:
    def test_a_chunk_that_unpacks_to_more_than_its_size(self, folder):
        with h5py.File(folder / "scenes.h5", "w") as file:
            array = file.create_dataset("images", (1, *SHAPE[1:]), np.uint8, chunks=(1, *SHAPE[1:]), compression="gzip")
            array.id.write_direct_chunk((0, 0, 0, 0), zlib.compress(bytes(10**7)))
        assert re.search(r"has a chunk of \d+ bytes where 192 are expected: make it", refusal(folder / "scenes.h5"))

    def test_arrays_in_memory_share_a_gigabyte(self, folder, images, monkeypatch):
        monkeypatch.setattr(stored, "IN_MEMORY", images.nbytes + 10)
        with h5py.File(folder / "scenes.h5", "w") as file:
            file.create_dataset("images", data=images, chunks=SHAPE)
            file.create_dataset("labels", data=images[..., 0], chunks=SHAPE[:3])
            file.attrs["num_background"] = 1
        scenes = read_scenes(folder / "scenes.h5")
        assert type(scenes.images) is np.ndarray and isinstance(scenes.labels, stored.ChunkedArray)
        np.testing.assert_array_equal(scenes.labels[:], images[..., 0])

    @pytest.mark.slow
    def test_no_chunk_takes_all_memory(self, folder):
        """A megabyte that unpacks to many gigabytes, in a chunk of 50 MB."""
        shape = (1, 4096, 4096, 3)
        packer = zlib.compressobj(9)
        head = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
        with h5py.File(folder / "bomb.h5", "w") as file:
            array = file.create_dataset("images", shape, np.uint8, chunks=shape, compression="gzip")
            array.id.write_direct_chunk((0, 0, 0, 0), head + 20_000 * block)
        code = (
            "import resource, sys; from pyro_lom.data.hdf5 import read_scenes; from pyro_lom.errors import UserError\n"
            "try: read_scenes(sys.argv[1])\n"
            "except UserError as error: print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, folder / "bomb.h5"], capture_output=True, text=True, check=True
        )
        line, _, kilobytes = found.stdout.rpartition(" ")
        assert line.startswith(f"cannot read {folder}/bomb.h5: ") and int(kilobytes) < 2_600_000

    @pytest.mark.slow
    def test_no_chunk_that_is_read_later_takes_all_memory(self, folder):
        """Four megabytes that unpack to four gigabytes, in an array that is too large to be read at once."""
        shape, chunk = (300, 2048, 2048, 1), (1, 2048, 2048, 1)
        packer, block = zlib.compressobj(9), bytes(16 << 20)
        bomb = b"".join(packer.compress(block) for _ in range(256)) + packer.flush()
        with h5py.File(folder / "bomb.h5", "w") as file:
            array = file.create_dataset("images", shape, np.uint8, chunks=chunk, compression="gzip")
            for row in range(shape[0]):
                array.id.write_direct_chunk((row, 0, 0, 0), zlib.compress(bytes(2048**2)) if row else bomb)
        code = (
            "import resource, sys; from pyro_lom.data.hdf5 import read_scenes; from pyro_lom.errors import UserError\n"
            "images = read_scenes(sys.argv[1]).images\n"
            "try: images[0]\n"
            "except UserError as error: print(error, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, folder / "bomb.h5"], capture_output=True, text=True, check=True
        )
        line, _, kilobytes = found.stdout.rpartition(" ")
        assert line.startswith(f"cannot read {folder}/bomb.h5: ") and int(kilobytes) < 2_600_000

    def test_the_limit_is_lifted_afterwards(self, write, images):
        before = resource.getrlimit(resource.RLIMIT_DATA)
        read_scenes(write(images=images))
        refusal(write(images=images.astype(float)))
        assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_a_file_that_another_program_writes(write, images):
    path = write(images=images)
    with path.open("rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert refusal(path) == f"cannot read {path}: another program has it open for writing; wait for it or stop it"


def test_what_is_no_ordinary_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")  # opening it would wait for ever
    for path in (tmp_path / "pipe.h5", "/dev/zero"):
        assert refusal(path) == f"cannot read {path}: no such file, or not an ordinary one; name an HDF5 file"
    assert refusal(tmp_path / ("a" * 5000)).startswith(f"no such file or folder: {tmp_path}/aaa")
