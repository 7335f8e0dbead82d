"""ablate.py: every model with every seed; it goes on where it was stopped, skips what is done, outlives what fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from experiments.ablate import main
from experiments.evaluation.words import title
from experiments.fit import parse
from experiments.loading import load_run
from experiments.training import launching
from experiments.training.launching import Job, train
from experiments.training.opening import anchored
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.data.towers import make_towers
from pyro_lom.errors import UserError

NAME = "lom-genesis-v2-towers"


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(launching, "_LOOK_EVERY", 0.1)


@pytest.fixture
def study(finished, tmp_path):
    """A study of one model with two seeds, both of them done."""
    for seed in (0, 1):
        folder = shutil.copytree(finished, tmp_path / "study" / f"0000{seed}-{NAME}-seed{seed}")
        config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
        (folder / "config.json").write_text(json.dumps(config | {"seed": seed}))
        (folder / "summary.json").write_text(json.dumps(summary | {"kl_ordered": 15.0 + 3 * seed}))
    return tmp_path / "study"


@pytest.fixture
def ablate(command, tiny, monkeypatch):
    """`ablate(*arguments)` is the command on the tiny configuration; there are too few images for Frechet distances."""
    ablate = sys.modules["experiments.ablate"]
    monkeypatch.setattr(ablate, "measure", lambda *_, **__: {"fd_pca64_samples": 7.25})
    return lambda *arguments: command(main, NAME, "--seeds", 2, "--study", "study", *arguments, "--", *tiny)


def no_process(*_, **__):
    pytest.fail("a run was started")


def test_what_is_done_is_skipped_and_compared(ablate, study, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", no_process)
    code, out, err = ablate()
    assert code == 0, err
    kl, fd = out.partition(f"**{title('fd_pca64_samples')}**")[::2]
    assert kl.startswith(f"**{title('kl')}**") and f"| {NAME} | 16.5   | 15.0   | 18.0   |" in kl
    fd, structure = fd.partition(f"**{title('structure_samples')}**")[::2]
    assert "| 7.2 " in fd or "| 7.3 " in fd
    assert f"**{title('ari_fg')}**" in structure
    assert f"python experiments/ablate.py {NAME} --seeds 2 --study study -- --data.path" in out
    assert (study / "ablation.md").read_text().startswith(f"{out}<!-- pyro_lom ")
    for name in ("ablation.png", "ablation-samples.png"):
        assert f"study/{name}" in err
        with Image.open(study / name) as picture:
            picture.verify()


@pytest.mark.slow
def test_what_was_stopped_goes_on(ablate, study):
    stopped = study / f"00001-{NAME}-seed1"
    (stopped / "summary.json").unlink()
    shutil.rmtree(stopped / "checkpoints" / "step-00000006")
    code, out, err = ablate()
    assert code == 0, err
    assert "resume" not in out and json.loads((stopped / "summary.json").read_text())["seed"] == 1
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
    assert "6 steps, 4 of them done" in (study / "logs" / f"{NAME}-seed1.txt").read_text()
    assert len(list(study.glob("0*"))) == 2


def test_a_run_that_fails_is_reported_and_stops_no_other(ablate, study):
    failing = study / f"00000-{NAME}-seed0"
    (failing / "summary.json").unlink()
    for checkpoint in (failing / "checkpoints").iterdir():
        (checkpoint / "state.json").write_text("half a li")
    code, out, err = ablate()
    assert code == 1
    assert f"{NAME}-seed0 failed: error: the checkpoint" in err and "is damaged" in err and "(exit code 2; see" in err
    assert "error: 1 of 2 runs failed" in err.splitlines()[-1]
    assert f"| {NAME} | 18.0 (of 1) | -      | 18.0   |" in out and f"{NAME}-seed0 failed: error: the checkpoint" in out


@pytest.mark.slow
def test_when_all_fail_there_is_no_picture(ablate, study):
    for folder in study.glob("0*"):
        (folder / "summary.json").unlink()
        for checkpoint in (folder / "checkpoints").iterdir():
            (checkpoint / "state.json").unlink()
    code, out, err = ablate("--processes", 2)
    assert code == 1 and "2 of 2 runs failed" in err and "|" not in out
    assert not (study / "ablation.png").exists()


def job(tiny, study, seed=1):
    return Job(anchored(replace(parse([NAME, *tiny]).config, seed=seed)), study)


def test_a_new_run_is_started_by_the_command_that_makes_its_configuration(tiny, tmp_path):
    new = job(tiny, tmp_path / "study")
    python, script, name, *options = new.command()
    assert (python, Path(script).name, name) == (sys.executable, "fit.py", NAME)
    parsed = parse([name, *options])
    assert (parsed.config, parsed.runs_dir, parsed.resume) == (new.config, tmp_path / "study", None)
    assert new.run() is None and new.steps_done() == 0


def test_a_run_of_other_options_does_not_count(tiny, study):
    done = job(tiny, study)
    assert done.finished() and done.steps_done() == 6
    assert load_run(done.run().folder)[0] == done.config
    other = replace(done.config, train=replace(done.config.train, steps=7))
    assert Job(other, study).run() is None


def test_on_a_cpu_a_process_has_one_thread(tiny, tmp_path, monkeypatch):
    show = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    monkeypatch.setattr(Job, "command", lambda self: [sys.executable, "-c", show])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    unfinished = job(tiny, tmp_path / "study")
    assert train([unfinished], processes=1) == {unfinished: f"1 1 (exit code 0; see {unfinished.log})"}


def test_gpus_are_used_in_turn(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in launching._places(3)] == ["4", "6", "4"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in launching._places(2)] == ["0", "1"]


def test_ctrl_c_stops_all_processes_and_waits_for_them(tiny, tmp_path, monkeypatch):
    wait = (
        "import pathlib, signal, sys, time\n"
        "def save(*_): time.sleep(0.3); pathlib.Path(sys.argv[1] + '.saved').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save); pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )
    jobs = [job(tiny, tmp_path / "study", seed) for seed in range(3)]
    marks = {each: tmp_path / each.name for each in jobs}
    monkeypatch.setattr(Job, "command", lambda self: [sys.executable, "-c", wait, str(marks[self])])

    def interrupt_when_both_run(seconds, sleep=time.sleep):
        sleep(seconds)
        if marks[jobs[0]].exists() and marks[jobs[1]].exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(launching.time, "sleep", interrupt_when_both_run)
    with pytest.raises(KeyboardInterrupt):
        train(jobs, processes=2)
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == [f"{jobs[0].name}.saved", f"{jobs[1].name}.saved"]
    assert not marks[jobs[2]].exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_study_prints_how_to_go_on(ablate, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr(Job, "command", lambda self: [sys.executable, "-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(launching.time, "sleep", lambda seconds: signal.raise_signal(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        left, out, err = ablate()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (left, out) == (code, "") and "repeat the command to resume them" in err


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["ablation-9"], "there is no preset 'ablation-9'; choose one of "),
        ([NAME, NAME], "a preset is named twice: "),
        (["demo", "lom-genesis-v2-towers"], "a preset is named twice: lom-genesis-v2-towers lom-genesis-v2-towers"),
        ([NAME, "--seeds", "0"], "--seeds is 0: it must be from 1 to 1000"),
        ([NAME, "--processes", "0"], "--processes is 0: it must be from 1 to 256"),
        ([NAME, "--", "--seed", "3"], "only the options --model.*, --data.* and --train.* of fit.py can follow the --"),
        ([NAME, "--", "--runs-dir", "here"], "only the options --model.*, --data.* and "),
        ([NAME, "--", "--train.steps", "0"], "--train.steps is 0: it must be from 1 to 1000000000"),
        ([NAME, "--", "--model.geco.target", "-0.3"], "--model.geco.target is -0.3 and --model.geco.target-rmse is "),
        ([NAME, "--", "--train.geco.target", "-0.3"], "--train.geco.target is now called --model.geco.target"),
        ([NAME, "--", "--model.encoder-width", "8"], "--model.encoder-width is now called --model.orderless.encoder-"),
        ([NAME, "--", "--train.stepz", "3"], "Unrecognized options: --train.stepz"),
        (
            ["ablation-0"],
            "the data set is missing: data/objects-room-48.h5. Render a stand-in: python experiments/data.",
        ),
    ],
)
def test_mistakes_take_one_line(refusal, arguments, line):
    assert refusal(main, *arguments).startswith(line)


def test_a_file_is_no_study(command, tiny, tmp_path):
    (tmp_path / "study").write_text("")
    code, out, err = command(main, NAME, "--study", "study", "--seeds", 1, "--", *tiny)
    assert (code, out) == (2, "") and "error: cannot write study/logs" in err


@pytest.mark.slow
def test_two_models_with_two_seeds(command, tiny, tmp_path):
    """A LOM and an orderless model alone; all options have to be those of both."""
    data = tmp_path / "data.h5"
    scenes = replace(make_towers(96, seed=3), splits={"train": range(80), "test": range(80, 96)})
    write_scenes(data, scenes, source="tests", seed=3)
    presets = [NAME, "genesis-v2-towers"]
    common = tiny[2 : tiny.index("--model.orderless.encoder-width")]
    options = [*presets, "--seeds", 2, "--processes", 2, "--study", "study", "--", "--data.path", data, *common]
    code, out, err = command(main, *options)
    assert code == 0, err
    assert len(list(tmp_path.glob("study/0*/summary.json"))) == 4
    assert "4/4 runs" in err and os.listdir("study/logs")
    for key in ("kl", "ari_fg"):  # both have one, though their pairs have different names
        part = out.partition(f"**{title(key)}**")[2].partition("**")[0]
        assert all(re.search(rf"\| {name} +\| -?[\d.]+ +\| -?[\d.]+ +\| -?[\d.]+ +\|", part) for name in presets)


def test_logs_replace_nothing_of_the_user(tiny, tmp_path):
    """Neither a file of another origin, nor what a link leads to; and a pipe is not waited for."""
    new = job(tiny, tmp_path / "study")
    new.log.parent.mkdir(parents=True)
    own = tmp_path / "own.txt"
    own.write_text("precious")
    for make in (lambda: new.log.write_text("precious"), lambda: new.log.symlink_to(own), lambda: os.mkfifo(new.log)):
        make()
        with pytest.raises(UserError, match="is in the place of a log: rename it, or name another --study"):
            train([new], processes=1)
        if not new.log.is_symlink() and new.log.is_file():
            assert new.log.read_text() == "precious"
        new.log.unlink()
    new.log.parent.rmdir()
    new.log.parent.symlink_to(tmp_path)
    with pytest.raises(UserError, match="logs is a link"):
        train([new], processes=1)
    assert own.read_text() == "precious"
