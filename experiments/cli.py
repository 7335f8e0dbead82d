"""Code that all commands share: options from dataclasses, errors in one line, exit codes.

Exit codes: 0 success; 1 failure of the program; 2 wrong options, data or files; 128 + N stopped by signal N.
"""

import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from pyro_lom.errors import UserError
from pyro_lom.training.non_finite import NonFiniteLoss
from pyro_lom.training.trainer import Interrupted


def parse(kind: Any, arguments: list[str], *, default: Any = None, prog: str, description: str) -> Any:
    """Parse options into the dataclass `kind`, or into one of a union of dataclasses (subcommands).

    Raises:
        UserError: an option is unknown or has an invalid value.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            options = {} if default is None else {"default": default, "config": (tyro.conf.AvoidSubcommands,)}
            return tyro.cli(kind, args=arguments, prog=prog, description=description, **options)
    except SystemExit as leaving:
        if leaving.code in (0, None):  # --help
            raise
        raise UserError(f"{_one_line(printed.getvalue())} (see {prog} --help)") from None


def value_of(option: str, arguments: list[str]) -> str | None:
    """Return the value of `option`, or None if it is not given; for an option that defines further options."""
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else following
    return None


def progress(steps: Sequence, what: str) -> tqdm:
    """Return a progress bar over batches; it is disabled for a single batch and if stderr is not a terminal."""
    disable = True if len(steps) == 1 else None
    return tqdm(steps, desc=what, leave=False, disable=disable, unit="batch", dynamic_ncols=True)


def check_output(path: Path | None, option: str = "--output") -> None:
    """Raise UserError if the file `path` cannot be written, because it is a folder or its folder does not exist."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"{option} {path}: name a file in a folder that exists")


def _one_line(box: str) -> str:
    """Return the error message from tyro's box, which has a title, the message, and then advice."""
    lines = [re.sub(r"[^\x20-\x7e]", "", re.sub(r"\x1b\[[0-9;]*m", "", line)).strip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip("-")]
    complaint = []
    for line in lines[1:]:
        if complaint and re.match(r"(Perhaps|Similar|For full|Argument helptext|in )", line):
            break
        complaint.append(line)
    return " ".join(complaint).partition(" Got errors:")[0] or "the options do not fit"


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main` on the process's arguments; print an error in one line and exit with its code."""
    warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
    try:
        main(sys.argv[1:])
    except UserError as error:
        _leave(str(error), 2)
    except NonFiniteLoss as error:
        _leave(str(error), 1)
    except Interrupted as stop:
        _leave(str(stop), 128 + stop.signal_number)
    except (MemoryError, RuntimeError) as error:  # on the CPU, torch raises a plain RuntimeError
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        _leave("out of memory: take smaller batches, images or networks (see --help)", 2)
    except KeyboardInterrupt:  # outside of training
        _leave("stopped by SIGINT", 128 + signal.SIGINT)
    except BrokenPipeError:  # the reader has closed the pipe: `fit.py --dry-run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _leave(line: str, code: int) -> None:
    print(f"error: {line}" if code < 128 else line, file=sys.stderr)
    sys.exit(code)
