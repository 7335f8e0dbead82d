"""`data.py render`: what it writes, how it goes on, and what it refuses in one line."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import h5py
import numpy as np
import pytest
from noise import Noise

from experiments.data import main
from experiments.datasets import rendering
from experiments.loading import _DATA_SETS
from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.data.renderers.objects_room import ObjectsRoom
from pyro_lom.data.writer import SceneWriter
from pyro_lom.training.runs import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def noise(monkeypatch):
    """`noise(**options)` puts a renderer without an engine in the place of Objects Room's."""
    return lambda **options: monkeypatch.setitem(rendering.RENDERERS, "objects-room", Noise(**options))


@pytest.fixture
def stopped(monkeypatch):
    """`stopped(after)` is a person's Ctrl-C once so many blocks have been written."""

    def stop(after):
        written = []

        def append(writer, *block, append=SceneWriter.append):
            append(writer, *block)
            written.append(writer.num_scenes)
            if len(written) == after:
                raise KeyboardInterrupt

        monkeypatch.setattr(SceneWriter, "append", append)
        return written

    return stop


@pytest.mark.parametrize("name", rendering.TRAINED_ON)
def test_every_data_set_of_the_presets_is_rendered(name):
    assert name in rendering.RENDERERS and f"data/{name}.h5" in _DATA_SETS
    assert get_args(rendering.Name) == tuple(rendering.RENDERERS)


def test_what_it_writes(command, noise):
    noise()
    code, out, _ = command(main, "render", "objects-room", "data/rooms.h5", "--num", "41", "--seed", "3")
    assert (code, out) == (
        0,
        "data/rooms.h5: 41 scenes; python experiments/data.py info data/rooms.h5 describes them\n",
    )
    scenes = read_scenes("data/rooms.h5")
    assert (scenes.name, scenes.version, scenes.num_background) == ("objects-room", 1, 1)
    assert scenes.splits == {"test": range(4), "validation": range(4, 8), "train": range(8, 41)}
    assert np.asarray(scenes.factors["index"])[:, 0].tolist() == list(range(41))
    with h5py.File("data/rooms.h5") as file:
        assert file.attrs["source"] == f"rendered by numpy {np.__version__}" and file.attrs["seed"] == 3
    assert os.listdir("data") == ["rooms.h5"]


def test_test_sets_are_not_split(command, noise, monkeypatch):
    monkeypatch.setitem(rendering.RENDERERS, "objects-room-six-objects", Noise())
    assert command(main, "render", "objects-room-six-objects", "six.h5", "--num", "20", "--compact")[0] == 0
    assert read_scenes("six.h5").splits == {"test": range(20)}
    with h5py.File("six.h5") as file:
        assert file["images"].compression == "lzf"


def test_views_of_one_stack_stay_in_one_split(command, noise, monkeypatch):
    noise()
    monkeypatch.setattr(Noise, "views", 4)
    assert command(main, "render", "objects-room", "out.h5", "--num", "70")[0] == 0
    assert read_scenes("out.h5").splits == {"test": range(4), "validation": range(4, 8), "train": range(8, 70)}


def test_stopped_and_gone_on_with(command, noise, stopped):
    noise()
    arguments = ["render", "objects-room", "out.h5", "--num", "20", "--workers", "2"]
    written = stopped(after=2)
    code, out, err = command(main, *arguments)
    assert (code, out, written) == (130, "", [3, 6])
    assert err.splitlines()[-2:] == ["out.h5: 6 scenes are kept; the same command goes on", "stopped by SIGINT"]
    code, _, err = command(main, *arguments, "--seed", "1")
    assert code == 2
    assert err.splitlines()[-1].startswith(
        "error: .out.h5.partial holds 6 scenes of an unfinished file with another --seed"
    )
    arguments[-1] = "1"  # workers may differ
    assert command(main, *arguments)[0] == 0
    assert written == [3, 6, *range(9, 19, 3), 20]
    assert command(main, "render", "objects-room", "whole.h5", "--num", "20")[0] == 0
    assert Path("out.h5").read_bytes() == Path("whole.h5").read_bytes()


