"""Generated files that are damaged or hostile: they are read as they are, or refused in one line, and change nothing.

Each test makes a hundred files of one kind. The same files are made each time.
"""

import gzip
import json
import os
import resource
import shutil
import tempfile
import zlib
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.multi_object import ObjectsRoom
from pyro_lom.data.importers.object_centric import ObjectCentric
from pyro_lom.data.inspection import inspect_scenes
from pyro_lom.data.pictures import read_labels, read_rgb
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError

pytestmark = pytest.mark.slow

ROOMS = Path(__file__).parent / "importers" / "fixtures" / "objects_room_train.tfrecords"
generated = settings(
    max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)


def bytes_of_zeros():
    content = BytesIO()
    with h5py.File(content, "w") as file:
        for name in ("images", "labels", "a", "b/c"):
            file[name] = np.zeros((6, 8, 8, 3), np.uint8)
    return content.getvalue()


VICTIM = bytes_of_zeros()
"""An HDF5 file that nothing may change and that nothing may read."""

names = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 100
)
damage = st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=12)
"""Positions, which are reduced to the size of a file, and their new bytes."""


@contextmanager
def folder():
    """An empty folder next to the victim."""
    with tempfile.TemporaryDirectory() as outer:
        victim, inner = Path(outer, "victim"), Path(outer, "inner")
        victim.write_bytes(VICTIM)
        inner.mkdir()
        yield inner
        assert victim.read_bytes() == VICTIM and sorted(os.listdir(outer)) == ["inner", "victim"]


def refused(call, *arguments):
    """Return None if `call` works, or the line with which it refuses. Memory is bounded. Other errors are raised."""
    try:
        call(*arguments)
        return None
    except UserError as error:
        assert str(error).isprintable() and 10 < len(str(error)) < 3000
        return str(error)
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3_000_000  # kilobytes


def read_all(path):
    scenes = read_scenes(path)
    inspect_scenes(scenes)
    for array in (scenes.images, scenes.labels, *scenes.factors.values()):
        assert array is None or len(np.asarray(array)) == len(scenes.images)
    for rows in scenes.splits.values():
        assert 0 <= rows.start <= rows.stop <= len(scenes.images)
    return scenes


def spoiled(content, changes, within=None):
    content = bytearray(content)
    for position, value in changes:
        content[position % min(len(content), within or len(content))] = value
    return bytes(content)


def scenes_file(path, **layout):
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=IMAGES, **layout)
        file["labels"] = IMAGES[..., 0] % 4
        file["factors/hue"] = np.arange(12, dtype=np.float32).reshape(6, 2)
        file.attrs.update(num_background=1, split_train=[0, 4], split_test=[4, 6])
    return path


# HDF5


@generated
@given(damage, st.sampled_from([{}, {"chunks": (1, 8, 8, 3), "compression": "gzip"}, {"chunks": (4, 8, 8, 3)}]))
def test_bytes_of_hdf5_files(changes, layout):
    with folder() as inner:
        path = scenes_file(inner / "a.h5", **layout)
        path.write_bytes(spoiled(path.read_bytes(), changes, within=4096))
        refused(read_all, path)


@generated
@given(st.integers(0, 20_000))
def test_lengths_of_hdf5_files(length):
    with folder() as inner:
        path = scenes_file(inner / "a.h5")
        length %= path.stat().st_size
        os.truncate(path, length)
        assert "cannot read" in refused(read_all, path)


def link(*own):
    """A name in a file, the kind of what it leads to, and its target there or in another file."""
    kinds = ["array", "group", "soft", "external", "storage", "virtual", "hard"]
    targets = ["images", "labels", "a", "b", "b/c", "nowhere", "factors/hue"]
    files = ["../victim", "part.h5", "a.h5", ".", "/dev/zero", "pipe", "../inner/part.h5", "nowhere"]
    return st.tuples(*map(st.sampled_from, (own, kinds, targets, files)))


