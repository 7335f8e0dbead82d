"""A writer that stores scenes block by block, resumes after interruptions, and creates one HDF5 file at the end.

HDF5 cannot append to contiguous arrays. If a process is killed while it has an HDF5 file open, the file may become
unreadable. Blocks are therefore written to plain files in a hidden folder next to the final file. A journal in that
folder stores the number of complete scenes. The HDF5 file is created after the last block.
"""

import fcntl
import math
import os
import re
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Shaped, UInt8
from msgspec import Meta

from pyro_lom.data.hdf5 import Scenes, write_scenes
from pyro_lom.errors import UserError
from pyro_lom.files import open_own, read_own, replacing

_ARRAY = re.compile(r"(?:images|labels|factors\.(?!\.\.?\Z)[^/\x00-\x1f\x7f]+)")
_LARGEST_JOURNAL = 64 << 20  # bytes; it lists the damaged records

Position = Annotated[int, Meta(ge=0, lt=2**62)]
"""A row, a byte, or a number of something, in a journal."""


class Scene(NamedTuple):
    """One of the scenes that `Scenes` contains."""

    image: UInt8[np.ndarray, "H W C"]
    labels: UInt8[np.ndarray, "H W"] | None
    factors: dict[str, Shaped[np.ndarray, "max_objects"]]


