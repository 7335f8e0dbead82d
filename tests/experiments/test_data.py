"""`data.py` as a person starts it: what it writes, how it goes on, and what it refuses in one line."""

import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from experiments import cli
from experiments.data import main
from pyro_lom.data.hdf5 import read_scenes, write_scenes
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError

ROOT = Path(__file__).parents[2]
IMPORTERS = ROOT / "tests" / "pyro_lom" / "data" / "importers"
FIXTURES = IMPORTERS / "fixtures"
ROOMS = FIXTURES / "objects_room_train.tfrecords"
CLEVR = FIXTURES / "clevr_with_masks_train.tfrecords"


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    """`command(*arguments)` is data.py: its exit code, standard output and standard error, run in `tmp_path`."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.run(main)
        except SystemExit as leaving:
            code = leaving.code
        return code, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def refused(command):
    """`refused(*arguments)` is the one line with which data.py refuses them, nothing being written."""

    def run(*arguments):
        before = sorted(Path().rglob("*"))
        code, out, err = command(*arguments)
        assert (code, out) == (2, ""), err
        *progress, line = err.splitlines()
        assert line.startswith("error: ") and "Traceback" not in err, err
        assert sorted(Path().rglob("*")) == before
        return line.removeprefix("error: ")

    return run


@pytest.fixture
def rooms(tmp_path):
    """300 rooms as they were published, in a file of 4 MB that unpacks to 37."""
    body = gzip.decompress(ROOMS.read_bytes())
    path = tmp_path / "rooms.tfrecords"
    path.write_bytes(gzip.compress(body * 100, 1))
    return path


def start(*arguments, **options):
    """data.py as a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "data.py", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


# import


def test_a_published_file_comes_in(command):
    code, out, err = command("import", "objects-room", ROOMS, "data/objects-room.h5")
    assert (code, out) == (
        0,
        "data/objects-room.h5: 3 scenes; python experiments/data.py info data/objects-room.h5 describes them\n",
    )
    assert err.splitlines()[-1] == "note: in 1 of 3 scenes label 3 was an object and became 4"
    scenes = read_scenes("data/objects-room.h5")
    assert (scenes.name, scenes.version, scenes.num_background, scenes.image_shape) == (
        "objects-room",
        1,
        4,
        (3, 64, 64),
    )
    assert os.listdir("data") == ["objects-room.h5"]
    with h5py.File("data/objects-room.h5") as file:
        assert file.attrs["source"] == "objects_room_train.tfrecords, 0 damaged records left out"


@pytest.mark.parametrize(
    ("name", "source", "shape"),
    [
        ("objects-room", ROOMS, (3, 64, 64, 3)),
        ("objects-room-six-objects", FIXTURES / "objects_room_six_objects.tfrecords", (2, 64, 64, 3)),
        ("objects-room-identical-colour", FIXTURES / "objects_room_six_objects.tfrecords", (2, 64, 64, 3)),
        ("clevr6", CLEVR, (2, 96, 96, 3)),
    ],
)
def test_sizes_of_the_paper(command, name, source, shape):
    assert command("import", name, source, "out.h5")[0] == 0
    assert read_scenes("out.h5").images.shape == shape
    assert command("import", name, source, "small.h5", "--size", "48")[0] == 0
    assert read_scenes("small.h5").images.shape == (shape[0], 48, 48, 3)


def test_compact_and_part_of_it(command, rooms):
    assert command("import", "objects-room", rooms, "all.h5")[0] == 0
    assert command("import", "objects-room", rooms, "some.h5", "--num", "50", "--compact")[0] == 0
    everything, some = read_scenes("all.h5"), read_scenes("some.h5")
    np.testing.assert_array_equal(some.images, everything.images[:50])
    np.testing.assert_array_equal(some.labels, everything.labels[:50])
    assert some.splits == {"test": range(5), "validation": range(5, 10), "train": range(10, 50)}
    with h5py.File("some.h5") as file:
        assert (file["labels"].chunks, file["labels"].compression) == ((1, 64, 64), "lzf")


def test_a_folder_of_images_with_masks(command):
    rng = np.random.default_rng(0)
    for folder, high in (("mine", 256), ("masks", 3)):
        os.mkdir(folder)
        for k in range(20):
            Image.fromarray(rng.integers(0, high, (32, 32), dtype=np.uint8)).save(f"{folder}/{k:02d}.png")
    code, out, err = command("import", "images", "mine", "mine.h5", "--masks", "masks", "--num-background", "1")
    assert code == 0, err
    scenes = read_scenes("mine.h5")
    assert (scenes.labels.max(), scenes.num_background) == (2, 1)
    assert scenes.splits == {"train": range(18), "test": range(18, 20)}