@generated
@example(("images", "external", "images", "../victim"), [])
@example(("images", "storage", "images", "../victim"), [])
@example(("images", "virtual", "images", "../victim"), [])
@given(
    link("images"),
    st.lists(link("labels", "factors", "factors/hue", "a", "b/c", "b/d"), max_size=5, unique_by=lambda item: item[0]),
)
def test_links_and_storage(images, others):
    """Whatever is read comes from the file or its folder: the arrays there have values above 100, all others zeros."""
    high = np.full((6, 8, 8, 3), 101, np.uint8)
    with folder() as inner:
        os.mkfifo(inner / "pipe")
        scenes_file(inner / "part.h5")
        with h5py.File(inner / "part.h5", "a") as file:
            file["images"][:] = high
        with h5py.File(inner / "a.h5", "w") as file:
            for name, kind, target, other in sorted([images, *others], key=lambda item: item[1] == "external"):
                try:
                    if kind == "array":
                        file[name] = high
                    elif kind == "group":
                        file.create_group(name)
                    elif kind == "soft":
                        file[name] = h5py.SoftLink(f"/{target}")
                    elif kind == "external":
                        file[name] = h5py.ExternalLink(other, f"/{target}")
                    elif kind == "storage":
                        file.create_dataset(name, high.shape, np.uint8, external=[(inner / other, 0, high.size)])
                    elif kind == "virtual":
                        layout = h5py.VirtualLayout(high.shape, np.uint8)
                        layout[:] = h5py.VirtualSource(other, target, high.shape)
                        file.create_virtual_dataset(name, layout)
                    else:
                        file[name] = file[target]
                except (KeyError, ValueError, OSError, RuntimeError, TypeError):  # HDF5 refuses to make it
                    continue
            kinds = {link.type for link in links_of(file)}
        found = refused(read_all, inner / "a.h5")
        assert found or (read_scenes(inner / "a.h5").images[:] == 101).all()
        assert found or h5py.h5l.TYPE_EXTERNAL not in kinds


def links_of(file):
    links = []
    file.id.links.visit(lambda name, link: links.append(link), info=True)
    return links


@generated
@given(
    name=st.sampled_from(["images", "labels", "factors/hue"]),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 6, 8, 300, 2**20, 2**40]), max_size=5).map(tuple),
    dtype=st.sampled_from("u1 i1 u2 >u2 >f4 f2 f8 c8 ? S5 O V3 vlen reference compound".split()),
    layout=st.sampled_from(["contiguous", "chunked", "gzip"]),
    value=st.sampled_from([None, 0, 1]),
)
def test_types_and_shapes(name, shape, dtype, layout, value):
    special = {"O": h5py.string_dtype(), "vlen": h5py.vlen_dtype(np.uint8), "reference": h5py.ref_dtype}
    special["compound"] = np.dtype([("a", "u1"), ("b", "f4")])
    with folder() as inner:
        path = scenes_file(inner / "a.h5")
        with h5py.File(path, "a") as file:
            del file[name]
            chunks = None if layout == "contiguous" or 0 in shape or not shape else tuple(min(n, 64) for n in shape)
            compression = "gzip" if chunks and layout == "gzip" else None
            kind = special.get(dtype) or np.dtype(dtype)
            try:
                array = file.create_dataset(name, shape, kind, chunks=chunks, compression=compression)
                if value is not None and kind.kind != "O" and np.prod(shape, dtype=float) < 10**6:
                    array[...] = np.full(shape, value).astype(kind)
            except (OSError, TypeError, ValueError, OverflowError):  # h5py refuses to make it
                return
        refused(read_all, path)


values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.booleans(),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=50),
    st.binary(max_size=20),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    st.lists(st.floats(), max_size=3),
    st.just(h5py.Empty("f4")),
)


