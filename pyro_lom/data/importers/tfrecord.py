"""TFRecord files and the tf.train.Example messages in them, without TensorFlow and without trust.

A record is its length (8 bytes), the length's checksum (4), the body, and the body's checksum (4), little-endian. The
checksums are masked CRC-32C: the CRC rotated right by 15 bits plus 0xa282ead8. The body is a protocol buffer:
Example {1: Features {1: map<string, Feature>}}, Feature {1: BytesList | 2: FloatList | 3: Int64List}, each list a
repeated field 1.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Float32, UInt8

from pyro_lom.data.importers.block import Damage
from pyro_lom.errors import UserError

_MAX_FEATURES = 64  # of an Example; the published ones have 2 and 12
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types


class Malformed(Exception):
    """A body that is no Example, or not the one expected; the message says how."""


class Record(NamedTuple):
    number: int
    """Its position in the file, from 0."""
    body: bytes
    next_offset: int
    """Byte of the unpacked stream at which the next one starts."""


class TFRecordFile:
    """A TFRecord file, compressed with gzip or not, read from front to back in bounded memory.

    Args:
        path: the file.
        max_bytes: a longer record is refused before it is read.

    Raises:
        UserError: the file cannot be opened.
    """

    def __init__(self, path: Path, max_bytes: int):
        self.path, self._max_bytes = path, max_bytes
        try:
            self._raw = path.open("rb")
            self.num_bytes = os.fstat(self._raw.fileno()).st_size
            is_gzip = self._raw.read(2) == b"\x1f\x8b"
            self._raw.seek(0)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; name another file or ask its owner") from error
        self._stream: BinaryIO = gzip.GzipFile(fileobj=self._raw) if is_gzip else self._raw

    def __enter__(self) -> "TFRecordFile":
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()
        self._raw.close()

    def tell(self) -> int:
        """Bytes of the file itself that were read, of `num_bytes`."""
        return self._raw.tell()

    def records(self, damage: Damage, number: int = 0, offset: int = 0) -> Iterator[Record]:
        """The records from `number` on, which starts at byte `offset` of the unpacked stream.

        A body whose checksum is wrong goes to `damage`.

        Raises:
            UserError: where the next record starts is unknown, since a length is wrong or the file ends early.
        """
        try:
            self._stream.seek(offset)
            while head := self._stream.read(12):
                where = f"record {number}, at byte {offset} of the unpacked stream,"
                length = self._length(head, where)
                body, checksum = self._stream.read(length), self._stream.read(4)
                if len(body) < length or len(checksum) < 4:
                    raise EOFError
                offset += length + 16
                if masked_crc32c(body) != int.from_bytes(checksum, "little"):
                    damage(where.rstrip(","), "its checksum is wrong")
                else:
                    yield Record(number, body, offset)
                number += 1
        except (EOFError, zlib.error, OSError) as error:
            reason = "is truncated" if isinstance(error, EOFError) else f"is damaged ({error})"
            raise UserError(f"{self.path} {reason} at record {number}: fetch it again") from error

    def _length(self, head: bytes, where: str) -> int:
        if len(head) < 12:
            raise EOFError
        length, checksum = struct.unpack("<QI", head)
        if masked_crc32c(head[:8]) != checksum:
            what = "it is no TFRecord file" if where.startswith("record 0,") else "what follows cannot be read"
            raise UserError(f"{self.path}: {where} has a length of wrong checksum: {what}; fetch it again")
        if length > self._max_bytes:
            raise UserError(
                f"{self.path}: {where} claims {length} bytes, more than the {self._max_bytes} that one of this data "
                "set can take; name the right data set, or fetch the file again"
            )
        return length


def masked_crc32c(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(body: bytes) -> dict[str, memoryview]:
    """The features of an Example by name, each still a serialised Feature.

    Raises:
        Malformed: it is not an Example.
    """
    features = {}
    for message in _messages(memoryview(body), 1):
        for entry in _messages(message, 1):
            key, value = b"", memoryview(b"")
            for number, _, content in _fields(entry):
                if number == 1 and isinstance(content, memoryview):
                    key = bytes(content)
                elif number == 2 and isinstance(content, memoryview):
                    value = content
            features[key.decode("utf-8", "replace")] = value
            if len(features) > _MAX_FEATURES:
                raise Malformed(f"it has more than {_MAX_FEATURES} features")
    return features


def byte_values(features: dict[str, memoryview], name: str, count: int) -> UInt8[np.ndarray, "count"]:
    """A feature of bytes: `count` strings of one byte, as these data sets are published, or fewer longer ones.

    Raises:
        Malformed: it is missing, of another type, or of another size.
    """
    payload = _list(features, name, kind=1)
    if len(payload) == 3 * count:
        strings = np.frombuffer(payload, np.uint8).reshape(count, 3)
        if (strings[:, 0] == 0x0A).all() and (strings[:, 1] == 1).all():  # field 1, length-delimited; length 1
            return strings[:, 2]
    joined = b"".join(_messages(payload, 1))
    if len(joined) != count:
        raise Malformed(f"its {name} holds {len(joined)} bytes where {count} are expected")
    return np.frombuffer(joined, np.uint8)


def float_values(features: dict[str, memoryview], name: str, count: int) -> Float32[np.ndarray, "count"]:
    """A feature of `count` floats.

    Raises:
        Malformed: it is missing, of another type, or of another size.
    """
    parts = []
    for number, wire_type, content in _fields(_list(features, name, kind=2)):
        if number == 1 and wire_type in (_LENGTH_DELIMITED, _FIXED32):  # packed, or one by one
            parts.append(content)
    joined = b"".join(parts)
    if len(joined) != 4 * count:
        raise Malformed(f"its {name} holds {len(joined)} bytes of floats where {4 * count} are expected")
    return np.frombuffer(joined, "<f4")


def _list(features: dict[str, memoryview], name: str, kind: int) -> memoryview:
    if name not in features:
        held = ", ".join(sorted(features))[:200] or "nothing"
        raise Malformed(f"it has no feature {name!r} (it holds {held})")
    lists = {number: content for number, _, content in _fields(features[name]) if isinstance(content, memoryview)}
    if kind not in lists:
        raise Malformed(f"its {name} is of another type")
    return lists[kind]


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The contents of every length-delimited field `number`."""
    for found, _, content in _fields(message):
        if found == number:
            if not isinstance(content, memoryview):
                raise Malformed("a field has another type than that of an Example")
            yield content


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(number, wire type, content) of each field; content is an int for varints, else a view of its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        wire_type = tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield tag >> 3, wire_type, value
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            size = 8 if wire_type == _FIXED64 else 4
        else:
            raise Malformed(f"it has a field of unknown wire type {wire_type}")
        if size > len(message) - position:
            raise Malformed(f"a field claims {size} bytes where {len(message) - position} are left")
        yield tag >> 3, wire_type, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):  # 10 bytes at most
        if position >= len(message):
            raise Malformed("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise Malformed("a number in it has no end")