def test_damage_is_left_out_on_request_and_reported(command, refused, rooms):
    content = bytearray(gzip.decompress(rooms.read_bytes()))
    for record in (7, 250):
        content[record * 122_937 + 5000] ^= 1
    rooms.write_bytes(gzip.compress(bytes(content), 1))
    line = refused("import", "objects-room", rooms, "out.h5")
    assert line.startswith(
        f"{rooms}: record 7, at byte 860559 of the unpacked stream is damaged: its checksum is wrong;"
    )
    code, out, err = command("import", "objects-room", rooms, "out.h5", "--skip-damaged")
    assert (code, len(read_scenes("out.h5").images)) == (0, 298)
    assert err.splitlines()[-1] == (
        "note: 2 damaged records were left out: record 7, at byte 860559 of the unpacked stream, "
        "record 250, at byte 30734250 of the unpacked stream"
    )
    with h5py.File("out.h5") as file:
        assert file.attrs["source"] == "rooms.tfrecords, 2 damaged records left out"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["import", "objects-room", "none", "out.h5"], "no such file or folder: none"),
        (["import", "objects-room", "/dev/zero", "out.h5"], "/dev/zero is neither a file nor a folder: name what was"),
        (["import", "objects-room", "pipe", "out.h5"], "pipe is neither a file nor a folder: name what was"),
        (["import", "objects-room", "a" * 5000, "out.h5"], "the argument aaa"),
        (["info", "pipe"], "cannot read pipe: no such file, or not an ordinary one"),
        (
            ["render", "objects-room", "out.h5", "--num", "100000001"],
            "--num is 100000001: it must be from 1 to 100000000",
        ),
        (["render", "objects-room", "out.h5", "--seed", "4294967296"], "--seed is 4294967296: it must be from 0 to"),
        (["render", "objects-room", "out.h5", "--workers", "257"], "--workers is 257: it must be from 1 to 256"),
        (
            ["import", "objects-room", ".", "out.h5"],
            ". is a folder, but objects-room is read from a TFRecord file or an HDF5 file",
        ),
        (["import", "images", str(ROOMS), "out.h5"], f"{ROOMS} is a TFRecord file, but images is read from a folder"),
        (["import", "shapestacks", str(ROOMS), "out.h5"], f"{ROOMS} is a TFRecord file, but shapestacks is read from"),
        (["import", "images", ".", "out.h5"], "no images in .: expected files ending in .png, .jpg, .jpeg"),
        (["import", "shapestacks", ".", "out.h5"], "cannot read splits/default/train.txt: No such file or directory"),
        (
            ["import", "clevr6", str(ROOMS), "out.h5"],
            f"{ROOMS} does not hold this data set: in its first record, it has",
        ),
        (["import", "clevr7", str(ROOMS), "out.h5"], "invalid choice 'clevr7' for argument 'name'. Expected one of"),
        (["import", "objects-room", str(ROOMS)], "Missing from data.py import: OUT HDF5 file to write"),
        (
            ["import", "objects-room", str(ROOMS), "out.h5", "--size", "4"],
            "--size is 4: it must be from 8 to 1024 pixels",
        ),
        (["import", "objects-room", str(ROOMS), "out.h5", "--num", "0"], "--num is 0: it must be from 1 to 1000000000"),
        (
            ["import", "objects-room", str(ROOMS), "out.h5", "--masks", "."],
            "--masks, --num-background and --fit are for images",
        ),
        (["import", "objects-room", str(ROOMS), "there.h5"], "there.h5 exists already: remove it or name another file"),
        (["info", "none"], "no such file or folder: none"),
        (["info", "there.h5"], "cannot read there.h5: not an HDF5 file, or truncated or damaged"),
        ([], "Expected one of {info, import"),
        (["fetch"], "Unrecognized options: fetch"),
    ],
    ids=lambda value: " ".join(value).replace(str(FIXTURES), "") if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line(arguments, line, refused, tmp_path):
    (tmp_path / "there.h5").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    assert refused(*arguments).startswith(line)


def test_hdf5_that_is_not_from_object_centric_library(refused, command, data):
    line = refused("import", "objects-room", data, "out.h5")
    assert line.startswith(f'{data} has no "image" (it holds factors, images, labels); name a *-full.hdf5 file')
    line = refused("import", "objects-room-empty-room", data, "out.h5")
    assert line == f"{data} is an HDF5 file, but objects-room-empty-room is read from a TFRecord file"


