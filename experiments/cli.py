"""What every command does alike: options from dataclasses, mistakes told in one line, exit codes.

Exit codes: 0 done; 1 a failure of ours; 2 a mistake of the user's; 128 + the signal's number when stopped by one.
"""

import contextlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tyro
from tqdm import tqdm

from pyro_lom.errors import UserError
from pyro_lom.trainer import Interrupted, NonFiniteLoss


def parse(kind: Any, arguments: list[str], *, default: Any = None, prog: str, description: str) -> Any:
    """Options as the dataclass `kind`, or as one of the dataclasses of a union of subcommands.

    Raises:
        UserError: an option is unknown or has a value that does not fit.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            options = {} if default is None else {"default": default}
            return tyro.cli(kind, args=arguments, prog=prog, description=description, **options)
    except SystemExit as leaving:
        if leaving.code in (0, None):  # --help
            raise
        raise UserError(f"{_one_line(said.getvalue())} (see {prog} --help)") from None


def progress(steps: range, what: str) -> tqdm:
    """A bar over batches with the time left, gone when done; none for a single one, or where nobody watches."""
    disable = True if len(steps) == 1 else None
    return tqdm(steps, desc=what, leave=False, disable=disable, unit="batch", dynamic_ncols=True)


def check_output(path: Path | None, option: str = "--output") -> None:
    """Refuse a file to write that has no place, before anything is computed.

    Raises:
        UserError: `path` is a folder, or is in none that is there.
    """
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise UserError(f"{option} {path}: name a file in a folder that is there")


def _one_line(box: str) -> str:
    """tyro draws a box with a title, the complaint, and then advice; keep the complaint."""
    lines = [re.sub(r"[^\x20-\x7e]", "", re.sub(r"\x1b\[[0-9;]*m", "", line)).strip() for line in box.splitlines()]
    lines = [line for line in lines if line.strip("-")]
    complaint = []
    for line in lines[1:]:
        if complaint and re.match(r"(Perhaps|Similar|For full|Argument helptext|in )", line):
            break
        complaint.append(line)
    return " ".join(complaint).partition(" Got errors:")[0] or "the options do not fit"


def run(main: Callable[[list[str]], None]) -> None:
    """Run a command's `main` on the process's arguments, and leave with the right exit code."""
    warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
    try:
        main(sys.argv[1:])
    except UserError as error:
        _leave(str(error), 2)
    except NonFiniteLoss as error:
        _leave(str(error), 1)
    except Interrupted as stop:
        _leave(str(stop), 128 + stop.signal_number)
    except (MemoryError, RuntimeError) as error:  # torch's own is a RuntimeError, on the CPU of no class of its own
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        _leave("out of memory: take smaller batches, images or networks (see --help)", 2)
    except KeyboardInterrupt:  # outside of training
        _leave("stopped by SIGINT", 128 + signal.SIGINT)
    except BrokenPipeError:  # who read our output has gone: `fit.py --dry-run | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _leave(line: str, code: int) -> None:
    print(f"error: {line}" if code < 128 else line, file=sys.stderr)
    sys.exit(code)