@generated
@given(st.sampled_from("num_background split_train split_val name version format format_version seed".split()), values)
def test_attributes(name, value):
    with folder() as inner:
        path = scenes_file(inner / "a.h5")
        with h5py.File(path, "a") as file:
            file.attrs.update(format="pyro_lom scenes", format_version=1, name="toy", version=1)
            try:
                file.attrs.pop(name, None)
                if value is not None:
                    file.attrs[name] = value
            except (TypeError, ValueError, OSError):  # h5py refuses to store it
                return
        refused(read_all, path)


@generated
@given(names, names, names)
def test_names(own, attribute, file_name):
    with folder() as inner:
        try:
            path = scenes_file(inner / file_name)
        except OSError:
            return
        with h5py.File(path, "a") as file:
            try:
                file[own] = file["images"][:]
                file["factors"][own] = np.full((6, 2), np.nan)
                file.attrs[f"split_{attribute}"] = [0, 2]
            except (ValueError, OSError):
                return
        assert refused(read_all, path)  # the factor is not finite
        with h5py.File(path, "a") as file:
            del file["images"]
        assert refused(read_all, path)


@generated
@given(st.integers(0, 10**7), st.integers(1, 5), st.sampled_from([1, 8, 64]), st.booleans())
def test_compressed_chunks(num_bytes, num_written, side, twice):
    """Chunks that unpack to other sizes than they should, or were never written."""
    packed = zlib.compress(bytes(num_bytes))
    with folder() as inner:
        with h5py.File(inner / "a.h5", "w") as file:
            shape = (4, side, side, 1)
            array = file.create_dataset("images", shape, np.uint8, chunks=(1, *shape[1:]), compression="gzip")
            for row in range(min(num_written, 4)):
                array.id.write_direct_chunk((row, 0, 0, 0), zlib.compress(packed) if twice else packed)
        found = refused(read_all, inner / "a.h5")
        assert found or (num_written >= 4)


@generated
@given(damage, st.sampled_from(["image", "mask", "visibility", "shape"]), st.booleans())
def test_bytes_of_imported_hdf5_files(changes, other, compressed):
    layout = {"chunks": True, "compression": "gzip"} if compressed else {}
    arrays = {
        "image": IMAGES,
        "mask": IMAGES[..., :1] % 3,
        "visibility": np.ones((6, 3), np.float32),
        "shape": np.ones((6, 3, 2), np.float32),
    }
    with folder() as inner:
        path = inner / "a.hdf5"
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file.create_dataset(name, data=values.astype("S3") if name == other else values, **layout)
        path.write_bytes(spoiled(path.read_bytes(), changes, within=6000))
        refused(lambda: list(ObjectCentric(path, 8, 1).blocks(None, Damage("a", skip=True, positions=[]))))


# pictures


def picture(format, mode):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
    content = BytesIO()
    image.save(content, format)
    return content.getvalue()


PICTURES = [("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "1"), ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK")]


@generated
@given(st.sampled_from(PICTURES), damage, st.booleans())
def test_bytes_of_pictures(kind, changes, at_the_head):
    with folder() as inner:
        path = inner / "a.png"
        path.write_bytes(spoiled(picture(*kind), changes, within=64 if at_the_head else None))
        for read in (read_rgb, read_labels):
            assert refused(read, path) or read(path) is not None


@generated
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 2, 4, 8, 16, 17]),
    st.sampled_from(range(8)),
    st.sampled_from([0, 1]),
    st.binary(max_size=500),
)
def test_headers_of_png_files(width, height, bits, colour, interlaced, pixels):
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([bits, colour, 0, 0, interlaced])
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    )
    with folder() as inner:
        (inner / "a.png").write_bytes(content)
        assert refused(read_rgb, inner / "a.png") or max(width, height) <= 8192


