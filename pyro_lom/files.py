"""Writing files: no half-written file remains, and an error names the file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from pyro_lom.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file and rename it to `path` at the end: `path` is never half-written.

    Raises:
        UserError: the disk is full, or the file cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an error of writing, such as a full disk, into a UserError that names `path`."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a SafetensorError has no errno, only a message
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full; make room and resume the run" if full else getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}") from error
