"""Arrays in NumPy's files, which numpy itself wrote, and hostile ones: bounded memory, nothing unpickled."""

import io
import os
import resource
import struct
import zipfile

import numpy as np
import pytest

from pyro_lom.data.npy import NpyArray, npz_arrays
from pyro_lom.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_rows_in_any_order(tmp_path, save):
    save(tmp_path / "a.npz", images=IMAGES, masks=IMAGES[..., :1].astype(np.int64))
    arrays, refused = npz_arrays(tmp_path / "a.npz")
    assert (list(arrays), refused) == (["images", "masks"], {})
    images = arrays["images"]
    assert (images.shape, images.dtype, images.ndim, len(images)) == (IMAGES.shape, np.uint8, 4, 20)
    for rows in (slice(0, 3), slice(3, 9), slice(15, 99), slice(2, 4), slice(5, 5)):
        np.testing.assert_array_equal(images[rows], IMAGES[rows])
    np.testing.assert_array_equal(arrays["masks"][3:4], IMAGES[3:4, ..., :1])


def test_a_single_array(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES.astype(">f4"))
    np.testing.assert_array_equal(NpyArray(tmp_path / "a.npy")[4:6], IMAGES[4:6])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions(tmp_path, version):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, IMAGES, version)
    np.testing.assert_array_equal(NpyArray(tmp_path / "a.npy")[2:], IMAGES[2:])


def test_an_encrypted_member(tmp_path):
    np.savez(tmp_path / "a.npz", images=IMAGES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for place in (6, content.index(b"PK\x01\x02") + 8):
        content[place] |= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(
        UserError, match="images in .*a.npz is encrypted, or compressed by another method: save it with"
    ):
        npz_arrays(tmp_path / "a.npz")


def test_pickles_are_left_out_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=IMAGES, labels=np.array([Evil()], object))
    arrays, refused = npz_arrays(tmp_path / "a.npz")
    assert list(arrays) == ["x"]
    assert {name: str(error) for name, error in refused.items()} == {
        "labels": f"labels in {tmp_path / 'a.npz'} is pickled, which may run code, and is not read: save it as numbers"
    }
    np.savez("b.npz", labels=np.array([Evil()], object))
    with pytest.raises(UserError, match="labels in .*b.npz is pickled"):
        npz_arrays(tmp_path / "b.npz")
    assert not (tmp_path / "unpickled").exists()


def header(shape, dtype="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": dtype})
    return file.getvalue()


def write(path, content, method=zipfile.ZIP_DEFLATED, name="images.npy"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "images in .*a.npz: its header is truncated or damaged; fetch it again$"),
        (b"\x93NUMPI" + header((1, 2))[6:], "images in .*a.npz: its header is truncated or damaged; fetch it again$"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "its header is truncated or damaged"),
        (b"\x93NUMPY\x09\x00" + header((1, 2))[8:], "has version 9.0 of NumPy's format; expected 1.0 to 3.0: save it"),
        (header((3, 10**9, 10**9)), "a scene may take 256 MiB at most"),
        (header((3, 4, 4), "<U4"), "images in .*a.npz is <U4; expected an array of numbers"),
        (header((3, 4, 4), "|V7"), "expected an array of numbers"),
        (b"\x93NUMPY\x01\x00\x76\x00" + b"(" * 117 + b"\n", "truncated or damaged"),
        (header((4, 4, 4)) + bytes(63), r"\(4, 4, 4\), which takes 64 bytes, and contains 63: it is truncated"),
        (header((10**9, 8, 8, 3)) + bytes(8), "which takes 192000000000 bytes, and contains 8"),
        (header((2**62, 4, 4)) + bytes(16), "expected at most 8 axes of 0 to 2147483647"),
        (header((10**200, 0, 4)), "expected at most 8 axes"),
        (header((-1, 4, 4)) + bytes(16), r"has the shape \(-1, 4, 4\); expected at most 8 axes"),
        (header((4, -4, -4)) + bytes(64), "expected at most 8 axes"),
        (header((1,) * 9) + bytes(1), "expected at most 8 axes"),
    ],
)
def test_headers(tmp_path, content, reason):
    write(tmp_path / "a.npz", content)
    with pytest.raises(UserError, match=reason):
        npz_arrays(tmp_path / "a.npz")
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=reason.replace("images in .*a.npz", ".*a.npy")):
        NpyArray(tmp_path / "a.npy")


def test_a_bomb_is_read_by_rows(tmp_path):
    """Two gigabytes of zeros in two megabytes."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(header((2 << 9, 1 << 10, 1 << 10)))
            for _ in range(64):
                member.write(bytes(1 << 20))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2 << 30)  # the unpacked size in the directory
    (tmp_path / "a.npz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    images = npz_arrays(tmp_path / "a.npz")[0]["images"]
    assert not images[60:62].any()
    with pytest.raises(UserError, match="takes more memory than a data file may|it ends in row"):
        images[:]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


def test_other_archives(tmp_path):
    write(tmp_path / "a.npz", header((2, 2)) + bytes(4), zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="or compressed by another method: save it with numpy.savez_compressed"):
        npz_arrays(tmp_path / "a.npz")
    write(tmp_path / "b.npz", b"text", name="readme.txt")
    with pytest.raises(UserError, match="b.npz contains no arrays: save them with numpy.savez"):
        npz_arrays(tmp_path / "b.npz")
    np.savez(tmp_path / "c.npz", images=np.asfortranarray(IMAGES))
    with pytest.raises(UserError, match="is stored column by column: save numpy.ascontiguousarray of it"):
        npz_arrays(tmp_path / "c.npz")
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        for number in range(101):
            archive.writestr(f"{number}.npy", b"")
    with pytest.raises(UserError, match="d.npz contains 101 files; expected at most 100: store single arrays"):
        npz_arrays(tmp_path / "d.npz")
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            archive.writestr("images.npy", header((2, 2, 2)) + bytes(8))
    with pytest.raises(UserError, match="e.npz contains two files images.npy: save it again"):
        npz_arrays(tmp_path / "e.npz")


def test_a_hundred_arrays_open_one_file(tmp_path):
    np.savez(tmp_path / "a.npz", **{f"array_{number}": IMAGES for number in range(100)})
    before = len(os.listdir("/proc/self/fd"))
    arrays, refused = npz_arrays(tmp_path / "a.npz")
    assert (len(arrays), refused) == (100, {}) and len(os.listdir("/proc/self/fd")) <= before + 1
    for rows in (slice(2, 4), slice(0, 2)):
        for array in arrays.values():
            np.testing.assert_array_equal(array[rows], IMAGES[rows])


@pytest.mark.parametrize("seed", range(40))
def test_damage(tmp_path, seed):
    """Bytes that change anywhere: the right rows or one line."""
    rng, path = np.random.default_rng(seed), tmp_path / "a.npz"
    (np.savez if seed % 2 else np.savez_compressed)(path, images=IMAGES[:4])
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[rng.integers(len(content) if seed % 4 < 2 else 200)] = rng.integers(256)
    if seed % 5 == 0:
        del content[rng.integers(len(content)) :]
    path.write_bytes(content)
    try:
        for array in npz_arrays(path)[0].values():
            array[:]
    except UserError as error:
        assert "\n" not in str(error)


def test_a_size_that_lies(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 100)  # the unpacked size in the directory
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="truncated or damaged"):
        npz_arrays(tmp_path / "a.npz")[0]["images"][:]
