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
        pytest.raises(UserError, match=f"^cannot write {path.parent}/.*journal.json: the disk is full; make room"),
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


def test_a_disk_that_is_full_from_the_start_leaves_nothing(path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        SceneWriter(path, {})
    assert os.listdir(path.parent) == []


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
    with pytest.raises(UserError, match=r"journal.json is damaged \(Input data was truncated\): remove"):
        SceneWriter(path, {})


@pytest.fixture
def unfinished(path, blocks):
    """The folder of an unfinished file of four scenes."""
    with pytest.raises(KeyboardInterrupt), SceneWriter(path, {"seed": 5}) as writer:
        writer.append(*blocks[0])
        raise KeyboardInterrupt
    return writer.folder


@pytest.mark.parametrize(
    "changes",
    [
        {"arrays": {"../../victim": ["|u1", [6, 5, 3]]}},
        {"arrays": {"/etc/passwd": ["|u1", [6, 5, 3]]}},
        {"arrays": {"factors./../../victim": ["|u1", [6, 5, 3]]}},
        {"arrays": {"factors.": ["|u1", [6, 5, 3]]}},
        {"arrays": {"images\n": ["|u1", [6, 5, 3]]}},
        {"arrays": {"images": ["|O8", [6, 5, 3]]}},
        {"arrays": {"images": ["|u1", [-6, 5, 3]]}},
        {"arrays": {"images": ["|u1", [6, 5, 3, 1]]}},
        {"arrays": {"images": ["|u1", [2**70]]}},
        {"arrays": {"images": "|u1"}},
        {"arrays": ["images"]},
        {"num_scenes": -1},
        {"num_scenes": 4.5},
        {"num_scenes": "4"},
        {"num_scenes": 10**400},
        {"made_by": None},
        {"made_by": [1, 2]},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_journal_is_checked(path, unfinished, changes):
    victim = path.parent / "victim"
    victim.write_text("precious")
    journal = unfinished / "journal.json"
    journal.write_text(json.dumps(json.loads(journal.read_text()) | changes))
    with pytest.raises(UserError, match=f"^{journal} is damaged .*: remove {unfinished}$"):
        SceneWriter(path, {"seed": 5})
    assert victim.read_text() == "precious" and (unfinished / "images").stat().st_size == 4 * 6 * 5 * 3


@pytest.mark.parametrize("content", ["null", "[]", "3", "[" * 10**5, '{"made_by": ' * 10**5, "\xff"])
def test_a_journal_that_is_none(path, unfinished, content):
    (unfinished / "journal.json").write_text(content, encoding="latin1")
    with pytest.raises(UserError, match="journal.json is damaged .*: remove"):
        SceneWriter(path, {"seed": 5})


@pytest.mark.parametrize("name", ["lock", "journal.json", "images", "labels", "factors.hue"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_nothing_but_files_in_the_folder(path, unfinished, name, kind, blocks):
    victim = path.parent / "victim"
    victim.write_text("precious" * 100)
    (unfinished / name).unlink()
    if kind == "link":
        (unfinished / name).symlink_to(victim)
    else:
        os.mkfifo(unfinished / name) if kind == "pipe" else (unfinished / name).mkdir()
    with pytest.raises(UserError, match=f"^cannot write {path}: "):
        SceneWriter(path, {"seed": 5})
    assert victim.read_text() == "precious" * 100


def test_a_folder_of_the_user_is_left_alone(path, blocks):
    """A folder that has the name of the unfinished file."""
    folder = path.with_name(".toy.h5.partial")
    folder.mkdir(parents=True)
    for name in ("images", "notes.txt"):
        (folder / name).write_text("precious")
        with pytest.raises(
            UserError, match=f"^{folder} is needed for the unfinished file, but was made by someone else"
        ):
            SceneWriter(path, {})
    assert [(folder / name).read_text() for name in os.listdir(folder)] == ["precious"] * 2


def test_a_link_to_a_folder_of_the_user(path, tmp_path):
    path.parent.mkdir()
    (tmp_path / "mine").mkdir()
    path.with_name(".toy.h5.partial").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="is needed for the unfinished file, but was made by someone else: rename it$"):
        SceneWriter(path, {})
    assert os.listdir(tmp_path / "mine") == []


def test_what_the_user_adds_to_the_folder_stays(path, unfinished, blocks):
    (unfinished / "notes.txt").write_text("precious")
    with SceneWriter(path, {"seed": 5}) as writer:
        for block in blocks[1:]:
            writer.append(*block)
        writer.finish(**FINISH)
    assert len(read_scenes(path).images) == 9
    assert os.listdir(unfinished) == ["notes.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), AssertionError(), UserError("damaged")])
def test_an_interruption_before_the_first_scene_leaves_nothing(path, error):
    with pytest.raises(type(error)), SceneWriter(path, {}):
        raise error
    assert os.listdir(path.parent) == []


def test_goes_on_after_a_kill_within_the_first_block(path, blocks, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(SceneWriter, "_remove", lambda self: None)
        with pytest.raises(KeyboardInterrupt), SceneWriter(path, {}) as writer:
            raise KeyboardInterrupt
    for name in ("images", "factors.hue"):
        (writer.folder / name).write_bytes(b"half a block")
    (writer.folder / ".journal.json.01234567.partial").write_text("half a journal")
    with SceneWriter(path, {}) as writer:
        for block in blocks:
            writer.append(*block)
        writer.finish(**FINISH)
    assert_holds(path, blocks)


@pytest.mark.parametrize("number", range(5))
def test_goes_on_after_a_kill_while_the_folder_is_removed(path, blocks, monkeypatch, number):
    removed = []

    def killed(file, missing_ok=False, unlink=Path.unlink):
        if file.parent.name == ".toy.h5.partial" and not file.name.endswith(".partial"):
            if len(removed) == number:
                raise KeyboardInterrupt
            removed.append(file.name)
        unlink(file, missing_ok)

    def write():
        with SceneWriter(path, {}) as writer:
            assert writer.num_scenes == 0
            for block in blocks:
                writer.append(*block)
            writer.finish(**FINISH)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", killed)
        write()
    assert len(removed) == number and len(read_scenes(path).images) == 9
    path.unlink()
    write()
    assert_holds(path, blocks)


def test_blocks_of_another_kind_are_refused(path, blocks):
    images, labels, factors = blocks[0]
    with SceneWriter(path, {}) as writer:
        writer.append(images, labels, factors)
        for block in [(images[:, :5], labels[:, :5], factors), (images, None, factors), (images, labels, {})]:
            with pytest.raises(
                UserError, match="toy.h5.partial holds scenes of another type or shape, which are removed"
            ):
                writer.append(*block)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*toy.h5: Not a directory"):
        SceneWriter(Path(tmp_path / "file" / "toy.h5"), {})


def die(*_, **__):
    raise KeyboardInterrupt


def test_what_a_kill_left_of_a_finished_file_is_removed(path, blocks, monkeypatch):
    with pytest.raises(KeyboardInterrupt), SceneWriter(path, {"seed": 5}) as writer:
        for block in blocks:
            writer.append(*block)
        with monkeypatch.context() as patch:
            patch.setattr(SceneWriter, "_remove", die)
            writer.finish(**FINISH)
    assert path.exists() and writer.folder.exists()
    with pytest.raises(UserError, match="exists already"):
        SceneWriter(path, {"seed": 6})
    assert writer.folder.exists()  # of another origin
    with pytest.raises(UserError, match="exists already"):
        SceneWriter(path, {"seed": 5})
    assert_holds(path, blocks)


def test_unfinished_scenes_stay_beside_a_file_of_the_same_name(path, blocks):
    with pytest.raises(KeyboardInterrupt), SceneWriter(path, {"seed": 5}) as writer:
        writer.append(*blocks[0])
        die()
    path.touch()
    with pytest.raises(UserError, match="exists already"):
        SceneWriter(path, {"seed": 5})
    path.unlink()
    with SceneWriter(path, {"seed": 5}) as writer:
        assert writer.num_scenes == 4
        for block in blocks[1:]:
            writer.append(*block)
        writer.finish(**FINISH)
    assert_holds(path, blocks)


@pytest.mark.parametrize("values", [np.full((4, 2), np.nan), np.full((4, 2), np.inf), np.ones((4, 2), np.longdouble)])
def test_factors_that_no_file_can_hold(path, blocks, values):
    images, labels, _ = blocks[0]
    line = f"the factor hue has the type {values.dtype}, or is NaN or infinite: mend it"
    with pytest.raises(UserError, match=f"^{line}$"), SceneWriter(path, {"seed": 5}) as writer:
        writer.append(images, labels, {"hue": values})
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    "arrays",
    [
        {"images": ["<f8", [6, 5, 3]]},
        {"images": ["|u1", [6]]},
        {"images": ["|u1", [6, 5, 3]], "labels": ["|u1", [5, 6]]},
        {"images": ["|u1", [6, 5, 3]], "factors.hue": ["<f4", [2, 2]]},
        {"images": ["|u1", [6, 5, 3]], "factors.hue": ["<f4", [257]]},
        {"labels": ["|u1", [6, 5]]},
    ],
)
def test_arrays_in_a_journal_are_those_of_a_data_file(path, arrays):
    folder = path.with_name(".toy.h5.partial")
    folder.mkdir(parents=True)
    (folder / "journal.json").write_text(json.dumps({"made_by": {}, "num_scenes": 4, "arrays": arrays}))
    with pytest.raises(UserError, match="journal.json is damaged "):
        SceneWriter(path, {})


def test_a_journal_that_is_too_large(path):
    folder = path.with_name(".toy.h5.partial")
    folder.mkdir(parents=True)
    (folder / "journal.json").touch()
    os.truncate(folder / "journal.json", 6 << 30)
    with pytest.raises(UserError, match="journal.json is damaged .it has 6442450944 bytes."):
        SceneWriter(path, {})
