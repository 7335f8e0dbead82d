"""Reading and writing of files: links are not followed, pipes are not waited for, no half-written file remains."""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from pyro_lom.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new, empty file next to `path`, and rename it to `path` at the end.

    `path` is never half-written, and a symbolic link at `path` is replaced instead of followed. The new file has a
    random name, so it replaces no file of the user. A file that a killed process left behind is removed by the next
    call for the same `path`.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    with writing(path):
        _remove_leftovers(path)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with suppress(OSError):  # some network file systems have no locks, and keep leftovers
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an error of writing, such as a full disk, into a UserError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a SafetensorError has no errno, only a message
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = (
            "the disk is full; make room, then resume or repeat" if full else getattr(error, "strerror", None) or error
        )
        raise UserError(f"cannot write {path}: {reason}") from error


def open_own(path: Path, mode: str = "rb") -> IO:
    """Open a file in a folder that belongs to this program, such as a run folder, as `open` does.

    Raises:
        OSError: the file cannot be opened, or is a symbolic link, a folder, a pipe or a device. Such an entry was put
            there by someone else, so it is neither read nor written, and a pipe is not waited for.
    """
    file = open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not an ordinary file")
    return file


def read_own(path: Path, largest: int) -> bytes:
    """Return the content of a file that `open_own` opens.

    Raises:
        OSError: as `open_own`.
        ValueError: the file has more than `largest` bytes.
    """
    with open_own(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > largest:
            raise ValueError(f"it has {size} bytes")
        return file.read()


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `replacing(path)` that no living process holds."""
    temporary = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{8}\.partial")
    for name in filter(temporary.fullmatch, os.listdir(path.parent)):
        with suppress(OSError), open_own(path.with_name(name)) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.with_name(name).unlink()
