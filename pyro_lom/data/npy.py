"""Arrays of NumPy's .npy and .npz files, which may be damaged or hostile. They are read from the disk by rows.

Nothing is unpickled. The header of an array is checked before its content is read, and of a compressed array no more
than the requested rows are in memory.
"""

import math
import os
import warnings
import weakref
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Shaped

from pyro_lom.data.pictures import reason_of
from pyro_lom.data.self_contained import limited_memory
from pyro_lom.errors import UserError, printable

MAX_ROW = 256 << 20  # bytes of a scene
_MAX_MEMBERS, _MAX_AXES = 100, 8
_ENCRYPTED = 1  # flag of a member
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs in names of fields alone, which are refused
}


class NotNumbers(UserError):
    """Raised for an array that is not damaged and contains something else than numbers, such as a pickled one."""


class NpyArray:
    """An array in a .npy file, or in a member of an .npz file. Slices of increasing rows are read fast.

    Args:
        member: name of the array's file in `archive`, the opened .npz file. The array remains readable after the
            archive is closed.

    Raises:
        UserError: the array is pickled, damaged, too large, or stored column by column. The message names it.
    """

    def __init__(self, path: Path, member: str | None = None, archive: zipfile.ZipFile | None = None):
        self.path, self._member = path, member
        self.place = f"{member.removesuffix('.npy')} in {path}" if member else str(path)
        self._stream: IO[bytes] | None = None
        with self._reading():
            self._open(archive)

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

    def _open(self, archive: zipfile.ZipFile | None) -> None:
        if archive is None:
            self._stream = self.path.open("rb")
            size = os.fstat(self._stream.fileno()).st_size
        else:
            entry = archive.getinfo(self._member)
            if entry.flag_bits & _ENCRYPTED or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise UserError(
                    f"{self.place} is encrypted, or compressed by another method: save it with numpy.savez_compressed"
                )
            self._stream, size = archive.open(entry), entry.file_size
        weakref.finalize(self, self._stream.close)
        self.shape, is_by_column, self.dtype = self._header()
        if self.dtype.hasobject:
            raise NotNumbers(f"{self.place} is pickled, which may run code, and is not read: save it as numbers")
        if self.dtype.kind not in "buif":
            raise NotNumbers(f"{self.place} is {str(self.dtype)[:200]}; expected an array of numbers")
        if is_by_column and self.ndim > 1:
            raise UserError(f"{self.place} is stored column by column: save numpy.ascontiguousarray of it")
        self._start = self._stream.tell()
        self._check_shape(size - self._start)

    def _header(self) -> tuple[tuple[int, ...], bool, np.dtype]:
        try:
            version = np.lib.format.read_magic(self._stream)
            if version not in _HEADERS:
                found = ".".join(map(str, version))
                raise UserError(
                    f"{self.place} has version {found} of NumPy's format; expected 1.0 to 3.0: save it again"
                )
            return _HEADERS[version](self._stream, max_header_size=10_000)
        except (UserError, MemoryError, OSError):
            raise
        except Exception as error:  # numpy's messages contain the bytes
            raise UserError(f"{self.place}: its header is truncated or damaged; fetch it again") from error

    def _check_shape(self, num_bytes: int) -> None:
        """Check the shape in the header against the `num_bytes` that follow it."""
        if self.ndim > _MAX_AXES or not all(0 <= length < 2**31 for length in self.shape):
            raise UserError(
                f"{self.place} has the shape {printable(str(self.shape))[:200]}; expected at most {_MAX_AXES} axes of "
                "0 to 2147483647: save it again"
            )
        self.shape = tuple(map(int, self.shape))  # a header may contain True
        self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self._row_bytes > MAX_ROW:
            raise UserError(f"{self.place} has the shape {self.shape}: a scene may take {MAX_ROW >> 20} MiB at most")
        if (expected := math.prod(self.shape) * self.dtype.itemsize) > num_bytes:
            raise UserError(
                f"{self.place} has the shape {self.shape}, which takes {expected} bytes, and contains {num_bytes}: "
                "it is truncated or damaged; fetch it again"
            )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with reading_npy(self.place):
            yield


def npz_arrays(path: Path) -> tuple[dict[str, NpyArray], dict[str, UserError]]:
    """Open the arrays of an .npz file. Return them by name, and the errors of those that cannot be read by name.

    Raises:
        UserError: the file is damaged, or contains no array of numbers.
    """
    arrays, refused = {}, {}
    with reading_npy(str(path)), zipfile.ZipFile(path) as archive:
        members = Counter(member.filename for member in archive.infolist())
        if (found := members.total()) > _MAX_MEMBERS:
            raise UserError(f"{path} contains {found} files; expected at most {_MAX_MEMBERS}: store single arrays")
        if doubled := [member for member, number in members.items() if number > 1]:
            raise UserError(f"{path} contains two files {printable(doubled[0])}: save it again")
        for member in members:
            if member.endswith(".npy"):
                name = member.removesuffix(".npy")
                try:
                    arrays[name] = NpyArray(path, member, archive)
                except UserError as error:
                    refused[name] = error
    if not arrays:
        raise next(iter(refused.values()), UserError(f"{path} contains no arrays: save them with numpy.savez"))
    return arrays, refused


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
