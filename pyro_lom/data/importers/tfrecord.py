"""Readers of TFRecord files and of the tf.train.Example messages in them, without TensorFlow. All sizes are checked.

A record consists of its length (8 bytes), the length's checksum (4), the body, and the body's checksum (4). Numbers are
little-endian. A checksum is a masked CRC-32C: the CRC rotated right by 15 bits, plus 0xa282ead8. The body is a protocol
buffer: Example {1: Features {1: map<string, Feature>}}, Feature {1: BytesList | 2: FloatList | 3: Int64List}. Each list
is a repeated field 1.
"""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.sources import masked_crc32c
from pyro_lom.errors import UserError

_MAX_FEATURES = 64  # per Example; the published files have 2 and 12
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types


class Malformed(Exception):
    """Raised if a body is not an Example, or lacks expected content. The message contains the reason."""


class WrongValue(Malformed):
    """Raised if the content has the expected form, but a value that no record of the data set has."""


class Record(NamedTuple):
    number: int
    """Position of the record in the file, from 0."""
    body: bytes
    next_offset: int
    """Byte of the unpacked stream at which the next record starts."""


class TFRecordFile(AbstractContextManager):
    """A TFRecord file, optionally compressed with gzip, that is read sequentially in bounded memory.

    Args:
        max_bytes: maximum length of a record. A longer record is an error, raised before it is read.

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

    def __exit__(self, *_) -> None:
        self._stream.close()
        self._raw.close()

    def tell(self) -> int:
        """Return the number of bytes read from the file itself, which may be compressed; at most `num_bytes`."""
        return self._raw.tell()

    def records(self, damage: Damage, number: int = 0, offset: int = 0) -> Iterator[Record]:
        """Yield the records from `number` on. Record `number` starts at byte `offset` of the unpacked stream.

        A body with a wrong checksum is reported to `damage`.

        Raises:
            UserError: a length is wrong, the file ends early, or it cannot be unpacked: no later record can be found.
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


def parse_example(body: bytes) -> dict[str, memoryview]:
    """Return the features of an Example by name, each as a serialised Feature.

    Raises:
        Malformed: the body is not an Example.
    """
    features = {}
    for message in _messages(memoryview(body), 1):
        for entry in _messages(message, 1):
            key_and_value = {1: b"", 2: memoryview(b"")} | _contents(entry)
            features[bytes(key_and_value[1]).decode("utf-8", "replace")] = key_and_value[2]
            if len(features) > _MAX_FEATURES:
                raise Malformed(f"it has more than {_MAX_FEATURES} features")
    return features


def byte_values(features: dict[str, memoryview], name: str, count: int) -> UInt8[np.ndarray, "count"]:
    """Return a feature of `count` bytes. The file may store one string per byte, as published, or longer strings.

    Raises:
        Malformed: the feature is missing, of another type, or of another size.
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
    """Return a feature of `count` floats.

    Raises:
        Malformed: the feature is missing, of another type, or of another size.
    """
    fields = _fields(_list(features, name, kind=2))
    packed_or_separate = (_LENGTH_DELIMITED, _FIXED32)
    joined = b"".join(content for number, kind, content in fields if number == 1 and kind in packed_or_separate)
    if len(joined) != 4 * count:
        raise Malformed(f"its {name} holds {len(joined)} bytes of floats where {4 * count} are expected")
    return np.frombuffer(joined, "<f4")


def _list(features: dict[str, memoryview], name: str, kind: int) -> memoryview:
    if name not in features:
        held = ", ".join(sorted(features))[:200] or "nothing"
        raise Malformed(f"it has no feature {name!r} (it holds {held})")
    lists = _contents(features[name])
    if kind not in lists:
        raise Malformed(f"its {name} is of another type")
    return lists[kind]


def _contents(message: memoryview) -> dict[int, memoryview]:
    """Return the content of the last field of each number from 1 to 3, varints excepted."""
    return {n: content for n, _, content in _fields(message) if n <= 3 and isinstance(content, memoryview)}


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Yield the content of every length-delimited field with this number."""
    for found, _, content in _fields(message):
        if found == number:
            if not isinstance(content, memoryview):
                raise Malformed("a field has another type than that of an Example")
            yield content


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (number, wire type, content) of each field. The content of a varint is an int, otherwise a memoryview."""
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
    for shift in range(0, 64, 7):  # at most 10 bytes
        if position >= len(message):
            raise Malformed("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise Malformed("a number in it has no end")
