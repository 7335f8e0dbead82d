"""Scenes as they were published, drawn by hand, and TFRecords of them by independent code.

The files in fixtures/ were written by TensorFlow's own writer: `python published.py` writes them again where
TensorFlow is installed. `write_records` needs none, for files that TensorFlow would not write.
"""

import gzip
import struct
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
CLEVR_FLOATS = ("x", "y", "z", "rotation", "visibility")
CLEVR_CODES = ("size", "material", "shape", "color")


def room(number, num_entities=7, one_wall=False, num_objects=3):
    """Image and masks of a 64x64 room; with `one_wall` the objects start at mask 3 instead of 4."""
    rows, columns = np.mgrid[:64, :64]
    labels = np.where(rows < 20, 0, np.where(rows < 40, np.where(one_wall | (columns < 30), 2, 3), 1))
    for k in range(num_objects):
        top, left = 34 + 3 * k, 5 + (60 // num_objects) * k + number % 3
        first = 3 if one_wall else 4
        labels = np.where(
            (rows >= top) & (rows < top + 9) & (columns >= left) & (columns < left + 7), first + k, labels
        )
    colours = (np.arange(num_entities)[:, None] * [37, 91, 53] + 29 * number) % 256
    image = (colours[labels] + (rows + columns)[..., None] % 5) % 256
    masks = (labels == np.arange(num_entities)[:, None, None])[..., None] * 255
    return {"image": image.astype(np.uint8), "mask": masks.astype(np.uint8)}


def clevr(number, num_objects):
    """Image, masks and factors of a 240x320 scene."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[:240, :320]
    labels = np.zeros((240, 320), int)
    for k in range(num_objects):
        centre = 50 + 15 * k + number, 80 + 15 * k
        labels = np.where((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 300, 1 + k, labels)
    colours = (np.arange(11)[:, None] * [37, 91, 53] + 29 * number) % 256
    image = (colours[labels] + (rows // 8 + columns // 8)[..., None] % 5) % 256
    present = np.arange(11) <= num_objects
    scene = {
        "image": image.astype(np.uint8),
        "mask": ((labels == np.arange(11)[:, None, None])[..., None] * 255).astype(np.uint8),
        "visibility": present.astype(np.float32),
        "pixel_coords": (rng.random((11, 3)) * [320, 240, 15] * present[:, None]).astype(np.float32),
    }
    scene |= {name: (rng.normal(size=11) * present).astype(np.float32) for name in CLEVR_FLOATS[:-1]}
    return scene | {name: rng.integers(1, 9, 11).astype(np.uint8) * present.astype(np.uint8) for name in CLEVR_CODES}


ROOMS = [room(0), room(1, one_wall=True), room(2, num_objects=1)]
SIX_OBJECTS = [room(0, num_entities=10, num_objects=6), room(1, num_entities=10, num_objects=5, one_wall=True)]
CLEVRS = [clevr(0, 3), clevr(1, 7), clevr(2, 6)]


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def feature(values):
    """One string a byte, as published, or packed floats."""
    if values.dtype == np.uint8:
        strings = np.empty((values.size, 3), np.uint8)
        strings[:, 0], strings[:, 1], strings[:, 2] = 0x0A, 1, values.ravel()
        return field(1, strings.tobytes())
    return field(2, field(1, values.astype("<f4").tobytes()))


def example(scene, encode=feature):
    entries = [field(1, field(1, name.encode()) + field(2, encode(values))) for name, values in scene.items()]
    return field(1, b"".join(entries))


def crc32c(data):
    """Bit by bit from the definition: polynomial 0x1EDC6F41, reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(crc):
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(body, crc=crc32c):
    length = struct.pack("<Q", len(body))
    return length + struct.pack("<I", masked(crc32c(length))) + body + struct.pack("<I", masked(crc(body)))


def write_records(path, scenes):
    """A GZIP TFRecord file; big bodies take the quick checksum, which other tests compare with the slow one."""
    import google_crc32c

    path.write_bytes(gzip.compress(b"".join(framed(example(scene), google_crc32c.value) for scene in scenes), 1))
    return path


def write_with_tensorflow(path, scenes):
    import tensorflow as tf

    def feature(values):
        if values.dtype == np.uint8:
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes([value]) for value in values.ravel()]))
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.ravel()))

    with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions(compression_type="GZIP", compression_level=9)) as writer:
        for scene in scenes:
            features = tf.train.Features(feature={name: feature(values) for name, values in scene.items()})
            writer.write(tf.train.Example(features=features).SerializeToString())


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    write_with_tensorflow(FIXTURES / "objects_room_train.tfrecords", ROOMS)
    write_with_tensorflow(FIXTURES / "objects_room_six_objects.tfrecords", SIX_OBJECTS)
    write_with_tensorflow(FIXTURES / "clevr_with_masks_train.tfrecords", CLEVRS)
