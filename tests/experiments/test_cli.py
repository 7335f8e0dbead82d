"""Commands tell a mistake in one line and leave with the right code: 0, 1, 2, or 128 + a signal."""

import errno
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import cli
from experiments.fit import Arguments
from experiments.systems import preset
from pyro_lom.errors import UserError
from pyro_lom.training.non_finite import NonFiniteLoss
from pyro_lom.training.runs import Run
from pyro_lom.training.trainer import Interrupted

ROOT = Path(__file__).parents[2]
FIT = ROOT / "experiments" / "fit.py"
COMMANDS = "ablate benchmark data evaluate fit interpolate report retrieve sample".split()


@dataclass(frozen=True)
class Inner:
    width: int = 3


@dataclass(frozen=True)
class Options:
    steps: int = 5
    rate: float | None = None
    inner: Inner = field(default_factory=Inner)


def parse(*arguments, kind=Options, **options):
    return cli.parse(kind, list(arguments), prog="command.py", description="What it does.", **options)


@pytest.mark.parametrize("argument", ["y" * 256, "a/" + "y" * 300 + "/b", "a/" * 2001, "\u00e9" * 128])
def test_arguments_that_no_path_can_have(argument):
    with pytest.raises(UserError, match="is longer than a name can be: shorten it$"):
        parse("--rate", argument)


def test_a_loop_of_links(command, tmp_path):
    from experiments.benchmark import main

    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    code, out, err = command(main, "--systems", "lom-genesis-v2", "--compare", tmp_path / "loop")
    assert (code, out) == (2, "") and err.startswith(f"error: {tmp_path}/loop cannot be read: ")
    code, out, err = command(main, "--compare", tmp_path / "loop", "--json", "rows.json")
    assert code == 2 and err.count("\n") == 1


def test_options_are_a_dataclass():
    assert parse() == Options()
    assert parse("--steps", "7", "--inner.width", "4") == Options(steps=7, inner=Inner(4))
    assert parse("--rate", "0.5", default=Options(steps=9)) == Options(steps=9, rate=0.5)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--colour", "red"], "Unrecognized options: --colour, red"),
        (["--inner.height", "3"], "Unrecognized options: --inner.height, 3"),
        (["word"], "Unrecognized options: word"),
        (["--steps", "many"], "Error parsing --steps: invalid literal for int() with base 10: 'many'"),
        (["--steps", "1.5"], "Error parsing --steps: invalid literal for int() with base 10: '1.5'"),
        (["--steps"], "Missing value for argument '--steps'. Expected 1 values."),
        (
            ["--rate", "fast"],
            "Error parsing --rate: no type matching {None}|FLOAT could be instantiated from ['fast'].",
        ),
    ],
)
@pytest.mark.parametrize("columns", [40, 200])
def test_a_mistake_is_one_line(arguments, line, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(UserError) as refusal:
        parse(*arguments)
    assert str(refusal.value) == f"{line} (see command.py --help)"
    assert capsys.readouterr() == ("", "")


def test_choices_are_listed(tmp_path):
    default = Arguments(preset("demo"))
    with pytest.raises(
        UserError, match="^invalid choice 'sudden' for argument '--train.decay'. Expected one of .'none', "
    ):
        parse("--train.decay", "sudden", kind=Arguments[type(default.config.model)], default=default)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--steps", "7"], None),
        (["--steps", "7", "--systems", "mine"], "mine"),
        (["--systems=mine", "--steps", "7"], "mine"),
        (["--systems"], None),
    ],
)
def test_an_option_is_found_before_the_others_are_known(arguments, value):
    assert cli.value_of("--systems", arguments) == value


