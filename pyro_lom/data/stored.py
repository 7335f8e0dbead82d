"""Arrays in HDF5 files that are read from disk on indexing. Each worker process opens the file itself."""

import math
import mmap
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Shaped

from pyro_lom.data.self_contained import check_storage, open_hdf5, reading

IN_MEMORY = 1 << 30  # bytes; chunked arrays up to this size together are read into memory at once, for speed
_LARGEST_CACHE = 512 << 20  # bytes of chunks that are kept, since they contain parts of the next scenes too
_SMALLEST_CACHE = 8 << 20  # HDF5's default
_NUM_SLOTS = 10_007  # places for chunks in this cache; two chunks of one place replace each other


class MemoryMap(np.memmap):
    """A read-only memory map. Its pickle contains the file name and the position instead of the data."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        is_copy = isinstance(found, MemoryMap) and found._mmap is None
        return found.view(np.ndarray) if is_copy else found

    def __reduce__(self) -> tuple:
        if self._mmap is None or not self.flags.c_contiguous:
            return np.array(self).__reduce__()
        start = np.frombuffer(self._mmap, np.uint8).ctypes.data
        offset = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY + self.ctypes.data - start
        return _open_map, (str(self.filename), self.dtype, offset, self.shape)


class ChunkedArray:
    """The rows `rows` of a chunked, possibly compressed, array. They are read from disk when they are indexed.

    Indexing returns arrays in memory. Each process opens the file itself, even after a fork.
    """

    def __init__(self, path: Path, name: str, dtype: np.dtype, shape: tuple[int, ...], rows: range | None = None):
        self.path, self.name, self.dtype = path, name, dtype
        self.rows = range(shape[0]) if rows is None else rows
        self.shape = (len(self.rows), *shape[1:])
        self.ndim = len(shape)
        self._opened: tuple[int, h5py.Dataset] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Shaped[np.ndarray, "..."]:
        """Read rows; `index` is an integer, a slice, or an array of integers or of booleans."""
        is_range = isinstance(index, slice | int | np.integer)  # an array of all rows would take memory
        rows = self.rows[index] if is_range else np.arange(self.rows.start, self.rows.stop)[index]
        with reading(self.path):
            if not isinstance(rows, np.ndarray | range):
                return self._dataset[rows]
            if isinstance(rows, range) and len(rows) > 0 and rows.step == 1:
                return self._dataset[rows.start : rows.stop]
            found = np.empty((len(rows), *self.shape[1:]), self.dtype)
            for place, row in enumerate(rows):  # indexing by arrays in h5py is many times slower
                found[place] = self._dataset[int(row)]
            return found

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def narrowed(self, rows: slice) -> "ChunkedArray":
        """Return a view of some of the rows."""
        return ChunkedArray(self.path, self.name, self.dtype, self.shape, self.rows[rows])

    @property
    def _dataset(self) -> h5py.Dataset:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), _open_cached(open_hdf5(self.path), self.name)
        return self._opened[1]


def _open_cached(file: h5py.File, name: str) -> h5py.Dataset:
    """Open a data set so that HDF5 unpacks each chunk once when scenes are read in order, if memory suffices."""
    dataset = file[name]
    num_rows, *sides = dataset.chunks or dataset.shape
    lengths = [-(-length // side) * side for length, side in zip(dataset.shape[1:], sides, strict=True)]
    size = num_rows * math.prod(lengths) * dataset.dtype.itemsize
    if dataset.chunks is None or num_rows == 1 or size > _LARGEST_CACHE:
        return dataset
    del dataset  # an open data set keeps its cache
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_chunk_cache(_NUM_SLOTS, max(size, _SMALLEST_CACHE), 0.75)  # w0 = 0.75 is HDF5's default
    return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))


Array = np.ndarray | ChunkedArray


def stored_array(dataset: h5py.Dataset, path: Path, beside: Array | None = None) -> Array:
    """Return the dataset as an array: a memory map if contiguous, else in memory up to 1 GiB, else a `ChunkedArray`.

    Args:
        beside: another array of the file. If it is in memory, its size counts too.

    Raises:
        UserError: `check_storage` fails.
    """
    array, taken = array_on_disk(dataset, path), beside.nbytes if type(beside) is np.ndarray else 0
    is_small = math.prod(dataset.shape) * dataset.dtype.itemsize + taken <= IN_MEMORY
    return dataset[()] if isinstance(array, ChunkedArray) and is_small else array


def array_on_disk(dataset: h5py.Dataset, path: Path) -> MemoryMap | ChunkedArray:
    """Return the dataset as an array that stays on the disk: a memory map if contiguous, else a `ChunkedArray`.

    Raises:
        UserError: `check_storage` fails.
    """
    check_storage(dataset, path)
    offset = dataset.id.get_offset()
    if offset is not None and dataset.id.get_type().equal(
        h5py.h5t.py_create(dataset.dtype)
    ):  # bytes need no conversion
        return _open_map(path, dataset.dtype, offset, dataset.shape)
    return ChunkedArray(path, dataset.name, dataset.dtype, dataset.shape)


def _open_map(path: str | Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> MemoryMap:
    return MemoryMap(path, dtype, mode="r", offset=offset, shape=shape)