class Kind(msgspec.Struct, array_like=True, frozen=True):
    """The data type and the shape of one row of an array."""

    dtype: Annotated[str, Meta(pattern=r"^([|]b1|[|][ui]1|[<>]([ui][248]|f[248]))\Z")]
    shape: Annotated[tuple[Annotated[int, Meta(ge=1, lt=2**62)], ...], Meta(max_length=3)]


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is stored of an unfinished file. The names of the arrays are names of files."""

    made_by: dict[str, Any]
    num_scenes: Position = 0
    place: Any = None
    finishing: bool = False  # whether the HDF5 file is being made, or is made
    arrays: dict[Annotated[str, Meta(pattern=rf"^{_ARRAY.pattern}\Z")], Kind] = {}

    def __post_init__(self):
        if self.num_scenes and "images" not in self.arrays:
            raise ValueError("it has scenes without images")
        for name, kind in self.arrays.items():
            dtype, shape = kind.dtype, kind.shape
            if name.startswith("factors."):
                fits = len(shape) == 1 and shape[0] <= 256
            else:
                fits = dtype == "|u1" and shape[:2] == self.arrays["images"].shape[:2]
                fits &= len(shape) == {"images": 3, "labels": 2}[name]
            if not fits:
                raise ValueError(f"{name} has the type {dtype} and the shape {shape}")


Stacked = tuple[
    UInt8[np.ndarray, "n H W C"], UInt8[np.ndarray, "n H W"] | None, dict[str, Shaped[np.ndarray, "n max_objects"]]
]


def stacked(scenes: Iterable[Scene]) -> Stacked:
    """Return the images, the labels and the factors of several scenes, as `SceneWriter.append` takes them."""
    images, labels, factors = zip(*scenes, strict=True)
    stacked_labels = None if labels[0] is None else np.stack(labels)
    return np.stack(images), stacked_labels, {k: np.stack([values[k] for values in factors]) for k in factors[0]}


class SceneWriter(AbstractContextManager):
    """Appends blocks of scenes, resumes after an interruption, and creates the HDF5 file in `finish`.

        with SceneWriter(path, made_by={"command": "render", "seed": 0}) as writer:
            for first in range(writer.num_scenes, total, 100):
                writer.append(*make(first, 100))
            writer.finish(name="rooms", ...)

    If the `with` block raises a UserError, for example because a source is damaged, the stored scenes are deleted.
    After a full disk or any other interruption, the next writer with the same `path` and `made_by` continues. A folder
    without scenes is removed in any case.

    Args:
        path: the HDF5 file to create.
        made_by: the sources, options, seed, ... that determine the scenes; it must be serialisable as JSON.

    Raises:
        UserError: `path` exists, another process is writing it, or it was begun with another `made_by`.
    """

    def __init__(self, path: str | Path, made_by: dict[str, Any]):
        self.path = Path(path)
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        self._journal = Journal(msgspec.json.decode(msgspec.json.encode(made_by)))
        if os.path.lexists(self.path):
            self._remove_finished()
            raise UserError(f"{self.path} exists already: remove it or name another file")
        self._keeps = False  # whether the scenes stay after a UserError
        with self._told():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_folder()
            self._lock = open_own(self.folder / "lock", "a")
            try:
                self._resume()
            except BaseException:
                self._lock.close()
                raise

    @property
    def num_scenes(self) -> int:
        """Number of scenes that are stored on disk."""
        return self._journal.num_scenes

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape (H, W, C) of the stored images; None before the first `append`."""
        return self._journal.arrays["images"].shape if self.num_scenes else None

    @property
    def place(self) -> Any:
        """The argument `place` of the last `append`; None before the first."""
        return self._journal.place

    def append(
        self,
        images: UInt8[np.ndarray, "n H W C"],
        labels: UInt8[np.ndarray, "n H W"] | None,
        factors: dict[str, Shaped[np.ndarray, "n max_objects"]],
        place: Any = None,
    ) -> None:
        """Append a block. After this method returns, the block is on disk and survives a kill of the process.

        Args:
            images, labels, factors: as in `Scenes`; types and sizes must be the same in all blocks.
            place: position in the source after this block; it must be serialisable as JSON.

        Raises:
            UserError: the disk is full, or the stored scenes are of another type or shape.
        """
        for name, values in factors.items():
            if values.dtype.kind not in "biuf" or values.dtype.itemsize > 8 or not np.isfinite(values).all():
                raise UserError(f"the factor {name} has the type {values.dtype}, or is NaN or infinite: mend it")
        arrays = {"images": images} | ({} if labels is None else {"labels": labels})
        arrays |= {f"factors.{name}": values for name, values in factors.items()}
        kinds = {name: Kind(values.dtype.str, values.shape[1:]) for name, values in arrays.items()}
        if self._journal.arrays not in ({}, kinds):
            raise UserError(
                f"{self.folder} holds scenes of another type or shape, which are removed: repeat the command"
            )
        with self._told():
            for name, values in arrays.items():
                with open_own(self.folder / name, "ab") as file:
                    file.write(np.ascontiguousarray(values).data)
                    file.flush()
                    os.fsync(file.fileno())
            made_by, num_scenes = self._journal.made_by, self.num_scenes + len(images)
            journal = Journal(made_by, num_scenes, place, arrays=kinds)
            self._write(journal)
            self._journal = journal

    def finish(
        self,
        *,
        name: str,
        version: int,
        num_background: int,
        splits: dict[str, range],
        source: str,
        seed: int,
        compact: bool = False,
    ) -> None:
        """Write the HDF5 file and remove the folder; see `Scenes` and `write_scenes` for the arguments.

        Raises:
            UserError: the disk is full. The appended scenes are kept.
        """
        arrays = {
            name: np.memmap(self.folder / name, kind.dtype, mode="r", shape=(self.num_scenes, *kind.shape))
            for name, kind in self._journal.arrays.items()
        }
        images, labels = arrays.pop("images"), arrays.pop("labels", None)
        factors = {array.removeprefix("factors."): values for array, values in arrays.items()}
        if any(not np.isfinite(values).all() for values in factors.values()):
            raise UserError(f"a factor in {self.folder} is damaged, and the folder is removed: repeat the command")
        scenes = Scenes(images, labels, factors, num_background, splits, name, version)
        self._keeps = True  # only the disk can fail from here on
        with self._told():
            self._write(msgspec.structs.replace(self._journal, finishing=True))
        write_scenes(self.path, scenes, source=source, seed=seed, compression="lzf" if compact else None)
        self._remove()

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._lock.close()
        if error is not None and (not self.num_scenes or (isinstance(error, UserError) and not self._keeps)):
            self._remove()

    def _check_folder(self) -> None:
        """Raise UserError if the folder belongs to the user, or is a link to one that does."""
        names = os.listdir(self.folder)
        others = [name for name in names if name != "lock" and not name.startswith(".journal.json.")]
        if self.folder.is_symlink() or (others and "journal.json" not in names):
            raise UserError(f"{self.folder} is needed for the unfinished file, but was made by someone else: rename it")

    def _resume(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing {self.path}: wait for it or name another file") from None
        journal = self.folder / "journal.json"
        if not os.path.lexists(journal):
            try:
                self._write(self._journal)
            except UserError:
                self._remove()
                raise
            return
        try:
            begun = msgspec.json.decode(read_own(journal, _LARGEST_JOURNAL), type=Journal)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise UserError(f"{journal} is damaged ({error}): remove {self.folder}") from error
        old, new = begun.made_by, self._journal.made_by
        if old != new:
            differing = ", ".join(key for key in {**old, **new} if old.get(key) != new.get(key))
            raise UserError(
                f"{self.folder} holds {begun.num_scenes} scenes of an unfinished file with another {differing}: repeat "
                "that command to finish it, or remove the folder"
            )
        self._write(begun)  # which also removes a half-written journal
        self._journal = begun
        for name in set(os.listdir(self.folder)) - set(begun.arrays) - {"journal.json", "lock"}:
            if _ARRAY.fullmatch(name):  # from an interrupted first `append`
                (self.folder / name).unlink()
        for name, kind in begun.arrays.items():  # removes the rest of an interrupted `append`
            size = begun.num_scenes * np.dtype(kind.dtype).itemsize * math.prod(kind.shape)
            with open_own(self.folder / name, "ab") as file:
                if os.fstat(file.fileno()).st_size < size:
                    raise UserError(f"{self.folder / name} is shorter than its journal says: remove {self.folder}")
                file.truncate(size)

    def _write(self, journal: Journal) -> None:
        with replacing(self.folder / "journal.json") as temporary:
            temporary.write_bytes(msgspec.json.encode(journal))

    def _remove(self) -> None:
        """Remove the folder, unless it contains files of others."""
        with suppress(UserError):  # the disk may be full
            self._write(Journal(self._journal.made_by))  # if the process is killed from here on, no scenes are missing
        with suppress(OSError):
            names = [name for name in os.listdir(self.folder) if _ARRAY.fullmatch(name)]
            for name in (*names, "journal.json", "lock"):  # in this order, so that a kill leaves a journal
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    def _remove_finished(self) -> None:
        """Remove the folder if a kill left it after the same file was made from it."""
        with suppress(OSError, ValueError, RecursionError, msgspec.MsgspecError):
            begun = msgspec.json.decode(read_own(self.folder / "journal.json", _LARGEST_JOURNAL), type=Journal)
            if begun.made_by == self._journal.made_by and (begun.finishing or not begun.num_scenes):
                self._remove()

    @contextmanager
    def _told(self):
        """Convert an error of writing, such as a full disk, into a UserError that names the file."""
        try:
            yield
        except OSError as error:
            self._keeps = True
            reason = error.strerror or error
            raise UserError(f"cannot write {self.path}: {reason}; make room or name another file") from error