@generated
@given(st.sampled_from(["BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "ICO", "PDF", "EPS"]), damage)
def test_other_formats(format, changes):
    content = BytesIO()
    Image.new("RGB", (16, 16)).save(content, format)
    with folder() as inner:
        (inner / "a.png").write_bytes(spoiled(content.getvalue(), changes))
        assert refused(read_rgb, inner / "a.png")


# imports


@generated
@given(damage, st.booleans(), st.booleans())
def test_bytes_of_tfrecords(changes, compressed, skip):
    content = ROOMS.read_bytes()
    if not compressed:
        content = gzip.decompress(content)
    with folder() as inner:
        path = inner / "a.tfrecords"
        path.write_bytes(spoiled(content, changes))
        refused(lambda: list(ObjectsRoom(path, 8, 7).blocks(None, Damage("a", skip, positions=[]))))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=8,
)
arrays = st.dictionaries(
    st.sampled_from(["images", "labels", "factors.a", "../../victim", "..", "lock", "a/b", "/etc/passwd"]) | names,
    st.tuples(st.sampled_from(["|u1", "<f4", "|O8", "u1", "<U9"]), st.lists(st.integers(-1, 9), max_size=4))
    | json_values,
    max_size=3,
)


@generated
@given(st.sampled_from(["made_by", "num_scenes", "place", "arrays", "other"]), json_values, arrays, st.booleans())
def test_journals(key, value, named, whole):
    """Nothing outside of the folder is written, and at the end there is the whole file or an unfinished one."""
    block = (IMAGES, IMAGES[..., 0], {"hue": np.zeros((6, 2), np.float32)})
    with folder() as inner:
        with pytest.raises(KeyboardInterrupt), SceneWriter(inner / "a.h5", {"seed": 1}) as writer:
            writer.append(*block)
            raise KeyboardInterrupt
        journal = writer.folder / "journal.json"
        changed = json.loads(journal.read_text()) | {key: named if key == "arrays" else value}
        journal.write_text(json.dumps(value if whole else changed))

        def resume():
            with SceneWriter(inner / "a.h5", {"seed": 1}) as again:
                again.append(*block)
                again.finish(name="a", version=1, num_background=1, splits={}, source="", seed=0)

        refused(resume)
        assert set(os.listdir(inner)) <= {"a.h5", ".a.h5.partial"}


@generated
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lock", "journal.json", "images", "labels", "factors.hue", "notes", "journal.json.tmp"]),
            st.sampled_from(["text", "link", "loop", "pipe", "folder", "link to a folder"]),
        ),
        max_size=4,
        unique_by=lambda item: item[0],
    ),
    st.booleans(),
)
def test_folders_of_the_user(items, begun):
    """A folder with the name of the unfinished file: what the user has put there stays."""
    block = (IMAGES, IMAGES[..., 0], {"hue": np.zeros((6, 2), np.float32)})
    with folder() as inner:
        mine = inner / ".a.h5.partial"
        if begun:
            with pytest.raises(KeyboardInterrupt), SceneWriter(inner / "a.h5", {}) as writer:
                writer.append(*block)
                raise KeyboardInterrupt
        else:
            mine.mkdir()
        for name, kind in items:
            path = mine / name
            path.unlink(missing_ok=True)
            {
                "text": lambda path: path.write_bytes(VICTIM),
                "link": lambda path: path.symlink_to("../../victim"),
                "loop": lambda path: path.symlink_to(path),
                "pipe": os.mkfifo,
                "folder": Path.mkdir,
                "link to a folder": lambda path: path.symlink_to("../.."),
            }[kind](path)

        def write():
            with SceneWriter(inner / "a.h5", {}) as writer:
                if not writer.num_scenes:
                    writer.append(*block)
                writer.finish(name="a", version=1, num_background=1, splits={}, source="", seed=0)

        found = refused(write)
        assert found or len(read_scenes(inner / "a.h5").images) == 6
        for name, _ in items:
            assert name not in ("notes", "journal.json.tmp") or os.path.lexists(mine / name)
        shutil.rmtree(mine, ignore_errors=True)