@pytest.mark.parametrize("kept", [10, 1000, -1])
def test_truncated_files(refused, rooms, kept):
    rooms.write_bytes(rooms.read_bytes()[:kept])
    line = refused("import", "objects-room", rooms, "out.h5")
    assert "is truncated at record" in line or "claims" in line


def test_nothing_in_it(refused, tmp_path):
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    assert refused("import", "objects-room", "empty.gz", "out.h5") == (
        "empty.gz has no scene that could be read: name another file"
    )


def test_other_options_are_not_mixed(command, rooms, monkeypatch):
    monkeypatch.setattr("pyro_lom.data.importers.block.BLOCK_BYTES", 100 * 64 * 64 * 3)
    calls = []

    def interrupted(writer, *block, append=SceneWriter.append, **place):
        append(writer, *block, **place)
        calls.append(writer.num_scenes)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("pyro_lom.data.writer.SceneWriter.append", interrupted)
    code, out, err = command("import", "objects-room", rooms, "out.h5")
    assert (code, out, calls) == (130, "", [100, 200])
    assert err.splitlines()[-2:] == ["out.h5: 200 scenes are kept; the same command goes on", "stopped by SIGINT"]
    code, _, err = command("import", "objects-room", rooms, "out.h5", "--size", "48")
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "error: .out.h5.partial holds 200 scenes of an unfinished file with another --s"
    )
    assert command("import", "objects-room", rooms, "out.h5")[0] == 0
    assert calls == [100, 200, 300]
    expected = command("import", "objects-room", rooms, "whole.h5")
    assert expected[0] == 0
    np.testing.assert_array_equal(read_scenes("out.h5").images, read_scenes("whole.h5").images)
    assert sorted(os.listdir()) == ["out.h5", "rooms.tfrecords", "whole.h5"]


