"""A writer that stores scenes block by block, resumes after interruptions, and creates one HDF5 file at the end.

HDF5 cannot append to contiguous arrays. If a process is killed while it has an HDF5 file open, the file may become
unreadable. Blocks are therefore written to plain files in a hidden folder next to the final file. A journal in that
folder stores the number of complete scenes. The HDF5 file is created after the last block.
"""

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from pyro_lom.data.hdf5 import Scenes, write_scenes
from pyro_lom.errors import UserError
from pyro_lom.files import replacing


class Scene(NamedTuple):
    """One of the scenes that `Scenes` contains."""

    image: UInt8[np.ndarray, "H W C"]
    labels: UInt8[np.ndarray, "H W"] | None
    factors: dict[str, Shaped[np.ndarray, "max_objects"]]


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
    After a full disk or any other interruption, the next writer with the same `path` and `made_by` continues.

    Args:
        path: the HDF5 file to create.
        made_by: the sources, options, seed, ... that determine the scenes; it must be serialisable as JSON.

    Raises:
        UserError: `path` exists, another process is writing it, or it was begun with another `made_by`.
    """

    def __init__(self, path: str | Path, made_by: dict[str, Any]):
        self.path = Path(path)
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        if self.path.exists() or self.path.is_symlink():
            raise UserError(f"{self.path} exists already: remove it or name another file")
        self._keeps = False  # whether the scenes stay after a UserError
        self._journal = {"made_by": made_by, "num_scenes": 0, "place": None, "arrays": {}}
        with self._told():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
            try:
                self._resume(made_by)
            except BaseException:
                self._lock.close()
                raise

    @property
    def num_scenes(self) -> int:
        """Number of scenes that are stored on disk."""
        return self._journal["num_scenes"]

    @property
    def place(self) -> Any:
        """The argument `place` of the last `append`; None before the first."""
        return self._journal["place"]

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
            UserError: the disk is full.
        """
        arrays = {"images": images} | ({} if labels is None else {"labels": labels})
        arrays |= {f"factors.{name}": values for name, values in factors.items()}
        kinds = {name: [values.dtype.str, list(values.shape[1:])] for name, values in arrays.items()}
        if self._journal["arrays"] not in ({}, kinds):
            raise ValueError(f"a block of {kinds} follows blocks of {self._journal['arrays']}")
        with self._told():
            for name, values in arrays.items():
                with (self.folder / name).open("ab") as file:
                    file.write(np.ascontiguousarray(values).data)
                    file.flush()
                    os.fsync(file.fileno())
            num_scenes = self.num_scenes + len(images)
            self._write(self._journal | {"num_scenes": num_scenes, "place": place, "arrays": kinds})

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
            array: np.memmap(self.folder / array, dtype, mode="r", shape=(self.num_scenes, *shape))
            for array, (dtype, shape) in self._journal["arrays"].items()
        }
        images, labels = arrays.pop("images"), arrays.pop("labels", None)
        factors = {array.removeprefix("factors."): values for array, values in arrays.items()}
        scenes = Scenes(images, labels, factors, num_background, splits, name, version)
        self._keeps = True  # only the disk can fail from here on
        write_scenes(self.path, scenes, source=source, seed=seed, compact=compact)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._lock.close()
        if isinstance(error, UserError) and not self._keeps:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _resume(self, made_by: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is writing {self.path}: wait for it or name another file") from None
        journal = self.folder / "journal.json"
        if not journal.exists():
            self._write(self._journal)
            return
        try:
            begun = json.loads(journal.read_text())
        except ValueError as error:
            raise UserError(f"{journal} is damaged: remove {self.folder}") from error
        wanted = json.loads(json.dumps(made_by))
        if begun["made_by"] != wanted:
            differing = [key for key in {**begun["made_by"], **wanted} if begun["made_by"].get(key) != wanted.get(key)]
            raise UserError(
                f"{self.folder} holds {begun['num_scenes']} scenes of an unfinished file with another "
                f"{', '.join(differing)}: repeat that command to finish it, or remove the folder"
            )
        self._journal = begun
        for name, (dtype, shape) in begun["arrays"].items():  # removes the rest of an interrupted `append`
            size = begun["num_scenes"] * np.dtype(dtype).itemsize * math.prod(shape)
            if (self.folder / name).stat().st_size < size:
                raise UserError(f"{self.folder / name} is shorter than its journal says: remove {self.folder}")
            os.truncate(self.folder / name, size)

    def _write(self, journal: dict[str, Any]) -> None:
        with replacing(self.folder / "journal.json") as temporary:
            temporary.write_text(json.dumps(journal))
        self._journal = journal

    @contextmanager
    def _told(self):
        """Convert an error of writing, such as a full disk, into a UserError that names the file."""
        try:
            yield
        except OSError as error:
            self._keeps = True
            reason = error.strerror or error
            raise UserError(f"cannot write {self.path}: {reason}; make room or name another file") from error
