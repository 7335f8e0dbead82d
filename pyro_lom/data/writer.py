"""Scenes that are made or read a block at a time: kept safe as they come, and put into one HDF5 file at the end.

HDF5 cannot append to contiguous arrays, and a process that is killed while it has such a file open may leave it
unreadable. Blocks therefore go to plain files in a hidden folder beside the file to be, with a journal of how many
scenes are complete. The file itself appears when all of it is there.
"""

import fcntl
import json
import math
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8

from pyro_lom.data.hdf5 import Scenes, write_scenes
from pyro_lom.errors import UserError
from pyro_lom.runs import replacing


class SceneWriter:
    """Appends blocks of scenes; resumes after an interruption; `finish` makes the file.

        with SceneWriter(path, made_by={"command": "render", "seed": 0}) as writer:
            for first in range(writer.num_scenes, total, 100):
                writer.append(*make(first, 100))
            writer.finish(name="rooms", ...)

    A UserError that passes through, as of a damaged source, leaves nothing behind. Any other interruption, a full disk
    included, keeps what is complete for the next writer of the same `path` and `made_by`.

    Args:
        path: the HDF5 file to be.
        made_by: what determines the scenes, such as sources, options and seed, as JSON knows it.

    Raises:
        UserError: `path` exists, is being written by another process, or was begun with another `made_by`.
    """

    def __init__(self, path: str | Path, made_by: dict[str, Any]):
        self.path = Path(path)
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        if self.path.exists() or self.path.is_symlink():
            raise UserError(f"{self.path} exists already: remove it or name another file")
        self._disk_failed = False
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
        """Scenes that are safely on disk."""
        return self._journal["num_scenes"]

    @property
    def place(self) -> Any:
        """What the last `append` gave as `place`; None before the first."""
        return self._journal["place"]

    def append(
        self,
        images: UInt8[np.ndarray, "n H W C"],
        labels: UInt8[np.ndarray, "n H W"] | None,
        factors: dict[str, Shaped[np.ndarray, "n max_objects"]],
        place: Any = None,
    ) -> None:
        """Add a block; once this returns it survives even a kill.

        Args:
            images, labels, factors: as in `Scenes`, of the same types and sizes in every block.
            place: where to go on after this block, as JSON knows it.

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
            journal = self._journal | {
                "num_scenes": self.num_scenes + len(images),
                "place": place,
                "arrays": kinds,
            }
            self._write(journal)

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
        """Write the file and remove the folder; see `Scenes` and `write_scenes` for the arguments.

        Raises:
            UserError: the disk is full; what was appended is kept.
        """
        arrays = {
            array: np.memmap(self.folder / array, dtype, mode="r", shape=(self.num_scenes, *shape))
            for array, (dtype, shape) in self._journal["arrays"].items()
        }
        images, labels = arrays.pop("images"), arrays.pop("labels", None)
        factors = {array.removeprefix("factors."): values for array, values in arrays.items()}
        scenes = Scenes(images, labels, factors, num_background, splits, name, version)
        try:
            write_scenes(self.path, scenes, source=source, seed=seed, compact=compact)
        except UserError:
            self._disk_failed = True
            raise
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "SceneWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._lock.close()
        if isinstance(error, UserError) and not self._disk_failed:
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
        for name, (dtype, shape) in begun["arrays"].items():  # what a killed append left behind goes
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
        """Turns a full disk or a forbidden path into one line that names the file."""
        try:
            yield
        except OSError as error:
            self._disk_failed = True
            reason = error.strerror or error
            raise UserError(f"cannot write {self.path}: {reason}; make room or name another file") from error
