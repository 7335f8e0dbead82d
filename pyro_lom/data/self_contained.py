"""Opening of HDF5 files, which may be damaged or hostile: a file contributes its own bytes or is refused.

HDF5 follows links to other files, reads arrays from other files, unpacks a few bytes to gigabytes, and waits for pipes.
The functions here refuse all of this. A virtual data set may combine files of its own folder.
"""

import math
import os
import re
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import h5py

from pyro_lom.data.pictures import reason_of
from pyro_lom.errors import UserError

_MAX_MEMORY = 3 << 29  # bytes that reading may allocate: 1 GiB of arrays, and the chunk that HDF5 unpacks
_MAX_CHUNK = 256 << 20  # bytes; HDF5 unpacks a whole chunk to read one scene
_MAX_SOURCES = 2048  # pieces of a virtual data set
_MAX_OBJECTS, _MAX_DEPTH = 10_000, 16  # visiting a thousand nested groups takes HDF5 ten seconds
_DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError)  # h5py raises any of these
_limiting = threading.RLock()


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        UserError: the file is missing, no HDF5 file or damaged, or contains a link to another file.
    """
    with reading(path):
        if not path.is_file():  # opening a pipe would block
            raise UserError(f"cannot read {path}: no such file, or not an ordinary one; name an HDF5 file")
        file = h5py.File(path, "r")
        try:
            _check_links(file, path)
        except BaseException:
            file.close()
            raise
        return file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Convert errors of h5py into UserErrors that name `path`, and limit the memory that HDF5 allocates.

    Raises:
        UserError: the file is damaged, cannot be read, or takes more than 1.5 GiB of memory.
    """
    try:
        with limited_memory():
            yield
    except PermissionError as error:
        raise UserError(f"cannot read {path}: permission denied; ask its owner or name another file") from error
    except BlockingIOError as error:
        raise UserError(
            f"cannot read {path}: another program has it open for writing; wait for it or stop it"
        ) from error
    except MemoryError as error:
        raise UserError(f"cannot read {path}: it takes more memory than a data file may; make it smaller") from error
    except _DAMAGE as error:
        problem = f"not an HDF5 file, or truncated or damaged ({reason_of(error)})"
        raise UserError(f"cannot read {path}: {problem}; make or fetch it again") from error


