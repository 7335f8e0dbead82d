"""TFRecords by TensorFlow's own writer, and by hand, also such as no one should write."""

import gzip
import struct

import google_crc32c
import numpy as np
import pytest
from published import FIXTURES, ROOMS, crc32c, example, feature, field, framed, masked, varint

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.tfrecord import (
    Malformed,
    TFRecordFile,
    byte_values,
    float_values,
    masked_crc32c,
    parse_example,
)
from pyro_lom.errors import UserError

BODIES = [b"first", b"", b"third" * 50]


@pytest.fixture
def write(tmp_path):
    """`write(content)` is a GZIP file of it."""

    def write(content, pack=gzip.compress):
        path = tmp_path / "some.tfrecords"
        path.write_bytes(pack(content))
        return path

    return write


def read(path, *, skip=False, max_bytes=1000, **start):
    damage = Damage("some.tfrecords", skip, [])
    with TFRecordFile(path, max_bytes) as file:
        return list(file.records(damage, **start)), damage.positions


def flipped(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


class TestFraming:
    def test_checksums(self):
        assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C
        for data in (b"", b"123456789", bytes(range(256))):
            assert google_crc32c.value(data) == crc32c(data)
            assert masked_crc32c(data) == masked(crc32c(data))

    @pytest.mark.parametrize("pack", [gzip.compress, bytes])
    def test_records_in_order(self, write, pack):
        records, _ = read(write(b"".join(map(framed, BODIES)), pack))
        assert [record.body for record in records] == BODIES
        assert [record.number for record in records] == [0, 1, 2]
        assert [record.next_offset for record in records] == [21, 37, 303]

    def test_from_any_record(self, write):
        path = write(b"".join(map(framed, BODIES)))
        [(number, body, _)], _ = read(path, number=2, offset=37)
        assert (number, body) == (2, BODIES[2])
        assert read(path, number=3, offset=303)[0] == []

    def test_several_gzip_members(self, tmp_path):
        path = tmp_path / "joined.tfrecords"
        path.write_bytes(b"".join(gzip.compress(framed(body)) for body in BODIES))
        assert [record.body for record in read(path)[0]] == BODIES

    def test_tensorflow_writes_the_same(self):
        records, _ = read(FIXTURES / "objects_room_train.tfrecords", max_bytes=1 << 20)
        assert [len(record.body) for record in records] == [122_921] * 3

    @pytest.mark.parametrize("position", [12, 16, 18])  # body, its end, its checksum
    def test_a_wrong_body(self, write, position):
        path = write(flipped(framed(b"first"), position) + framed(b"second"))
        with pytest.raises(
            UserError,
            match="^some.tfrecords: record 0, at byte 0 of the unpacked stream is damaged: its checksum is wrong; f",
        ):
            read(path)
        records, positions = read(path, skip=True)
        assert [(record.number, record.body) for record in records] == [(1, b"second")]
        assert positions == ["record 0, at byte 0 of the unpacked stream"]

    @pytest.mark.parametrize("skip", [False, True])
    @pytest.mark.parametrize("position", [0, 7, 8, 11])  # length, its checksum
    def test_a_wrong_length_ends_it(self, write, position, skip):
        path = write(framed(b"first") + flipped(framed(b"second"), position))
        with pytest.raises(UserError, match="record 1, at byte 21 .* a length of wrong checksum: what follows cannot"):
            read(path, skip=skip)

    @pytest.mark.parametrize("length", [1001, 1 << 40, (1 << 64) - 1])
    def test_a_huge_length_is_not_believed(self, write, length):
        head = struct.pack("<Q", length)
        path = write(head + struct.pack("<I", masked(crc32c(head))))
        with pytest.raises(UserError, match=f"record 0, .* claims {length} bytes, more than the 1000 that one"):
            read(path, skip=True)

    @pytest.mark.parametrize("kept", [1, 11, 12, 16, 20])
    def test_truncated_between_or_within_records(self, write, kept):
        path = write(framed(b"zero") + framed(b"first")[:kept])
        with pytest.raises(UserError, match="some.tfrecords is truncated at record 1: fetch it again$"):
            read(path, skip=True)

    @pytest.mark.parametrize("lost", [1, 8, 20])
    def test_truncated_gzip(self, write, lost):
        path = write(b"".join(map(framed, BODIES)))
        path.write_bytes(path.read_bytes()[:-lost])
        with pytest.raises(UserError, match="some.tfrecords is truncated at record"):
            read(path, skip=True)

    def test_damaged_gzip(self, write):
        path = write(b"".join(map(framed, BODIES)))
        for position in range(10, path.stat().st_size):
            packed = path.read_bytes()
            path.write_bytes(flipped(packed, position))
            with pytest.raises(UserError, match="some.tfrecords"):
                read(path)
            path.write_bytes(packed)

    def test_what_follows_a_gzip_file(self, write):
        path = write(framed(b"first"))
        path.write_bytes(path.read_bytes() + b"something else")
        with pytest.raises(UserError, match=r"is damaged \(Not a gzipped file"):
            read(path)

    @pytest.mark.parametrize("content", [b"a text of more than twelve bytes", bytes(5000)])
    @pytest.mark.parametrize("pack", [gzip.compress, bytes])
    def test_something_else(self, write, content, pack):
        with pytest.raises(
            UserError, match="record 0, at byte 0 .* a length of wrong checksum: it is no TFRecord file"
        ):
            read(write(content, pack))

    def test_empty(self, write):
        assert read(write(b"")) == ([], [])

    def test_no_such_file(self, tmp_path):
        with pytest.raises(UserError, match="none: No such file or directory; name another"):
            TFRecordFile(tmp_path / "none", 1000)


class TestExample:
    def test_features(self):
        features = parse_example(example(ROOMS[0]))
        assert features.keys() == {"image", "mask"}
        np.testing.assert_array_equal(byte_values(features, "image", 64 * 64 * 3), ROOMS[0]["image"].ravel())

    @pytest.mark.parametrize("size", [0, 1, 2, 7, 300])
    def test_bytes_in_one_string_or_many(self, size):
        values = np.arange(size).astype(np.uint8)
        one = field(1, field(1, values.tobytes()))
        two = field(1, field(1, values[:1].tobytes()) + field(1, values[1:].tobytes()))
        for content in (feature(values), one, two):
            np.testing.assert_array_equal(byte_values({"v": memoryview(content)}, "v", size), values)

    def test_floats_packed_or_not(self):
        values = np.array([1.5, -2, np.inf], np.float32)
        packed = field(2, field(1, values.tobytes()))
        single = field(2, b"".join(b"\x0d" + value.tobytes() for value in values))
        for content in (packed, single):
            np.testing.assert_array_equal(float_values({"v": memoryview(content)}, "v", 3), values)

    def test_unknown_fields_are_passed_over(self):
        unknown = varint(9 << 3) + varint(300) + varint(9 << 3 | 1) + bytes(8) + varint(9 << 3 | 5) + bytes(4)
        features = parse_example(unknown + example({"v": np.array([7], np.uint8)}) + unknown)
        assert byte_values(features, "v", 1) == [7]

    @pytest.mark.parametrize(
        ("body", "reason"),
        [
            (b"\x0a", "it ends within a number"),
            (b"\x0a\x05abc", "a field claims 5 bytes where 3 are left"),
            (b"\x0a" + b"\xff" * 9 + b"\x01", "a field claims .* bytes where 0 are left"),
            (b"\xff" * 20, "a number in it has no end"),
            (b"\x0b", "it has a field of unknown wire type 3"),
            (b"\x08\x01", "a field has another type than that of an Example"),
            (b"\x09" + bytes(4), "a field claims 8 bytes where 4 are left"),
            (field(1, b"".join(field(1, field(1, b"%d" % k)) for k in range(100))), "it has more than 64 features"),
        ],
    )
    def test_malformed(self, body, reason):
        with pytest.raises(Malformed, match=f"^{reason}$"):
            parse_example(body)

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (feature(np.zeros(5, np.uint8)), "its v holds 5 bytes where 4 are expected"),
            (feature(np.zeros(3, np.uint8)), "its v holds 3 bytes where 4 are expected"),
            (feature(np.zeros(4, np.float32)), "its v is of another type"),
            (b"", "its v is of another type"),
            (field(1, field(1, b"1") * 3 + field(2, b"1") + b"\x08\x01"), "a field has another type .*"),
        ],
    )
    def test_bytes_of_another_size_or_type(self, content, reason):
        with pytest.raises(Malformed, match=f"^{reason}$"):
            byte_values({"v": memoryview(content)}, "v", 4)

    def test_floats_of_another_size_or_type(self):
        with pytest.raises(Malformed, match="^its v holds 12 bytes of floats where 16 are expected$"):
            float_values({"v": memoryview(feature(np.zeros(3, np.float32)))}, "v", 4)
        with pytest.raises(Malformed, match="^its v is of another type$"):
            float_values({"v": memoryview(feature(np.zeros(16, np.uint8)))}, "v", 4)

    def test_missing(self):
        with pytest.raises(Malformed, match=r"^it has no feature 'w' \(it holds v\)$"):
            byte_values({"v": memoryview(b"")}, "w", 4)

    def test_no_bytes_crash_it(self):
        """Whatever the bytes, there are features or there is Malformed."""
        rng = np.random.default_rng(0)
        whole = example({"image": np.arange(6, dtype=np.uint8), "x": np.zeros(2, np.float32)})
        for _ in range(3000):
            body = bytearray(whole)
            for _ in range(rng.integers(1, 4)):
                body[rng.integers(len(body))] = rng.integers(256)
            try:
                features = parse_example(bytes(body[: rng.integers(len(body) + 1)]))
                byte_values(features, "image", 6)
                float_values(features, "x", 2)
            except Malformed:
                pass
