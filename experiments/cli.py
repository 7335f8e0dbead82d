"""Code that all commands share: options from dataclasses, errors in one line, exit codes.

Exit codes: 0 success; 1 failure of the program; 2 wrong options, data or files; 128 + N stopped by signal N.
"""

import contextlib
import errno
import hashlib
import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import tyro
from tqdm import tqdm

from pyro_lom.errors import UserError, printable
from pyro_lom.files import open_own, replacing
from pyro_lom.training.non_finite import NonFiniteLoss
from pyro_lom.training.signals import STOP_SIGNALS, handling
from pyro_lom.training.trainer import Interrupted

_LONGEST_NAME, _LONGEST_PATH = 255, 4000  # bytes
_NO_MEMORY = "allocate memory|could not create a (primitive|memory)|bad_alloc"  # of torch, oneDNN and C++
_LARGEST = 1 << 28  # bytes of an output in Markdown or HTML


def parse(kind: Any, arguments: list[str], *, default: Any = None, prog: str, description: str) -> Any:
    """Parse options into the dataclass `kind`, or into one of a union of dataclasses (subcommands).

    Raises:
        UserError: an option is unknown or has an invalid value, or an argument is not text, or is longer than
            a path can be.
    """
    for argument in arguments:
        if re.search(r"[\x00\ud800-\udfff]", argument):  # surrogates are bytes that are not UTF-8
            raise UserError(f"the argument {argument!r} is not UTF-8, or contains NUL: rename what it names")
        encoded = os.fsencode(argument)
        if len(encoded) > _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
            raise UserError(f"the argument {argument} is longer than a name can be: shorten it")
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


def check_output(path: Path | None, option: str = "--output", *, suffix: str = "", mark: str | None = None) -> None:
    """Check the name of an output before anything is computed. No file of the user is replaced.

    Args:
        suffix: the end of the names of such outputs.
        mark: text in the first megabyte of every such output. Only a file with this text is replaced. By default, only
            a file that `write_signed` or `sign` signed is replaced, unless it was edited.

    Raises:
        UserError: the name has another suffix, or its folder does not exist, or a file exists there that this command
            did not write.
    """
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"{option} {path}: name a file in a folder that exists")
    if not path.name.endswith(suffix):
        raise UserError(f"{option} {path}: name a file that ends in {suffix}")
    if os.path.lexists(path) and not (_is_signed(path) if mark is None else _contains(path, mark.encode())):
        raise UserError(
            f"{option} {path}: a file exists there that this command did not write, or that was edited: rename it, or "
            "name another"
        )


def write_signed(path: Path, text: str) -> None:
    """Write Markdown or HTML that `check_output` recognises."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode() + _signature(text.encode()))


def sign(path: Path) -> None:
    """Add a line to a picture by which `check_output` recognises it unless it was edited. Programs ignore the line."""
    content = path.read_bytes()
    with replacing(path) as temporary:
        temporary.write_bytes(content + _signature(content))


def _signature(text: bytes) -> bytes:
    return f"<!-- pyro_lom {hashlib.sha256(text).hexdigest()[:16]} -->\n".encode()


def _is_signed(path: Path) -> bool:
    try:
        with open_own(path) as file:
            content = file.read(_LARGEST)
    except OSError:
        return False
    text = content[: -len(_signature(b""))]
    return content == text + _signature(text)


def _contains(path: Path, mark: bytes) -> bool:
    try:
        with open_own(path) as file:
            return mark in file.read(2**20)
    except OSError:
        return False


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


def run(main: Callable[[list[str]], None], *, saves_memory: str = "sizes and numbers (see --help)") -> None:
    """Run a command's `main` on the process's arguments; print an error in one line and exit with its code.

    `saves_memory` names the options of the command that determine how much memory it uses.
    """
    warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing", category=FutureWarning)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # None if it was closed
    sys.stderr = _Lenient(sys.stderr or open(os.devnull, "w"))
    sys.stdout.reconfigure(errors="backslashreplace")  # a name may have letters that the terminal lacks, as on stderr
    try:
        with handling(_interrupt):
            main(sys.argv[1:])
            sys.stdout.flush()
    except UserError as error:
        _leave(str(error), 2)
    except NonFiniteLoss as error:
        _leave(str(error), 1)
    except Interrupted as stop:
        _leave(str(stop), 128 + stop.signal_number)
    except (MemoryError, RuntimeError) as error:  # on the CPU, torch raises a plain RuntimeError
        if "Symlink loop" in str(error):
            _leave(f"{error}: name something else", 2)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not re.search(_NO_MEMORY, str(error)):
            raise
        _leave(f"out of memory: lower {saves_memory}", 2)
    except KeyboardInterrupt as stop:  # outside of training
        number = stop.args[0] if stop.args else signal.SIGINT
        _leave(f"stopped by {signal.Signals(number).name}", 128 + number)
    except BrokenPipeError:  # the reader has closed the pipe: `fit.py --dry-run | head`
        _drop_output()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        _drop_output()
        _leave("cannot write what is printed: the disk is full; make room, then repeat", 2)


class _Lenient:
    """A stream for stderr that drops what cannot be written: a full disk there must not stop a training."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    _ignore_signals()  # while the command ends
    raise KeyboardInterrupt(number)  # so that temporary files are removed


def _ignore_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _leave(line: str, code: int) -> None:
    if code > 128:
        _ignore_signals()
    print(printable(f"error: {line}" if code < 128 else line), file=sys.stderr)
    sys.exit(code)