def test_a_worker_that_is_killed(command, noise):
    noise(fails_to="render")
    code, out, err = command(main, "render", "objects-room", "out.h5", "--num", "20")
    assert (code, out) == (2, "")
    kept = re.fullmatch(
        r"error: a worker was killed, perhaps out of memory; (\d+) scenes of out.h5 are kept: the same command goes "
        "on, with fewer --workers if need be",
        err.splitlines()[-1],
    )
    assert kept and int(kept[1]) in (6, 9, 12)  # the third and fourth blocks may be lost with the worker
    noise()
    assert command(main, "render", "objects-room", "out.h5", "--num", "20")[0] == 0
    assert len(read_scenes("out.h5").images) == 20


def test_an_engine_that_does_not_start_costs_nothing(command, noise, stopped, refusal):
    noise(fails_to="start")
    arguments = ["render", "objects-room", "out.h5", "--num", "20"]
    assert refusal(main, *arguments) == "no noise here; make some"
    noise()
    stopped(after=2)
    assert command(main, *arguments)[0] == 130
    noise(fails_to="start")
    assert refusal(main, *arguments) == "no noise here; make some"
    assert Path(".out.h5.partial").is_dir()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--num", "0"], "--num is 0: it must be from 1 to 100000000"),
        (["--seed", "-1"], "--seed is -1: it must be from 0 to 4294967295"),
        (["--workers", "0"], "--workers is 0: it must be from 1 to 256"),
        (["--size", "16"], "--size is 16: it must be from 32 to 512 pixels"),
    ],
    ids=" ".join,
)
def test_mistakes_on_the_command_line(arguments, line, refusal):
    assert refusal(main, "render", "objects-room", "out.h5", *arguments) == line


def test_names_and_files(refusal, noise, tmp_path):
    assert refusal(main, "render", "clevr7", "out.h5").startswith("invalid choice 'clevr7' for argument")
    noise()
    Path("there.h5").write_text("mine")
    line = refusal(main, "render", "objects-room", "there.h5")
    assert line == "there.h5 exists already: remove it or name another file"


def test_nothing_to_draw_with(mujoco, refusal, monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert refusal(main, "render", "objects-room", "out.h5") == (
        "MuJoCo cannot draw here: MUJOCO_GL=nonsense does not work; install a library for it: apt install libegl1 "
        "libgl1 (or libosmesa6)"
    )


@pytest.mark.parametrize("name", ["objects-room", "shapestacks"])
@pytest.mark.slow
def test_rendered_by_one_and_by_two(name, mujoco, command, monkeypatch):
    monkeypatch.setattr(type(rendering.RENDERERS[name]), "block_size", 5)
    for workers in (1, 2):
        arguments = ["render", name, f"{workers}.h5", "--num", "20", "--workers", str(workers)]
        assert command(main, *arguments)[0] == 0
    assert Path("1.h5").read_bytes() == Path("2.h5").read_bytes()
    code, out, _ = command(main, "info", "1.h5")
    assert code == 0 and "rendered by mujoco" in out


@pytest.mark.slow
def test_stopped_by_a_signal(mujoco, tmp_path):
    """By Ctrl-C, which goes to all processes of a terminal: one line, no traceback, and none lives on."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "experiments" / "data.py", "render", "objects-room", "out.h5", "--workers", "2"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    try:
        while not (tmp_path / ".out.h5.partial" / "images").exists():
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in err
    assert err.splitlines()[-1] == "stopped by SIGINT"
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # Python's own resource tracker ends last
            os.killpg(process.pid, 0)
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rooms_to_a_training_run(mujoco, command, fit):
    """From nothing: the preset's networks, narrowed, learn rendered rooms for 300 steps."""
    assert isinstance(rendering.RENDERERS["objects-room"], ObjectsRoom)
    assert command(main, "render", "objects-room", "data/objects-room.h5", "--num", "2000")[0] == 0
    narrow = (
        "--model.orderless.encoder-width 16 --model.decoder-width 16 --model.transformer-width 32 --train.batch-size 4"
    )
    code, _, err = fit(
        "lom-genesis-v2-objects-room", "--train.steps", "300", "--train.log-every", "10", *narrow.split()
    )
    assert code == 0, err
    rows = Run(next(Path("runs").iterdir())).metrics()
    for name, share in {"loss": 0.9, "orderless/rmse": 1, "ordered/rmse": 1}.items():
        values = [row[name] for row in rows if row["step"] <= 300]
        assert np.isfinite(values).all() and np.mean(values[-5:]) < share * np.mean(values[:3]), name
