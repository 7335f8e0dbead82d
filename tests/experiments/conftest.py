"""A small data set, options that make a run tiny, and the command as a person starts it, but in this process."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments import cli
from experiments.fit import main as fit_main
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.data.towers import make_towers
from pyro_lom.training.runs import Run

TINY = (
    "--train.steps 6 --train.batch-size 4 --train.log-every 2 --train.checkpoint-every 2 "
    "--model.num-slots 3 --model.decoder-width 8"
).split()
TINY_LOM = (
    "--model.orderless.encoder-width 8 --model.transformer-width 8 "
    "--model.schedule.orderless-first 0.5 --model.schedule.ordered-batch-size 4"
).split()


@pytest.fixture(scope="session")
def towers():
    """64 scenes: 48 to train on, 16 held out."""
    return replace(make_towers(64, seed=3), splits={"train": range(48), "test": range(48, 64)})


@pytest.fixture(scope="session")
def data(tmp_path_factory, towers):
    """Path of a file of them."""
    path = tmp_path_factory.mktemp("data") / "small.h5"
    write_scenes(path, towers, source="tests", seed=3)
    return path


@pytest.fixture(scope="session")
def tiny(data):
    """Options of a run of the demo that takes seconds."""
    return ["--data.path", str(data), *TINY, *TINY_LOM]


@pytest.fixture(scope="session")
def tiny_alone(data):
    """Options of a run of an orderless model alone that takes seconds."""
    return ["--data.path", str(data), *TINY, "--model.encoder-width", "8"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny):
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fit.py", *tiny])
        cli.run(fit_main)
    return folder / "runs" / "00000-lom-genesis-v2-towers-seed0"


@pytest.fixture(scope="session")
def alone(tmp_path_factory, tiny_alone):
    """The folder of a run of an orderless model alone."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["fit.py", "genesis-v2-towers", *tiny_alone])
        cli.run(fit_main)
    return folder / "runs" / "00000-genesis-v2-towers-seed0"


@pytest.fixture
def filled(finished, tmp_path):
    """`filled(part, number)` is the folder of a run that has this number as all weights of a part, and their digest."""

    def fill(part, number):
        run = Run(shutil.copytree(finished, tmp_path / "filled"))
        progress, weights, optimizer = run.load_checkpoint()
        changed = {name: torch.full_like(tensor, number) for name, tensor in weights.items() if part in name}
        assert changed
        run.save_checkpoint(progress, weights | changed, optimizer)
        return run.folder

    return fill


@pytest.fixture
def huge(filled):
    """The folder of a run whose decoders have weights of 1e38, with the right digest."""
    return filled(".decoder.", 1e38)


@pytest.fixture
def command(monkeypatch, tmp_path, capfd):
    """`command(main, *arguments)` is a command: its exit code, standard output and standard error; in `tmp_path`."""

    def run(main, *arguments):
        monkeypatch.setattr(sys, "argv", ["command.py", *map(str, arguments)])
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
def refusal(command):
    """`refusal(main, *arguments)` is the one line with which a command refuses them, having written nothing."""

    def run(main, *arguments):
        before = sorted(Path().rglob("*"))
        code, out, err = command(main, *arguments)
        lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
        assert (code, out, len(lines)) == (2, "", 1), err
        assert "Traceback" not in err
        assert sorted(Path().rglob("*")) == before
        return lines[0].removeprefix("error: ")

    return run


@pytest.fixture
def fit(monkeypatch, tmp_path, capfd):
    """`fit(*arguments)` is the command: its exit code, standard output and standard error.

    It runs in `tmp_path`, so that runs/ and data/ are there.
    """

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fit.py", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            cli.run(fit_main)
        except SystemExit as leaving:
            code = leaving.code
        return code, *capfd.readouterr()

    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def refused(fit):
    """`refused(*arguments)` is the one line with which the command refuses them: exit code 2, no run folder."""

    def run(*arguments):
        before = sorted(Path().rglob("*"))
        code, out, err = fit(*arguments)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert "Traceback" not in err
        assert sorted(Path().rglob("*")) == before
        return err.removeprefix("error: ").rstrip()

    return run
