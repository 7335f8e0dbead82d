"""Blocks of scenes become one file, survive interruptions, and leave nothing behind where they must not."""

import errno
import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError

FINISH = dict(name="toy", version=3, num_background=2, splits={"train": range(9)}, source="noise", seed=5)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def blocks(rng):
    """Three blocks of 4, 3 and 2 scenes."""
    return [
        (
            rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8),
            rng.integers(0, 4, (n, 6, 5), dtype=np.uint8),
            {"hue": rng.random((n, 2), dtype=np.float32)},
        )
        for n in (4, 3, 2)
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "toy.h5"


def assert_holds(path, blocks):
    scenes = read_scenes(path)
    np.testing.assert_array_equal(scenes.images, np.concatenate([images for images, _, _ in blocks]))
    np.testing.assert_array_equal(scenes.labels, np.concatenate([labels for _, labels, _ in blocks]))
    np.testing.assert_array_equal(scenes.factors["hue"], np.concatenate([factors["hue"] for *_, factors in blocks]))
    assert (scenes.name, scenes.version, scenes.num_background) == ("toy", 3, 2)
    assert scenes.splits == {"train": range(9)}
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("compact", [False, True])
def test_blocks_become_one_file(path, blocks, compact):
    with SceneWriter(path, {"seed": 5}) as writer:
        assert (writer.num_scenes, writer.place) == (0, None)
        for block in blocks:
            writer.append(*block)
            assert not path.exists()
        assert writer.num_scenes == 9
        writer.finish(**FINISH, compact=compact)
    assert_holds(path, blocks)
    expected = ((1, 6, 5, 3), "lzf") if compact else (None, None)
    with h5py.File(path) as file:
        assert (file["images"].chunks, file["images"].compression) == expected


def test_images_alone(path, blocks):
    with SceneWriter(path, {}) as writer:
        writer.append(blocks[0][0], None, {})
        writer.finish(**FINISH | {"num_background": 0, "splits": {"train": range(4)}})
    scenes = read_scenes(path)
    np.testing.assert_array_equal(scenes.images, blocks[0][0])
    assert (scenes.labels, scenes.factors) == (None, {})


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ZeroDivisionError])
def test_goes_on_after_an_interruption(path, blocks, stop):
    with pytest.raises(stop), SceneWriter(path, {"seed": 5, "options": (1, 2)}) as writer:
        for number, block in enumerate(blocks[:2]):
            writer.append(*block, place={"offset": number})
        with (writer.folder / "images").open("ab") as file:
            file.write(b"half a block")  # as a kill leaves it
        raise stop
    assert not path.exists()
    with SceneWriter(path, {"seed": 5, "options": (1, 2)}) as writer:
        assert (writer.num_scenes, writer.place) == (7, {"offset": 1})
        writer.append(*blocks[2])
        writer.finish(**FINISH)
    assert_holds(path, blocks)


def test_a_refused_source_leaves_nothing(path, blocks):
    with pytest.raises(UserError, match="^record 5 is damaged$"), SceneWriter(path, {}) as writer:
        writer.append(*blocks[0])
        raise UserError("record 5 is damaged")
    assert os.listdir(path.parent) == []


def test_a_full_disk_keeps_what_there_is(path, blocks, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, SceneWriter(path, {}) as writer:
        writer.append(*blocks[0])
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=f"^cannot write {path}: No space left on device; make room or"):
            writer.append(*blocks[1])
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=f"^cannot write {path}: No space left on device"),
        SceneWriter(path, {}) as writer,
    ):
        assert writer.num_scenes == 4
        for block in blocks[1:]:
            writer.append(*block)
        patch.setattr(os, "fsync", full)
        writer.finish(**FINISH)
    with SceneWriter(path, {}) as writer:
        assert writer.num_scenes == 9
        writer.finish(**FINISH)
    assert_holds(path, blocks)


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_nothing_that_exists_is_replaced(path, kind):
    path.parent.mkdir()
    {"file": path.touch, "folder": path.mkdir, "dangling link": lambda: path.symlink_to("nowhere")}[kind]()
    with pytest.raises(UserError, match=f"^{path} exists already: remove it or name another file$"):
        SceneWriter(path, {})
    assert os.listdir(path.parent) == [path.name]


def test_another_origin_is_not_mixed_in(path, blocks):
    with pytest.raises(KeyboardInterrupt), SceneWriter(path, {"seed": 5, "size": 64}) as writer:
        writer.append(*blocks[0])
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="toy.h5.partial holds 4 scenes of an unfinished file with another seed: "):
        SceneWriter(path, {"seed": 6, "size": 64})
    with SceneWriter(path, {"seed": 5, "size": 64}) as writer:
        assert writer.num_scenes == 4


def test_two_writers_do_not_meet(path):
    with SceneWriter(path, {}), pytest.raises(UserError, match=f"^another process is writing {path}: wait"):
        SceneWriter(path, {})


def test_damaged_remains(path, blocks):
    with pytest.raises(KeyboardInterrupt), SceneWriter(path, {}) as writer:
        writer.append(*blocks[0])
        raise KeyboardInterrupt
    journal = writer.folder / "journal.json"
    text = journal.read_text()
    journal.write_text(json.dumps(json.loads(text) | {"num_scenes": 5}))
    with pytest.raises(UserError, match="images is shorter than its journal says: remove"):
        SceneWriter(path, {})
    journal.write_text(text[:20])
    with pytest.raises(UserError, match="journal.json is damaged: remove"):
        SceneWriter(path, {})


def test_blocks_of_another_kind_are_a_mistake_of_ours(path, blocks):
    images, labels, factors = blocks[0]
    with SceneWriter(path, {}) as writer:
        writer.append(images, labels, factors)
        for block in [(images[:, :5], labels[:, :5], factors), (images, None, factors), (images, labels, {})]:
            with pytest.raises(ValueError, match="follows blocks"):
                writer.append(*block)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*toy.h5: Not a directory"):
        SceneWriter(Path(tmp_path / "file" / "toy.h5"), {})