def test_help_is_printed_and_leaves(capsys):
    with pytest.raises(SystemExit) as leaving:
        parse("--help")
    assert leaving.value.code in (0, None)
    assert "What it does." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("steps is 0"), 2, "error: steps is 0\n"),
        (NonFiniteLoss("site z"), 1, "error: site z\n"),
        (
            Interrupted(signal.SIGTERM, 5, Run(Path("runs/7"))),
            143,
            "stopped by SIGTERM after step 5, and saved; --resume runs/7 goes on from there\n",
        ),
        (
            Interrupted(signal.SIGINT, 5, Run(Path("runs/7"))),
            130,
            "stopped by SIGINT after step 5, and saved; --resume runs/7 goes on from there\n",
        ),
        (KeyboardInterrupt(), 130, "stopped by SIGINT\n"),
    ],
)
def test_exit_codes(raised, code, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command.py"])

    def main(arguments):
        raise raised

    with pytest.raises(SystemExit) as leaving:
        cli.run(main)
    assert leaving.value.code == code
    assert capsys.readouterr() == ("", line)


def test_a_second_signal_does_not_disturb_the_end(monkeypatch, capsys):
    def main(arguments):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["command.py"])
    with pytest.raises(SystemExit) as leaving:
        cli.run(main)
    signal.raise_signal(signal.SIGTERM)
    assert (leaving.value.code, capsys.readouterr()) == (143, ("", "stopped by SIGTERM\n"))


def test_a_command_that_is_done_returns(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command.py", "one", "two"])
    told = []
    cli.run(told.extend)
    assert told == ["one", "two"]


@pytest.mark.parametrize("allocate", [lambda _: torch.empty(2**50), lambda _: np.empty(2**50)], ids=["torch", "numpy"])
def test_out_of_memory(allocate, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command.py"])
    with pytest.raises(SystemExit) as leaving:
        cli.run(allocate, saves_memory="--width or --depth")
    assert leaving.value.code == 2
    assert capsys.readouterr() == ("", "error: out of memory: lower --width or --depth\n")


def test_out_of_memory_within_a_library(monkeypatch, capsys):
    def create(arguments):
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(sys, "argv", ["command.py"])
    with pytest.raises(SystemExit):
        cli.run(create, saves_memory="--width")
    assert capsys.readouterr() == ("", "error: out of memory: lower --width\n")


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self):
        self.write("")


def test_stderr_that_is_full_stops_nothing(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command.py"])
    monkeypatch.setattr(sys, "stderr", Full())
    done = []
    cli.run(lambda arguments: (print("note", file=sys.stderr), sys.stderr.flush(), done.append(1)))
    assert done == [1]


def test_a_failure_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["command.py"])
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda arguments: 1 / 0)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        cli.run(lambda arguments: torch.ones(2, 3) @ torch.ones(2, 3))


# The file itself, as a process.


def command(*arguments, python=(sys.executable,), file=FIT, **options):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | options.pop("env", {})
    full = [*python, str(file), *arguments]
    return subprocess.run(full, capture_output=True, text=True, env=environment, timeout=120, **options)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("path", "missing"), [("", "experiments"), (str(ROOT), "")])
def test_uninstalled_it_says_so(path, missing, name, tmp_path):
    bare = command(
        python=(sys.executable, "-S"),  # no installed packages
        file=FIT.with_name(f"{name}.py"),
        env={"PYTHONPATH": path},
        cwd=tmp_path,
    )
    assert (bare.returncode, bare.stdout) == (2, "")
    assert bare.stderr.startswith(f"error: {missing}") and bare.stderr.count("\n") == 1
    assert bare.stderr.endswith(" is not installed: run pip install -e . in the project's folder\n")


@pytest.mark.parametrize(
    ("redirected", "code", "err"),
    [
        (">/dev/full", 2, "error: cannot write what is printed: the disk is full; make room, then repeat\n"),
        pytest.param("2>/dev/full", 0, "", marks=pytest.mark.slow),
        pytest.param(">&-", 0, "", marks=pytest.mark.slow),
        (">&- 2>&- <&-", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(redirected, code, err, tmp_path):
    line = f"'{sys.executable}' '{FIT}' --dry-run {redirected}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert (shell.returncode, shell.stderr) == (code, err)


@pytest.mark.slow
def test_a_reader_may_leave_early(tmp_path):
    line = f"'{sys.executable}' '{FIT}' --dry-run | true; echo ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert (shell.stdout, shell.stderr) == ("141\n", "")
