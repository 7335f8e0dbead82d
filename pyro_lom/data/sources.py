"""What a path is: an HDF5 file, a folder, an archive of arrays, or something that is no data set and is named."""

import re
import shlex
import zlib
from pathlib import Path

import google_crc32c

from pyro_lom.errors import UserError

HDF5, NPZ, NPY, TFRECORD, FOLDER = "an HDF5 file", "an .npz file", "an .npy file", "a TFRecord file", "a folder"
_PICTURE, _ARCHIVE, _PICKLE = "one picture", "an archive", "a pickle"
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAD = 1 << 16  # bytes
_STARTS = {
    b"\x89PNG\r\n": _PICTURE,
    b"\xff\xd8\xff": _PICTURE,
    b"GIF8": _PICTURE,
    b"BM": _PICTURE,
    b"II*\0": _PICTURE,
    b"MM\0*": _PICTURE,
    b"\x93NUMPY": NPY,
    b"PK": _ARCHIVE,
    b"7z\xbc\xaf": _ARCHIVE,
    b"Rar!": _ARCHIVE,
    b"\xfd7zXZ": _ARCHIVE,
    b"BZh": _ARCHIVE,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
}


def kind_of(path: Path) -> str | None:
    """Return what a file or folder is, judging by its first bytes, or None if that is unknown.

    Raises:
        UserError: it cannot be read.
    """
    if path.is_dir():
        return FOLDER
    if not path.is_file():  # opening a pipe would block
        return None
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise UserError(f"cannot read {path}: {reason}; ask its owner or name another file") from error
    starts = [0, *(512 << power for power in range(7))]  # a user block may come before the signature
    if any(head[start : start + 8] == _HDF5_SIGNATURE for start in starts):
        return HDF5
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return _PICTURE
    if head[:4] == b"PK\x03\x04" and b".npy" in head[30:300]:  # the name of the first member
        return NPZ
    if head[:2] == b"\x1f\x8b":
        head = _unpacked(head)
    if _is_tfrecord(head):
        return TFRECORD
    if head[257:262] == b"ustar":
        return _ARCHIVE
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)


def check_address(path: str | Path) -> None:
    """Raise UserError if a path is the address of something on the network."""
    if re.match(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not Path(path).exists():
        raise UserError(f"{path} is an address, and nothing is downloaded: download it, and name the file or folder")


def check_is_hdf5(path: Path) -> None:
    """Raise UserError if a file is known to be no HDF5 file; the message says what it is and what to do."""
    kind = kind_of(path)
    if kind == TFRECORD:
        raise UserError(
            f"{path} is {kind}: {import_command(path, 'NAME')} makes an HDF5 file of it, where NAME is the data set, "
            "such as objects-room, clevr6, tetrominoes or multi-dsprites-colored-on-grayscale"
        )
    if kind in (NPZ, NPY):
        raise UserError(f"{path} is {kind}: {import_command(path)} makes an HDF5 file of it")
    check_is_data(path, kind)


def check_is_data(path: Path, kind: str | None) -> None:
    """Raise UserError if `kind`, which `kind_of` returned, is something that no data set consists of."""
    remedies = {
        _PICTURE: "name the folder of your pictures",
        _ARCHIVE: "unpack it, and name what is inside",
        _PICKLE: "it is not opened, since it may run code; save its arrays with numpy.savez",
    }
    if kind in remedies:
        raise UserError(f"{path} is {kind}, not a data set: {remedies[kind]}")


def import_command(path: str | Path, name: str = "images") -> str:
    """Return the command that makes an HDF5 file of a data set in another layout."""
    return f"python experiments/data.py import {name} {shlex.quote(str(path))} FILE.h5"


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of TFRecord files."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _is_tfrecord(head: bytes) -> bool:
    return len(head) >= 12 and masked_crc32c(head[:8]).to_bytes(4, "little") == head[8:12]


def _unpacked(head: bytes) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD)
    except zlib.error:
        return b""