@pytest.mark.parametrize(
    "place",
    [
        [0, []],
        [2, []],
        [3, ["x"]],
        [{"row": -1}, []],
        [7.5, []],
        ["x", []],
        [-1, []],
        [[], []],
        3,
        [2**80, []],
        [1, "x"],
        [1, [2]],
    ],
    ids=str,
)
def test_a_place_in_a_journal_is_checked(command, refused, place):
    os.mkdir("mine")
    for k in range(3):
        Image.new("L", (32, 32), k).save(f"mine/{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneWriter, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("import", "images", "mine", "mine.h5")[0] == 130
    journal = Path(".mine.h5.partial/journal.json")
    journal.write_text(json.dumps(json.loads(journal.read_text()) | {"place": place}))
    code, out, err = command("import", "images", "mine", "mine.h5")
    assert (code, out) == (2, "")
    assert err.startswith("error: the unfinished file in .mine.h5.partial is damaged (") and err.count("\n") == 1
    assert command("import", "images", "mine", "mine.h5")[0] == 0


@pytest.mark.parametrize("shape", [[16, 16, 3], [32, 32, 1]])
def test_the_images_of_a_journal_are_those_of_the_command(command, shape):
    os.mkdir("mine")
    for k in range(3):
        Image.new("L", (32, 32), k).save(f"mine/{k}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneWriter, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("import", "images", "mine", "mine.h5")[0] == 130
    journal = Path(".mine.h5.partial/journal.json")
    journal.write_text(json.dumps(json.loads(journal.read_text()) | {"arrays": {"images": ["|u1", shape]}}))
    code, out, err = command("import", "images", "mine", "mine.h5")
    assert (code, out) == (2, "") and f"its images have the shape ({shape[0]}, " in err


def test_an_interrupted_import_of_grey_images_goes_on(command):
    np.save("grey.npy", np.arange(5 * 32 * 32, dtype=np.uint8).reshape(5, 32, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SceneWriter, "finish", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command("import", "images", "grey.npy", "grey.h5")[0] == 130
    code, _, err = command("import", "images", "grey.npy", "grey.h5")
    assert code == 0, err
    with h5py.File("grey.h5") as file:
        assert file["images"].shape == (5, 32, 32, 1)


def test_factors_of_a_journal_that_are_no_numbers(tmp_path):
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with SceneWriter(tmp_path / "out.h5", {}) as writer:
        writer.append(images, None, {"x": np.zeros((2, 1), np.float32)})
        (writer.folder / "factors.x").write_bytes(np.full((2, 1), np.nan, np.float32).tobytes())
        with pytest.raises(UserError, match="a factor in .* is damaged, and the folder is removed"):
            writer.finish(name="x", version=1, num_background=0, splits={"train": range(2)}, source="", seed=0)


@pytest.mark.parametrize("name", [".", "..", "a\n"])
def test_names_in_a_journal_that_no_factor_can_have(command, name):
    os.mkdir("mine")
    Image.new("L", (32, 32), 1).save("mine/1.png")
    os.mkdir(".mine.h5.partial")
    arrays = {"images": ["|u1", [32, 32, 3]], f"factors.{name}": ["<f4", [2]]}
    Path(".mine.h5.partial/journal.json").write_text(json.dumps({"made_by": {}, "num_scenes": 1, "arrays": arrays}))
    code, out, err = command("import", "images", "mine", "mine.h5")
    assert (code, out) == (2, "") and err.startswith("error: .mine.h5.partial/journal.json is damaged (")


@pytest.mark.parametrize("dtype", ["<f1", "<b8", ">u1", "|f8", "<U4", "<i3"])
def test_a_type_in_a_journal_is_checked(command, dtype):
    os.mkdir("mine")
    Image.new("L", (32, 32), 1).save("mine/1.png")
    os.mkdir(".mine.h5.partial")
    arrays = {"images": [dtype, [32, 32, 3]]}
    Path(".mine.h5.partial/journal.json").write_text(json.dumps({"made_by": {}, "num_scenes": 1, "arrays": arrays}))
    code, out, err = command("import", "images", "mine", "mine.h5")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: .mine.h5.partial/journal.json is damaged (")


@pytest.mark.slow
def test_killed_again_and_again(command, tmp_path):
    """Until it is done: the file is the one that is made at once."""
    body = gzip.decompress(ROOMS.read_bytes())
    source = tmp_path / "rooms.tfrecords"
    source.write_bytes(gzip.compress(body * 3000, 1))
    assert command("import", "objects-room", source, "whole.h5")[0] == 0
    kept = [0]
    journal = tmp_path / ".out.h5.partial" / "journal.json"
    while not (tmp_path / "out.h5").exists():
        process = start("import", "objects-room", source, "out.h5", cwd=tmp_path)
        while process.poll() is None:
            if journal.exists() and json.loads(journal.read_text())["num_scenes"] > kept[-1]:
                process.kill()
                break
            time.sleep(0.01)
        process.communicate()
        if journal.exists():
            kept.append(json.loads(journal.read_text())["num_scenes"])
    assert len(kept) > 3
    np.testing.assert_array_equal(read_scenes("out.h5").images, read_scenes("whole.h5").images)
    np.testing.assert_array_equal(read_scenes("out.h5").labels, read_scenes("whole.h5").labels)


@pytest.mark.slow
@pytest.mark.parametrize("spoiled", [False, True])
def test_memory_does_not_grow_with_the_file(tmp_path, spoiled):
    """1.1 GB unpacked, or a billion zeros where a record should be, in 400 MB beside what torch takes."""
    source = tmp_path / "rooms.tfrecords"
    body = gzip.decompress(ROOMS.read_bytes())
    with gzip.open(source, "wb", 1) as file:
        for _ in range(30):
            file.write(body * 100 if not spoiled else bytes(len(body) * 100))

    def bounded():
        resource.setrlimit(resource.RLIMIT_DATA, (1_200_000_000, 1_200_000_000))

    process = start("import", "objects-room", source, "out.h5", cwd=tmp_path, preexec_fn=bounded)
    out, err = process.communicate()
    assert process.returncode == (2 if spoiled else 0), err
    if not spoiled:
        assert len(read_scenes(tmp_path / "out.h5").images) == 9000


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_stopped_by_a_signal(kind, tmp_path):
    body = gzip.decompress(ROOMS.read_bytes())
    source = tmp_path / "rooms.tfrecords"
    source.write_bytes(gzip.compress(body * 3000, 1))
    heed = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where tests run in the background  # noqa: E731
    process = start("import", "objects-room", source, "out.h5", cwd=tmp_path, preexec_fn=heed)
    while not (tmp_path / ".out.h5.partial" / "images").exists():
        time.sleep(0.01)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + kind
    assert "Traceback" not in err
    assert not (tmp_path / "out.h5").exists()


# info


def test_info_describes_and_draws(command, data):
    code, out, err = command("info", data)
    assert (code, err) == (0, "")
    lines = {line[:15].rstrip(): line[15:] for line in out.splitlines()}
    assert lines["name"] == "towers, version 2"
    assert lines["source"] == "tests, seed 3"
    assert lines["images"] == "64, 32x32, RGB, 0.2 MB"
    assert lines["splits"] == "test 48 to 63, train 0 to 47"
    assert lines["background"] == "0 in 100.0%, 1 in 100.0%"
    assert lines["objects"].startswith("2 in 100.0%, 3 in ")
    assert lines["in a scene"].startswith("1 in ") and lines["in a scene"].endswith(" of scenes")
    assert lines["  present"] == "3 columns, 0 to 1"
    sheet = data.with_name("small-sheet.png")
    assert lines["contact sheet"] == str(sheet)
    with Image.open(sheet) as picture:
        assert picture.size[0] > 1000
    sheet.unlink()


def test_info_draws_its_own_sheet_again_and_replaces_nothing_else(command, refused, data, tmp_path):
    shutil.copy(data, "mine.h5")
    for _ in range(2):
        assert command("info", "mine.h5")[0] == 0
    before = Path("mine.h5").read_bytes()
    Path("mine-sheet.png").write_text("precious")
    Image.new("L", (4, 4)).save("photo.png")
    Path("link.png").symlink_to("photo.png")
    os.mkfifo("pipe.png")
    for name in ("mine-sheet.png", "photo.png", "link.png", "pipe.png"):
        line = refused("info", "mine.h5", *(["--sheet", name] if name != "mine-sheet.png" else []))
        assert line.startswith(f"--sheet {name}: ") and "this command did not write" in line
    assert refused("info", "mine.h5", "--sheet", "mine.h5") == "--sheet mine.h5: name a file that ends in .png"
    assert Path("mine.h5").read_bytes() == before and Path("mine-sheet.png").read_text() == "precious"


def test_names_in_a_file_do_not_reach_the_terminal(command, towers):
    evil = "\x1b[2J$\\frac{evil\nerror: fine"
    factors = {evil: towers.factors["hue"]}
    write_scenes("evil.h5", replace(towers, name=evil, factors=factors), source=evil, seed=0)
    code, out, err = command("info", "evil.h5")
    assert (code, err) == (0, "")
    assert "\x1b" not in out and not any(line.startswith("error") for line in out.splitlines())
    assert out.count(r"\x1b[2J$\frac{evil\nerror: fine") == 3


def test_names_of_files_do_not_reach_the_terminal(command):
    evil = "\x1b[2J\nerror: fine"
    os.mkdir(evil)
    Image.new("L", (32, 32)).save(f"{evil}/{evil}.png")
    assert command("import", "images", evil, f"{evil}.h5")[0] == 0
    (Path(evil) / f"{evil}.png").write_bytes(b"")
    for arguments in (["info", f"{evil}.h5"], ["info", evil], ["import", "images", evil, "other.h5"]):
        _, out, err = command(*arguments)
        lines = (out + err.replace("\r", "\n")).splitlines()
        assert any(r"\x1b[2J\nerror: fine" in line for line in lines) and "error: fine" not in lines
        assert "\x1b" not in out + err


def test_info_of_a_folder(command, towers):
    os.mkdir("mine")
    for k in range(3):
        Image.fromarray(towers.images[k]).save(f"mine/{k}.png")
    code, out, err = command("info", "mine", "--sheet", "sheet.png")
    assert (code, err) == (0, "mine: 3 *.png as images\n")
    assert "labels         none\n" in out
    assert sorted(os.listdir()) == ["mine", "sheet.png"]


def test_info_refuses_what_contradicts_itself(refused, towers):
    write_scenes("small.h5", replace(towers, splits={"train": range(50), "test": range(48, 64)}), source="", seed=0)
    assert refused("info", "small.h5").startswith('scenes 48 to 49 of small.h5 are both in "test" and in "train"')


def test_info_refuses_a_truncated_file(refused, data, tmp_path):
    shutil.copy(data, "short.h5")
    os.truncate("short.h5", data.stat().st_size // 2)
    assert refused("info", "short.h5").startswith("cannot read short.h5: not an HDF5 file, or truncated or damaged")


def test_help_lists_the_commands(command):
    code, out, err = command("--help")
    assert code == 0
    assert all(f"• {name}" in out for name in ("info", "import", "render"))


# from a published file to a training run


@pytest.mark.slow
def test_presets_run_on_imported_data(command, fit, rooms):
    assert command("import", "objects-room", rooms, "data/objects-room.h5")[0] == 0
    tiny = (
        "--train.steps 2 --train.batch-size 2 --model.orderless.encoder-width 8 --model.decoder-width 8 "
        "--model.transformer-width 8 --model.num-slots 2"
    )
    code, _, err = fit("lom-genesis-v2-objects-room", *tiny.split())
    assert code == 0, err
    summary = json.loads(next(Path("runs").glob("*/summary.json")).read_text())
    assert summary["ari_fg_encoder"] is not None
