"""`fit.py` from end to end: what it writes, how it goes on, and what it refuses in one line."""

import contextlib
import errno
import json
import math
import os
import random
import re
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
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from experiments import cli
from experiments.data import Command
from experiments.loading import EMBEDDED, load_run
from experiments.systems import PRESETS
from experiments.training import verdicts
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.errors import UserError
from pyro_lom.metrics.binding import Binding
from pyro_lom.training import checkpoints, runs
from pyro_lom.training import trainer as trainer_module
from pyro_lom.training.runs import Run
from pyro_lom.training.signals import STOP_SIGNALS

fit_module = sys.modules["experiments.fit"]  # `experiments.fit` is its function

ROOT = Path(__file__).parents[2]
RUN = "00000-lom-genesis-v2-towers-seed0"
AT_ONCE = ["--model.schedule.orderless-first", "0", "--model.schedule.ordered-batch-size", "None"]
FINITE = {"ari_fg_encoder", "rmse_ordered", "kl_slots", "structure_samples", "train_minutes"}


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of a finished run, to damage."""
    return shutil.copytree(finished, tmp_path / "damaged")


def weights_of(folder):
    return load_file(Run(folder).checkpoints()[-1] / "weights.safetensors")


def assert_same_weights(here, there):
    here, there = weights_of(here), weights_of(there)
    assert here.keys() == there.keys()
    assert not [name for name in here if not torch.equal(here[name], there[name])]


# What it writes.


def test_a_run_is_all_in_its_folder(finished):
    names = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    steps = [path.name for path in Run(finished).checkpoints()]
    assert steps == ["step-00000004", "step-00000006"]
    assert names == {
        "config.json",
        "environment.json",
        "log.txt",
        "metrics.jsonl",
        "summary.json",
        *(f"figures/{name}.png" for name in ("reconstructions", "samples", "interpolation", "curves")),
        *(f"checkpoints/{step}/{name}.safetensors" for step in steps for name in ("weights", "optimizer")),
        *(f"checkpoints/{step}/state.json" for step in steps),
    }
    assert json.loads((finished / "config.json").read_text())["train"]["steps"] == 6
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 3, 4, 6]
    assert f"{RUN}: lom-genesis-v2-towers, seed 0, 6 steps\n" in (finished / "log.txt").read_text()
    summary = json.loads((finished / "summary.json").read_text())
    assert all(math.isfinite(summary[key]) for key in FINITE)
    assert summary["seed"] == 0


def test_the_plan_of_a_run(fit, finished):
    code, out, err = fit("--resume", finished, "--dry-run")
    assert (code, err) == (0, "")
    assert json.loads(out.partition("\n\n")[0]) == Run(finished).read_json("config.json")
    assert int(out.split()[-1].replace(",", "")) == Run(finished).read_json("summary.json")["parameters"]


def test_it_ends_with_a_table_and_the_pictures(fit, tiny_alone, tmp_path):
    code, out, err = fit("genesis-v2-towers", *tiny_alone, "--seed", "4")
    assert code == 0
    folder = Path("runs/00000-genesis-v2-towers-seed4")
    table, _, files = out.removeprefix("\n").partition("\n\n")
    assert re.match(r"ARI-FG ↑ +encoder -?\d\.\d\d; model decoder -?\d\.\d\d; k-means on RGB ", table)
    assert not re.search("None|nan", table)
    assert files.startswith(f"all numbers: {folder}/summary.json\npictures:    {folder}/figures/reconstructions.png\n")
    assert all(Path(path).is_file() for path in re.findall(r"runs/\S+", files))
    assert err.startswith(f"{folder}: genesis-v2-towers, seed 4, 6 steps\n")


@pytest.mark.slow
def test_slots_that_do_not_bind_are_told_early(fit, tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(verdicts, "signs_of_binding", lambda system, images: Binding(1.0, 1.0, 1.0, 1.0, 1.0, 0.0))
    code, _, err = fit(*tiny, "--train.preview-every", "2")
    assert code == 0
    lines = [
        f"warning: after step {step} one slot takes everything (100% of the pixels); try another --seed or a smaller "
        "--model.slot-dim"
        for step in (2, 4, 6)
    ]
    assert [line for line in err.splitlines() if line.startswith("warning: after")] == lines
    assert all(line in Path(f"runs/{RUN}/log.txt").read_text() for line in lines)


def test_a_missed_target_is_told(fit, tiny_alone):
    warning = "warning: the RMSE of the model pair is 0."
    code, _, err = fit("genesis-v2-towers", *tiny_alone, "--model.geco.target-rmse", "0.03")
    assert code == 0 and warning in err and ", and its target 0.0300; another --seed" in err
    assert warning not in fit("genesis-v2-towers", *tiny_alone, "--model.geco.target-rmse", "0.9")[2]


@pytest.mark.slow
def test_runs_do_not_meet(fit, tiny, tmp_path):
    for seed in ("0", "0", "1"):
        assert fit(*tiny, "--train.steps", "1", "--seed", seed, "--runs-dir", "mine")[0] == 0
    names = [f"{number:05d}-lom-genesis-v2-towers-seed{seed}" for number, seed in enumerate((0, 0, 1))]
    assert sorted(path.name for path in Path("mine").iterdir()) == names
    assert_same_weights(*(Path("mine") / name for name in names[:2]))
    with pytest.raises(AssertionError):
        assert_same_weights(*(Path("mine") / name for name in names[1:]))


def test_a_folder_of_images_of_any_size(fit, tiny, towers, tmp_path):
    Path("images").mkdir()
    for index, image in enumerate(towers.images[:20]):
        size = (32, 32) if index % 2 else (50 + index, 40)
        Image.fromarray(image).resize(size).save(f"images/{index:02d}.{'png' if index % 3 else 'jpg'}")
    code, _, err = fit(*tiny, "--data.path", "images")
    assert code == 0, err
    summary = json.loads(Path(f"runs/{RUN}/summary.json").read_text())
    assert "ari_fg_encoder" not in summary and math.isfinite(summary["rmse_ordered"])


@pytest.mark.parametrize(("num_scenes", "num_test"), [(5, 1), (6, 2), (4, 0)])
def test_very_few_scenes_are_enough(num_scenes, num_test, fit, tiny, towers, tmp_path):
    num_train = num_scenes - num_test
    splits = {"train": range(num_train), "test": range(num_train, num_scenes)}
    few = replace(
        towers,
        images=towers.images[:num_scenes],
        labels=towers.labels[:num_scenes],
        factors={name: values[:num_scenes] for name, values in towers.factors.items()},
        splits=splits,
    )
    write_scenes("few.h5", few, source="tests", seed=3)
    code, _, err = fit(*tiny, "--data.path", "few.h5", "--train.steps", "2")
    assert code == 0, err
    text = Path(f"runs/{RUN}/summary.json").read_text()
    assert not re.search("NaN|Infinity", text)
    assert "fd_pca64_samples" not in json.loads(text)


@pytest.mark.parametrize(
    "options", [["--model.matching", "hungarian"], ["--train.precision", "bf16-mixed"]], ids=" ".join
)
def test_options_reach_the_run(options, fit, tiny, tmp_path):
    code, _, err = fit(*tiny, "--train.steps", "2", *options)
    assert code == 0, err
    assert options[1] in Path(f"runs/{RUN}/config.json").read_text()


def test_grey_images(fit, tiny, towers, tmp_path):
    with h5py.File("grey.h5", "w") as file:
        file["images"] = towers.images.mean(-1, keepdims=True).astype(np.uint8)
    code, _, err = fit(*tiny, "--data.path", "grey.h5", "--train.steps", "2")
    assert code == 0, err


# How it goes on.


# Steps within each phase.
@pytest.mark.parametrize(("kind", "step"), [(signal.SIGINT, 1), *((kind, 4) for kind in STOP_SIGNALS)])
def test_a_signal_saves_and_leaves_and_the_run_goes_on(kind, step, fit, tiny, finished, monkeypatch, tmp_path):
    preview = lambda *_, step, **options: step == stop_at and os.kill(os.getpid(), kind)  # noqa: E731
    stop_at = step
    monkeypatch.setattr(verdicts, "signs_of_binding", lambda system, images: None)  # no warnings in the log
    monkeypatch.setattr(fit_module, "remarks", lambda scenes: [])  # none about few scenes either
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "draw", preview)
        code, out, err = fit(*tiny, "--train.preview-every", "1")
    assert (code, out) == (128 + kind, "")
    line = f"stopped by {kind.name} after step {step + 1}, and saved; --resume runs/{RUN} goes on from there"
    assert err.splitlines()[-1] == line
    assert not Path(f"runs/{RUN}/summary.json").exists()

    monkeypatch.setattr(fit_module, "draw", lambda *_, **options: [])
    code, out, err = fit("--resume", f"runs/{RUN}")
    assert code == 0, err
    assert err.startswith(f"runs/{RUN}: lom-genesis-v2-towers, seed 0, 6 steps, {step + 1} of them done\n")
    assert_same_weights(Path(f"runs/{RUN}"), finished)
    assert list(Path("runs").iterdir()) == [Path(f"runs/{RUN}")]
    log = Path(f"runs/{RUN}/log.txt").read_text().splitlines()
    assert [entry.split(" ", 2)[2].split(",")[0].split(" is ")[0] for entry in log] == [
        f"runs/{RUN}: lom-genesis-v2-towers",
        f"stopped by {kind.name} after step {step + 1}",
        f"runs/{RUN}: lom-genesis-v2-towers",
        "evaluating ...",
        *(f"warning: the RMSE of the {pair} pair" for pair in ("orderless", "ordered")),  # after six steps
    ]


def test_a_finished_run_is_evaluated_again(fit, run_folder):
    (run_folder / "summary.json").unlink()
    weights = weights_of(run_folder)
    code, out, err = fit("--resume", run_folder)
    assert code == 0, err
    assert all(math.isfinite(Run(run_folder).read_json("summary.json")[key]) for key in FINITE)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in weights_of(run_folder).items())


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(fit, run_folder, finished):
    shutil.rmtree(run_folder / "checkpoints")
    code, _, err = fit("--resume", run_folder)
    assert code == 0, err
    assert_same_weights(run_folder, finished)
    assert [row["step"] for row in Run(run_folder).metrics()] == [2, 3, 4, 6]


@pytest.mark.parametrize("kind", STOP_SIGNALS)
def test_a_signal_during_the_evaluation_leaves_a_run_that_is_evaluated_again(kind, fit, tiny, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "summarise", lambda *_: os.kill(os.getpid(), kind))
        code, out, err = fit(*tiny)
    assert (code, out) == (128 + kind, "")
    assert err.splitlines()[-2:] == ["evaluating ...", f"stopped by {kind.name}"]
    code, _, err = fit("--resume", f"runs/{RUN}")
    assert code == 0, err
    assert Path(f"runs/{RUN}/summary.json").exists()


def test_one_process_at_a_time(fit, refused, run_folder):
    with Run(run_folder).locked():
        line = f"{run_folder} is in use by another process: stop it, or wait for its end"
        assert refused("--resume", run_folder) == line
    assert fit("--resume", run_folder)[0] == 0
    assert fit("--resume", run_folder)[0] == 0  # the first one has let go, within the same process


def test_other_data_at_the_same_path(fit, refused, tiny, towers, tmp_path):
    """A run is neither resumed nor loaded with them."""
    write_scenes("mine.h5", towers, source="tests", seed=3)
    assert fit(*tiny, "--data.path", "mine.h5")[0] == 0
    write_scenes("mine.h5", replace(towers, images=towers.images[::-1].copy()), source="tests", seed=3)
    other = "was trained on other images than those at its data path now: restore them, or train a new run"
    assert refused("--resume", f"runs/{RUN}") == f"runs/{RUN} {other}"
    with pytest.raises(UserError, match=other):
        load_run(f"runs/{RUN}")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(refused, run_folder, value):
    run = Run(run_folder)
    progress, weights, optimizer = run.load_checkpoint()
    name = next(name for name in weights if name.endswith("bias"))
    weights[name] = weights[name].fill_(value)
    run.save_checkpoint(progress, weights, optimizer)
    line = f"the checkpoint {run.checkpoints()[-1]} is damaged ({name} is NaN or infinite); remove it to go on from the"
    assert refused("--resume", run_folder).startswith(line)
    with pytest.raises(UserError, match="is NaN or infinite"):
        load_run(run_folder)


def test_a_damaged_checkpoint_can_be_removed(fit, run_folder, finished):
    last = Run(run_folder).checkpoints()[-1]
    shutil.rmtree(last)
    code, _, err = fit("--resume", run_folder)
    assert code == 0, err
    assert_same_weights(run_folder, finished)


def test_the_first_bad_number_ends_the_run(fit, tiny, monkeypatch, tmp_path):
    to_float, calls = trainer_module.to_float, []

    def spoilt(images):
        calls.append(1)
        return to_float(images) if len(calls) < 3 else torch.full(images.shape, math.nan)

    monkeypatch.setattr(trainer_module, "to_float", spoilt)
    code, out, err = fit(*tiny, *AT_ONCE)
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line == (
        "error: the loss is not finite: site orderless/x, orderless/o, ordered/x, ordered/s, ordered/z first became "
        "NaN or infinite in step 3; "
        f"the last good checkpoint is runs/{RUN}/checkpoints/step-00000002"
    )
    assert Path(f"runs/{RUN}/log.txt").read_text().rstrip().endswith(line.removeprefix("error: "))
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(Path(f"runs/{RUN}")).values())


# What it refuses: one line, exit code 2, no run folder.


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nope"], "there is no preset 'nope'; choose one of lom-genesis-v2-towers, "),
        (["--nope"], "Unrecognized options: --nope "),
        (["demo", "nope"], "Unrecognized options: nope "),
        (["--preset", "genesis-v2-towers"], "Unrecognized options: --preset, genesis-v2-towers "),
        (["--seed", "x"], "Error parsing --seed: invalid literal for int() with base 10: 'x' "),
        (["--seed", "-1"], "--seed is -1: it must be from 0 to 4294967295"),
        (["--devices", "0"], "--devices is 0: it must be from 1 to 256"),
        (["--devices", "-1"], "--devices is -1: it must be from 1 to 256"),
        (["--devices", "2", "--cuda-graph"], "--cuda-graph is for one GPU, not for 2 devices: leave "),
        (["--global-batch-size", "0"], "--global-batch-size is 0: it must be from 1 to 1000000000"),
        (["--accumulate", "0"], "--accumulate is 0: it must be from 1 to 1000000000"),
        (
            ["--global-batch-size", "5", "--devices", "2"],
            "--global-batch-size is 5: it must be a multiple of 2, the devices ",
        ),
        (
            ["--accumulate", "3", "--model.schedule.ordered-rendered", "None"],
            "--accumulate is 3: it must divide the batch of 4 scenes of each device",
        ),
        (["--accumulate", "2"], "--accumulate does not go with --model.schedule.ordered-rendered, which saves memory "),
        (
            ["--model.schedule.orderless-first", "0"],
            "--model.schedule.ordered-batch-size has no effect if both pairs train at once: pass ",
        ),
        (["--model.system", "lom"], "--model.system does not exist any more: name a preset of the system"),
        (["--model.num-slots", "1"], "--model.num-slots is 1: it must be from 2 to 64"),
        (["--model.num-slots", "0"], "--model.num-slots is 0: "),
        (["--model.num-slots", "-3"], "--model.num-slots is -3: "),
        (["--model.num-slots", "100000000"], "--model.num-slots is 100000000: "),
        (
            ["--model.orderless.encoder-width", "12"],
            "--model.orderless.encoder-width is 12: it must be a multiple of 8",
        ),
        (["--train.steps", "0"], "--train.steps is 0: it must be from 1 to 1000000000"),
        (["--train.steps", "-5"], "--train.steps is -5: it must be from 1 to 1000000000"),
        (["--train.batch-size", "0"], "--train.batch-size is 0: it must be from 1 to 1000000000"),
        (["--train.batch-size", "49"], "48 training images are fewer than the 49 of one step: lower the batch"),
        (["--model.schedule.ordered-batch-size", "49"], "48 training images are fewer than the 49 of one step: lower "),
        (["--train.batch-size", "25", "--devices", "2"], "48 training images are fewer than the 50 of "),
        (["--train.learning-rate", "nan"], "--train.learning-rate is nan: it must be a finite number above 0"),
        (["--model.geco.target-rmse", "0"], "--model.geco.target-rmse is 0.0: it must be a finite number above 0"),
        (
            ["--model.geco.target-rmse", "None", "--model.geco.target", "-0.36"],
            "the GECO target -0.36 cannot be reached: with image_scale 0.7 a perfect reconstruction has -0.356675 ",
        ),
        (
            ["--model.geco.target", "-0.36"],
            "--model.geco.target is -0.36 and --model.geco.target-rmse is 0.028: give one of them, and None for the ",
        ),
        (
            ["--model.geco.target-rmse", "None"],
            "--model.geco.target is None and --model.geco.target-rmse is None: give one of them, and None for the ",
        ),
        (["--data.path", "none.h5"], "no such file or folder: none.h5"),
        (
            ["--resume", "nowhere"],
            "--resume nowhere has its own configuration: with it only --devices, ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line(arguments, line, refused, tiny, data):
    if not arguments[0].startswith("-"):
        name, *arguments = arguments
        tiny = [name, *tiny]
    assert refused(*tiny, *arguments).startswith(line.format(data=data))


def test_a_runs_dir_that_cannot_be(refused, tiny, tmp_path):
    Path("file").write_text("mine")
    assert refused(*tiny, "--runs-dir", "file/runs") == "cannot write file/runs: Not a directory"


@pytest.mark.parametrize("path", sorted({config.data.path for config in PRESETS.values()} - {*EMBEDDED, "my_images"}))
def test_missing_data_sets_say_how_to_get_them(path, refused, tmp_path):
    config = next(config for config in PRESETS.values() if config.data.path == path)
    line = refused(config.preset)
    assert line.startswith(f"the data set is missing: {path}. ")
    for arguments in re.findall(r"python experiments/data.py ([^|]+) \|", line):
        command = cli.parse(Command, arguments.split(), prog="data.py", description="")
        assert command.out == Path(path) and path.startswith(f"data/{command.name}")
        assert command.size in (None, config.data.image_size)
    assert "data.py render" in line and ("data.py import" in line or "near" in path)
    assert line.endswith(" | or name your own with --data.path")


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
@pytest.mark.parametrize("path", ["mine.h5", "data/mine.h5", "data/objects-room.h5"])
def test_damaged_files_are_never_written_to(path, content, refused, tiny, tmp_path):
    Path("data").mkdir()
    Path(path).write_bytes(content)
    line = refused("lom-genesis-v2-objects-room", *tiny, "--data.path", path)
    assert line.startswith(f"cannot read {path}: not an HDF5 file, or truncated or damaged (")
    assert Path(path).read_bytes() == content
    assert [file for file in Path().rglob("*") if file.is_file()] == [Path(path)]


def test_a_truncated_file_is_never_written_to(refused, tiny, data, tmp_path):
    content = data.read_bytes()[: data.stat().st_size // 2]
    Path("mine.h5").write_bytes(content)
    assert refused(*tiny, "--data.path", "mine.h5").startswith("cannot read mine.h5: not an HDF5 file, or truncated")
    assert Path("mine.h5").read_bytes() == content


@pytest.mark.parametrize(
    ("images", "line"),
    [
        (np.zeros((8, 32, 32), np.uint8), "images in mine.h5 have shape (8, 32, 32); expected four axes"),
        (
            np.zeros((8, 3, 32, 32), np.uint8),
            "images in mine.h5 have 32 channels (shape (8, 3, 32, 32)); expected 1 or 3",
        ),
        (np.zeros((8, 32, 32, 4), np.uint8), "images in mine.h5 have 4 channels"),
        (np.zeros((8, 32, 32, 3), np.float32), "images in mine.h5 are float32; expected uint8, 0..255"),
        (np.zeros((8, 32, 32, 3), np.int64), "images in mine.h5 are int64; expected uint8, 0..255"),
        (np.zeros((0, 32, 32, 3), np.uint8), "images in mine.h5 are empty"),
    ],
    ids=lambda value: "x".join(map(str, value.shape)) + value.dtype.name if isinstance(value, np.ndarray) else "",
)
def test_images_that_do_not_fit(images, line, refused, tiny, tmp_path):
    with h5py.File("mine.h5", "w") as file:
        file["images"] = images
    assert refused(*tiny, "--data.path", "mine.h5").startswith(line)


@pytest.mark.parametrize("size", [16, 40, 144])
def test_sizes_that_no_model_has(size, refused, tiny, towers, tmp_path):
    Path("images").mkdir()
    for index in range(6):
        Image.fromarray(towers.images[index]).save(f"images/{index}.png")
    line = refused(*tiny, "--data.path", "images", "--data.image-size", size)
    assert line.startswith(
        f"images are {size}x{size}, but models need square ones of 32 to 128 pixels, a multiple of 16: "
    )


def test_a_folder_without_images(refused, tiny, tmp_path):
    Path("images").mkdir()
    assert refused(*tiny, "--data.path", "images").startswith("no images in images: expected files ending in .png")


def test_a_damaged_image(refused, tiny, tmp_path):
    Path("images").mkdir()
    Path("images/1.png").write_bytes(b"half")
    assert refused(*tiny, "--data.path", "images").startswith("cannot read image images/1.png (")


def test_data_without_scenes_to_train_on(refused, tiny, towers, tmp_path):
    write_scenes("mine.h5", replace(towers, splits={"test": range(64)}), source="tests", seed=3)
    assert refused(*tiny, "--data.path", "mine.h5") == 'towers has no split "train"; choose one of: test'


@pytest.mark.slow
def test_resume_on_another_number_of_devices_warns_of_another_batch(fit, run_folder):
    environment = json.loads((run_folder / "environment.json").read_text())
    assert environment["processes"] == 1
    (run_folder / "environment.json").write_text(json.dumps(environment | {"processes": 2}))
    line = "warning: a step takes 4 scenes, and took 8 on the 2 devices that the run began on: --global-batch-size 8"
    assert line in fit("--resume", run_folder)[2]
    assert "warning: a step" not in fit("--resume", run_folder, "--global-batch-size", "4")[2]


def test_a_run_that_cannot_be_resumed_keeps_its_metrics(refused, run_folder):
    environment = json.loads((run_folder / "environment.json").read_text())
    (run_folder / "environment.json").write_text(json.dumps(environment | {"processes": 0}))
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1000}\n')
    assert refused("--resume", run_folder).startswith(f"{run_folder}/environment.json cannot be read: ")
    assert (run_folder / "metrics.jsonl").read_text().endswith('{"step": 1000}\n')


def test_the_name_of_a_folder_does_not_reach_the_terminal(fit, tiny):
    code, out, err = fit(*tiny, "--runs-dir", "a\x1b[1mb")
    assert code == 0 and "\x1b" not in out + err and r"a\x1b[1mb/00000-" in out


def test_resume_needs_a_run(refused, tmp_path):
    Path("notes").mkdir()
    for name in ("notes", "nowhere"):
        line = refused("--resume", name)
        assert line == f"{name} is not a run folder: it has no config.json; name one like runs/00000-..."


@pytest.mark.parametrize(
    "option", [["--seed", "1"], ["--train.steps", "9"], ["--runs-dir", "x"], ["genesis-v2-towers"]]
)
def test_resume_takes_no_other_option(option, refused, run_folder):
    *first, second = (
        [["--resume", run_folder], option] if option[0].startswith("-") else [option, ["--resume", run_folder]]
    )
    line = refused(*first[0], *second)
    assert line == (
        f"--resume {run_folder} has its own configuration: with it only --devices, --global-batch-size, "
        "--accumulate, --compile, --cuda-graph and --systems may be given"
    )


def edited(run_folder, *place, value):
    config = json.loads((run_folder / "config.json").read_text())
    section = config
    for name in place[:-1]:
        section = section[name]
    section[place[-1]] = value
    (run_folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (("model", "slot_dim"), 20, "the checkpoint in {run} is of another architecture: at 'pairs."),
        (("model", "num_order_blocks"), 3, "the checkpoint in {run} is of another architecture: at 'pairs."),
        (
            ("model", "slot_prior"),
            "bag-of-words",
            "the checkpoint in {run} is of another architecture: at 'pairs.ordered.",
        ),
        (
            ("model", "orderless", "encoder"),
            "published",
            "the checkpoint in {run} is of another architecture: at 'pairs.",
        ),
        (("model", "kind"), "genesis-v2", "{run}/config.json: model was not written by this version: it differs in "),
        (("model", "num_slots"), 1, "{run}/config.json: model: num_slots is 1: "),
        (
            ("model", "kind"),
            "monet",
            "{run}/config.json: model: there is no system 'monet'; pass its class by systems=[",
        ),
        (("train", "steps"), "many", "{run}/config.json: train: steps is 'many', not of its type;"),
        (("train", "steps"), 0, "{run}/config.json: train: steps is 0: it must be from 1 to 1000000000"),
        (("train", "colour"), 1, "{run}/config.json: train was not written by this version: it differs in colour"),
        (("data", "path"), "gone.h5", "no such file or folder: gone.h5"),
    ],
    ids=str,
)
def test_a_configuration_of_another_run(place, value, line, refused, run_folder):
    edited(run_folder, *place, value=value)
    assert refused("--resume", run_folder).startswith(line.format(run=run_folder))


@pytest.mark.parametrize("content", [b"", b'{"preset": ', b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_configuration(content, refused, run_folder):
    (run_folder / "config.json").write_bytes(content)
    assert refused("--resume", run_folder).startswith(f"{run_folder}/config.json ")


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json"])
def test_a_truncated_checkpoint(name, refused, run_folder):
    last = Run(run_folder).checkpoints()[-1]
    (last / name).write_bytes((last / name).read_bytes()[:-20])
    line = refused("--resume", run_folder)
    assert line.startswith(f"the checkpoint {last} is damaged (")
    assert line.endswith("; remove it to go on from the one before")


# Disks that fill up.


def full_disk(path):
    path.write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_a_disk_that_fills_up_while_training(fit, tiny, finished, monkeypatch, tmp_path):
    save_file = checkpoints.save_file
    fill = lambda tensors, path: full_disk(path) if "00000004" in str(path) else save_file(tensors, path)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_file", fill)
        code, out, err = fit(*tiny)
    assert (code, out) == (2, "")
    folder = Path(f"runs/{RUN}")
    line = f"error: cannot write {folder}/checkpoints/step-00000004: the disk is full; make room, then resume or repeat"
    assert err.splitlines()[-1] == line
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert fit("--resume", folder)[0] == 0
    assert_same_weights(folder, finished)


def test_a_disk_that_is_full_from_the_start(refused, tiny, monkeypatch, tmp_path):
    def sync(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("runs").mkdir()
    monkeypatch.setattr(runs, "sync", sync)
    assert refused(*tiny) == f"cannot write runs/{RUN}: the disk is full; make room, then resume or repeat"


@pytest.mark.parametrize("room", [10_000, 200_000])
def test_files_that_really_cannot_grow(room, fit, tiny, tmp_path):
    """10 kB has room for the configuration alone, 200 kB for all but one of the pictures."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        code, _, err = fit(*tiny, "--model.slot-dim", "8", "--model.scene-dim", "8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert re.match(rf"error: cannot write runs/{RUN}/\S+: .*[Ff]ile too large", err.splitlines()[-1])
    assert not list(Path("runs").rglob("*.tmp"))
    for picture in Path("runs").rglob("*.png"):
        Image.open(picture).load()


