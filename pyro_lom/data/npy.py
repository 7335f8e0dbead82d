"""Arrays of NumPy's .npy and .npz files, which may be damaged or hostile. They are read from the disk by rows.

Nothing is unpickled. The header of an array is checked before its content is read, and of a compressed array no more
than the requested rows are in memory.
"""

import math
import warnings
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped

from pyro_lom.data.pictures import reason_of
from pyro_lom.data.self_contained import limited_memory
from pyro_lom.errors import UserError

MAX_ROW = 512 << 20  # bytes of a scene
_MAX_MEMBERS = 10_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class NpyArray:
    """An array in a .npy file, or in a member of an .npz file. Slices of increasing rows are read fast.

    Raises:
        UserError: the array is pickled, damaged, or stored column by column. The message names it.
    """

    def __init__(self, path: Path, member: str | None = None):
        self.path, self._member = path, member
        self.place = f"{member.removesuffix('.npy')} in {path}" if member else str(path)
        self._stream: IO[bytes] | None = None
        with self._reading():
            self._open()

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Shaped[np.ndarray, "rows ..."]:
        """Read successive rows."""
        first, stop, _ = rows.indices(len(self))
        number = max(stop - first, 0)
        with self._reading():
            start = self._start + first * self._row_bytes
            if self._stream.tell() != start:
                self._stream.seek(start)  # in a compressed member, this unpacks what comes before
            content = self._stream.read(number * self._row_bytes)
            if len(content) < number * self._row_bytes:
                raise EOFError(f"it ends in row {first + len(content) // max(self._row_bytes, 1)} of {len(self)}")
        return np.frombuffer(content, self.dtype).reshape(number, *self.shape[1:])

    def _open(self) -> None:
        if self._member is None:
            self._stream = self.path.open("rb")
        else:
            archive = zipfile.ZipFile(self.path)
            if archive.getinfo(self._member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(f"{self.place} is compressed by another method: save it with numpy.savez_compressed")
            self._stream = archive.open(self._member)
        weakref.finalize(self, self._stream.close)
        version = np.lib.format.read_magic(self._stream)
        if version not in _HEADERS:
            raise UserError(f"{self.place} has fields; expected an array of numbers")
        self.shape, is_by_column, self.dtype = _HEADERS[version](self._stream, max_header_size=10_000)
        if self.dtype.hasobject:
            raise UserError(f"{self.place} is pickled, which may run code, and is not read: save it as numbers")
        if self.dtype.kind not in "buif":
            raise UserError(f"{self.place} is {self.dtype}; expected an array of numbers")
        if is_by_column and self.ndim > 1:
            raise UserError(f"{self.place} is stored column by column: save numpy.ascontiguousarray of it")
        self._start = self._stream.tell()
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._row_bytes > MAX_ROW:
            raise UserError(f"{self.place} has the shape {self.shape}: a scene may take {MAX_ROW >> 20} MiB at most")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with reading_npy(self.place):
            yield


def npz_arrays(path: Path) -> tuple[dict[str, NpyArray], list[str]]:
    """Open the arrays of an .npz file, and return them by name, with one line about each that is not read.

    Raises:
        UserError: the file is damaged, or contains no array of numbers.
    """
    with reading_npy(str(path)), zipfile.ZipFile(path) as archive:
        members = [member.filename for member in archive.infolist()]
    if len(members) > _MAX_MEMBERS:
        raise UserError(f"{path} contains {len(members)} files; expected at most {_MAX_MEMBERS}: store single arrays")
    arrays, notes = {}, []
    for member in members:
        if member.endswith(".npy"):
            try:
                arrays[member.removesuffix(".npy")] = NpyArray(path, member)
            except UserError as reason:
                notes.append(str(reason))
    if not arrays:
        raise UserError(notes[0] if notes else f"{path} contains no arrays: save them with numpy.savez")
    return arrays, notes


@contextmanager
def reading_npy(place: str) -> Iterator[None]:
    """Convert errors of reading into UserErrors, and limit the memory that is allocated."""
    try:
        with limited_memory(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd headers
            yield
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"cannot read {place}: it takes more memory than a data file may; make it smaller") from error
    except Exception as error:  # numpy and zipfile raise almost any on damage
        raise UserError(f"cannot read {place}: truncated or damaged ({reason_of(error)}); fetch it again") from error
