"""What a path is, and what to do, in one line."""

import fcntl
import gzip
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.errors import UserError

FIXTURES = Path(__file__).parent / "importers" / "fixtures"
IMAGES = np.zeros((4, 8, 8, 3), np.uint8)


def write_tar(path, mode="w"):
    Image.new("RGB", (4, 4)).save(path.with_name("inside.png"))
    with tarfile.open(path, mode) as archive:
        archive.add(path.with_name("inside.png"), "inside.png")


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.png", b"x")


IMPORT = "python experiments/data.py import"
KINDS = {
    "a.png": (lambda path: Image.new("RGB", (4, 4)).save(path), "one picture, not a data set: name the folder of your"),
    "a.jpg": (lambda path: Image.new("RGB", (4, 4)).save(path), "one picture, not a data set: name the folder of your"),
    "a.gif": (lambda path: Image.new("RGB", (4, 4)).save(path), "one picture, not a data set"),
    "a.webp": (lambda path: Image.new("RGB", (4, 4)).save(path), "one picture, not a data set"),
    "a.npz": (lambda path: np.savez(path, images=IMAGES), f"an .npz file: {IMPORT} images "),
    "b.npz": (lambda path: np.savez_compressed(path, x=IMAGES), f"an .npz file: {IMPORT} images "),
    "a.npy": (lambda path: np.save(path, IMAGES), f"an .npy file: {IMPORT} images "),
    "a.tfrecords": (
        lambda path: path.write_bytes((FIXTURES / "objects_room_train.tfrecords").read_bytes()),
        f"a TFRecord file: {IMPORT} NAME ",
    ),
    "b.tfrecords": (
        lambda path: path.write_bytes(gzip.decompress((FIXTURES / "objects_room_train.tfrecords").read_bytes())),
        f"a TFRecord file: {IMPORT} NAME ",
    ),
    "a.tar": (write_tar, "an archive, not a data set: unpack it, and name what is inside"),
    "a.tar.gz": (lambda path: write_tar(path, "w:gz"), "an archive, not a data set: unpack it"),
    "a.zip": (write_zip, "an archive, not a data set: unpack it"),
    "a.pkl": (
        lambda path: path.write_bytes(pickle.dumps({})),
        "a pickle, not a data set: it is not opened",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_named_and_the_way_is_told(tmp_path, name):
    write, line = KINDS[name]
    write(tmp_path / name)
    with pytest.raises(UserError) as error:
        read_scenes(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name} is {line}")


@pytest.mark.parametrize("address", ["https://example.org/towers.h5", "gs://bucket/rooms", "s3:/bucket/rooms"])
def test_addresses(address):
    with pytest.raises(UserError, match=f"^{address} is an address, and nothing is downloaded: download it, and name"):
        read_scenes(address)


def test_a_file_that_another_process_writes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
    code = "import h5py, sys; file = h5py.File(sys.argv[1], 'a'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, tmp_path / "a.h5"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="a.h5: another program has it open for writing; wait for it or stop it$"):
            read_scenes(tmp_path / "a.h5")
        process.stdin.close()
    assert len(read_scenes(tmp_path / "a.h5").images) == 4


def test_a_file_that_is_locked(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = IMAGES
    with (tmp_path / "a.h5").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another program has it open for writing"):
            read_scenes(tmp_path / "a.h5")


def test_a_virtual_data_set_is_read_and_what_it_lacks_is_named(tmp_path):
    layout = h5py.VirtualLayout((8, 8, 8, 3), np.uint8)
    for number in range(2):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["images"] = IMAGES + number
        layout[4 * number : 4 * number + 4] = h5py.VirtualSource(f"{number}.h5", "images", (4, 8, 8, 3))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("images", layout)
    np.testing.assert_array_equal(read_scenes(tmp_path / "all.h5").images[:, 0, 0, 0], [0] * 4 + [1] * 4)
    (tmp_path / "1.h5").unlink()
    with pytest.raises(UserError, match="cannot read .*1.h5: no such file"):
        read_scenes(tmp_path / "all.h5")


def test_other_layouts_in_hdf5_are_sent_to_the_import(tmp_path):
    with h5py.File(tmp_path / "emorl.h5", "w") as file:
        file["train/imgs"] = IMAGES
    with pytest.raises(UserError, match=r"it holds train\).* or convert the file: python .* import images"):
        read_scenes(tmp_path / "emorl.h5")