# Whole processes.


def start(*arguments, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "experiments" / "fit.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for(process, words):
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"the process ended without a word of {words!r}")


def last_step(folder):
    """The last that a run has logged; a line may be half written."""
    lines = (folder / "metrics.jsonl").read_text().split("\n")[:-1] if (folder / "metrics.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


LONGER = ["--train.steps", "300", "--train.checkpoint-every", "7", "--train.log-every", "5"]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder of a longer run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    alone = start(*tiny, *LONGER, cwd=folder)
    alone.communicate()
    assert alone.returncode == 0
    return folder / "runs" / RUN


def untimed_metrics(folder):
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in Run(folder).metrics()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_run_stopped_at_random_moments_ends_in_the_same_weights(kind, whole, tiny, tmp_path):
    arguments, folder = [*tiny, *LONGER], tmp_path / "runs" / RUN
    for step in sorted(random.sample(range(10, 280), 4)):
        process = start(*arguments, cwd=tmp_path)
        while last_step(folder) < step:
            assert process.poll() is None, process.communicate()[1]  # it ended before it could be stopped
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(kind)
        process.communicate()
        assert process.returncode in (-kind, 128 + kind)
        arguments = ["--resume", folder]
    last = start("--resume", folder, cwd=tmp_path)
    out, err = last.communicate()
    assert last.returncode == 0, err
    assert_same_weights(folder, whole)
    stops = {row["step"] for row in Run(folder).metrics()} - {row["step"] for row in Run(whole).metrics()}
    assert [row for row in untimed_metrics(folder) if row["step"] not in stops] == untimed_metrics(whole)
    assert len(stops) <= (0 if kind == signal.SIGKILL else 4)  # a stop is logged
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000294", "step-00000300"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", STOP_SIGNALS)
def test_a_process_that_is_asked_to_stop(kind, tiny, tmp_path):
    process = start(*tiny, "--train.steps", "100000", "--train.preview-every", "0", cwd=tmp_path)
    wait_for(process, " steps")
    time.sleep(1)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + kind, "")
    assert err.splitlines()[-1].startswith(f"stopped by {kind.name} after step ")
    assert "Traceback" not in err
    [checkpoint] = Run(tmp_path / "runs" / RUN).checkpoints()[-1:]
    assert f"after step {int(checkpoint.name.removeprefix('step-'))}," in err