def check_storage(dataset: h5py.Dataset, path: Path) -> None:
    """Check that a data set is complete in its file, and that HDF5 unpacks it in bounded memory.

    Raises:
        UserError: it is stored in another file, in part or never written, virtual with sources outside of the file's
            folder, or has chunks larger than 256 MiB.
    """
    name, size = f"{dataset.name[1:]} in {path}", math.prod(dataset.shape)
    if dataset.external is not None:
        other = dataset.external[0][0]
        raise UserError(f"{name} is stored in another file, {other}: copy the data into the file itself")
    if dataset.is_virtual:
        _check_sources(dataset, path)
    elif dataset.chunks is None:
        if size and not dataset.id.get_storage_size():
            raise UserError(f"{name} was never written: make or fetch the file again")
    else:
        unpacked = math.prod(dataset.chunks) * dataset.dtype.itemsize
        if unpacked > _MAX_CHUNK:
            raise UserError(f"{name} has chunks of {dataset.chunks}: store it with smaller ones, or none")
        stored: list[int] = []
        dataset.id.chunk_iter(lambda chunk: stored.append(chunk.size))
        expected = math.prod(-(-length // chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
        if len(stored) != expected:
            raise UserError(
                f"{name} has {len(stored)} of {expected} chunks, so it was not written to its end: make it again"
            )
        if max(stored, default=0) > unpacked + 1024:  # a compressed chunk that grows is stored as it is
            raise UserError(f"{name} has a chunk of {max(stored)} bytes where {unpacked} are expected: make it again")


def _check_links(file: h5py.File, path: Path) -> None:
    """Raise UserError if a link leads to another file or to nothing, or if there are too many objects to visit."""
    links: list[tuple[str, int]] = []

    def visit(name: bytes, link: h5py.h5l.LinkInfo) -> bool | None:
        links.append((name.decode(errors="surrogateescape"), link.type))
        return True if len(links) > _MAX_OBJECTS or name.count(b"/") > _MAX_DEPTH else None

    if file.id.links.visit(visit, info=True):
        raise UserError(
            f"{path} holds more than {_MAX_OBJECTS} objects, or nests them deeper than {_MAX_DEPTH} groups: store the "
            "scenes as single arrays"
        )
    for name, kind in links:
        if name != name.encode(errors="replace").decode():
            raise UserError(f"{name!r} in {path} has a name that is not UTF-8: rename it")
        if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            raise UserError(f"{name} in {path} is an external link: copy the data to which it leads into the file")
    for name, kind in links:  # now that no soft link can lead to an external one
        if kind == h5py.h5l.TYPE_SOFT and file.get(name) is None:
            raise UserError(f"{name} in {path} is a link to nothing: remove it, or make the file again")


def _check_sources(dataset: h5py.Dataset, path: Path) -> None:
    """Check the files and data sets of which a virtual data set consists; HDF5 would read missing ones as zeros."""
    name = f"{dataset.name[1:]} in {path}"
    if None in dataset.maxshape:
        raise UserError(f"{name} is virtual without a fixed size: fix its size, or copy the data into one file")
    if "HDF5_VDS_PREFIX" in os.environ:
        raise UserError(f"{name} is virtual, and HDF5_VDS_PREFIX leads to other sources: unset this variable")
    if (num_sources := dataset.id.get_create_plist().get_virtual_count()) > _MAX_SOURCES:
        raise UserError(f"{name} is virtual in {num_sources} pieces: copy the data into one file")
    with ExitStack() as stack:
        _check_pieces(dataset, path, stack)


def _check_pieces(dataset: h5py.Dataset, path: Path, stack: ExitStack) -> None:
    """Check the pieces of a virtual data set. `stack` closes the files that are opened, each of them once."""
    name, folder = f"{dataset.name[1:]} in {path}", path.parent.resolve()
    mapped, files, checked = dataset.id.get_space(), {}, {}
    mapped.select_none()
    for target, other, source, part in dataset.virtual_sources():
        if "%" in other + source:  # HDF5 reads "%%" as "%", and replaces "%b" by a number
            raise UserError(f"{name} is virtual, with a source that has % in its name, {other} {source}: rename it")
        if target.get_select_type() == h5py.h5s.SEL_ALL:
            mapped.select_all()
        elif target.is_regular_hyperslab():
            start, stride, count, block = target.get_regular_hyperslab()
            mapped.select_hyperslab(start, count, stride, block, op=h5py.h5s.SELECT_OR)
        else:
            raise UserError(f"{name} is virtual in irregular pieces: copy the data into one file")
        file = path if other == "." else folder / other
        if not file.resolve().is_relative_to(folder):
            raise UserError(
                f"{name} is virtual, with a source outside of its folder, {other}: copy the data into one file"
            )
        if (file, source) not in checked:
            if file not in files:
                files[file] = stack.enter_context(open_hdf5(file))
            checked[file, source] = _source_shape(dataset, files[file], file, source)
        shape = checked[file, source]
        if part.get_select_type() == h5py.h5s.SEL_ALL:
            fits = math.prod(shape) == target.get_select_npoints()
        else:
            fits = all(last < length for last, length in zip(part.get_select_bounds()[1], shape, strict=True))
        if not fits:
            raise UserError(
                f"{name} is virtual, and its source {source} in {file} has another shape, {shape}: make it again"
            )
    if (found := mapped.get_select_npoints()) != math.prod(dataset.shape):
        raise UserError(
            f"{name} is virtual, and its sources hold {found} of its {math.prod(dataset.shape)} values: make it again"
        )


def _source_shape(dataset: h5py.Dataset, file: h5py.File, path: Path, name: str) -> tuple[int, ...]:
    source = file.get(name)
    if not isinstance(source, h5py.Dataset) or source.is_virtual or source.dtype != dataset.dtype:
        raise UserError(
            f"{dataset.name[1:]} in {dataset.file.filename} is virtual, and its source {name} in {path} is no data "
            f"set of {dataset.dtype} that is stored there: copy the data into one file"
        )
    check_storage(source, path)
    return source.shape


@contextmanager
def limited_memory() -> Iterator[None]:
    """Limit what this process may allocate, since HDF5 does not limit what a compressed chunk unpacks to."""
    status = Path("/proc/self/status")
    if not status.exists():  # not on Linux
        yield
        return
    with _limiting:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = (int(re.search(r"VmData:\s+(\d+)", status.read_text())[1]) << 10) + _MAX_MEMORY
        limits = [one for one in (limit, soft) if one != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