RANKS = """
import sys
from safetensors.torch import save_file
from experiments import cli
from experiments.fit import main
from pyro_lom.training.trainer import Trainer

fit = Trainer.fit

def fit_and_keep(self):
    fit(self)
    save_file({k: v.contiguous() for k, v in self.objective.state_dict().items()}, f"rank{self.fabric.global_rank}")

Trainer.fit = fit_and_keep
cli.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [AT_ONCE, []], ids=["at once", "in turn"])
def test_two_processes_train_one_model(schedule, tiny, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    command = [sys.executable, "ranks.py", *tiny, "--devices", "2", *schedule]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    [folder] = (tmp_path / "runs").iterdir()
    ranks = [load_file(tmp_path / f"rank{rank}") for rank in range(2)]
    saved = weights_of(folder)
    assert saved.keys() == ranks[0].keys() == ranks[1].keys()
    assert not [name for name in saved if not torch.equal(ranks[0][name], ranks[1][name])]
    assert not [name for name in saved if not torch.equal(ranks[0][name], saved[name])]
    assert [row["step"] for row in Run(folder).metrics()] in ([2, 4, 6], [2, 3, 4, 6])
    assert done.stderr.count(f"{RUN}: lom-genesis-v2-towers") == 1
    assert (folder / "summary.json").exists()
    assert Run(folder).load_checkpoint()[0].images_seen == 6 * 4 * 2


@pytest.mark.slow
def test_two_processes_stop_together(tiny, tmp_path):
    process = start(*tiny, "--devices", "2", "--train.steps", "100000", "--train.preview-every", "0", cwd=tmp_path)
    wait_for(process, " steps")
    time.sleep(1)
    process.terminate()  # the first process alone
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("stopped by SIGTERM after step ") == 1
    assert "Traceback" not in err
    assert Run(tmp_path / "runs" / RUN).checkpoints()


def torchrun(*arguments, cwd, restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), str(ROOT / "experiments" / "fit.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ranks_of(process):
    """Process ids of the ranks, the first one first, that the launcher `process` started, or was itself."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
            if parent == process.pid and b"fit.py" in command:
                found.append(int(folder.name))
    return sorted(found)


ENDLESS = ["--train.steps", "100000", "--train.preview-every", "0", "--train.checkpoint-every", "5"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fit.py", "torchrun"])
def test_a_rank_that_dies_ends_the_job(launcher, tiny, tmp_path):
    arguments = [*tiny, *ENDLESS, *AT_ONCE]
    if launcher == "torchrun":
        process = torchrun(*arguments, cwd=tmp_path)
    else:
        process = start(*arguments, "--devices", "2", cwd=tmp_path)
    wait_for(process, " steps")
    time.sleep(3)
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_a_restarted_job_goes_on_with_its_run(tiny, tmp_path):
    steps = ["--train.steps", "60", "--train.preview-every", "0", "--train.checkpoint-every", "5"]
    process = torchrun(*tiny, *steps, *AT_ONCE, cwd=tmp_path, restarts=2)
    wait_for(process, " steps")
    folder, deadline = tmp_path / "runs" / RUN, time.monotonic() + 120
    while len(Run(folder).checkpoints()) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [RUN]
    assert re.search(r"60 steps, \d+ of them done", (folder / "log.txt").read_text())
    steps = [row["step"] for row in Run(folder).metrics()]
    assert steps == sorted(set(steps)) and steps[-1] == 60


@pytest.mark.slow
def test_the_batch_of_a_step_stays_whatever_the_devices(tiny, tmp_path):
    for number, options in enumerate((["--devices", "1"], ["--devices", "2"], ["--devices", "1", "--accumulate", "2"])):
        process = start(
            *tiny, *options, "--global-batch-size", "8", "--model.schedule.ordered-rendered", "None", cwd=tmp_path
        )
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        [folder] = (tmp_path / "runs").glob(f"{number:05d}-*")
        assert Run(folder).load_checkpoint()[0].images_seen == 6 * 8
