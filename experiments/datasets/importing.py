"""`data.py import`: conversion of published data sets, or of your own images, to the project's layout."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import msgspec
import tyro

from experiments.config import Count, check_bounds, within
from experiments.datasets import bar, writing
from pyro_lom.data.importers.block import Damage, Reader
from pyro_lom.data.importers.image_folder import ImageFolder
from pyro_lom.data.importers.multi_object import MAX_CLEVR6_OBJECTS, Clevr6, ObjectsRoom
from pyro_lom.data.importers.object_centric import ObjectCentric
from pyro_lom.data.importers.shapestacks import ShapeStacks
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError, printable

VERSION = 1
_ROOMS = ("objects-room", "objects-room-six-objects", "objects-room-identical-colour", "objects-room-empty-room")
_ENTITIES = dict(zip(_ROOMS, (7, 10, 10, 4), strict=True))
Name = Literal[(*_ROOMS, "clevr6", "shapestacks", "images")]
_SIZES = {"clevr6": 96} | dict.fromkeys((*_ROOMS, "shapestacks"), 64)
_SHOWN = 10  # positions of damaged records that are printed


@dataclass(frozen=True)
class Import:
    """Convert the published files of a data set, or your own images, to one HDF5 file.

    objects-room, its three test variants and clevr6 are read from the TFRecords of Multi-Object Datasets, and
    shapestacks from the folder of its unpacked archives. objects-room, clevr6 and shapestacks can also be read from the
    *-full.hdf5 files of object-centric-library. If a command was stopped, repeat it to continue.
    """

    name: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Data set in SOURCE: objects-room, objects-room-six-objects, objects-room-identical-colour,
    objects-room-empty-room, clevr6, shapestacks, or images for your own."""
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Published file, or folder of the published files or of your own images."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """HDF5 file to write. The presets read data/objects-room.h5, data/shapestacks.h5 and data/clevr6.h5."""
    size: Annotated[int, within(8, 1024, "pixels")] | None = None
    """Height and width in pixels; by default 96 for clevr6, 64 for published data, and for images their own size.
    Resizing is bilinear for images and nearest-neighbour for labels."""
    num: Count | None = None
    """Largest number of scenes to read."""
    masks: Path | None = None
    """For images: folder of PNG files with the same names as the images; their grey values are the labels."""
    num_background: Annotated[int, within(0, 255)] | None = None
    """For images with --masks: number of background labels, which are the lowest labels."""
    skip_damaged: bool = False
    """Skip damaged records and print their positions, instead of stopping at the first."""
    compact: bool = False
    """Compress each image separately: half the file size, a tenth of the reading speed."""

    def run(self) -> None:
        self._check()
        reader = self._reader()
        state = [reader.total, self.source.stat().st_mtime_ns]
        made_by = {"name": self.name, "source": _name_of(self.source), "state of the source": state}
        made_by |= {"--size": self.size, "--num": self.num, "--masks": self.masks and _name_of(self.masks)}
        made_by |= {"--num-background": self.num_background, "--skip-damaged": self.skip_damaged}
        with writing(self.out, made_by) as writer:
            place, damaged = self._begun(reader, writer)
            damage = Damage(str(self.source), self.skip_damaged, damaged)
            place = self._copy(reader, writer, place, damage)
            if not writer.num_scenes:
                raise UserError(f"{self.source} has no scene that could be read: name another file")
            writer.finish(
                name=self.name,
                version=VERSION,
                num_background=reader.num_background,
                splits=reader.splits(writer.num_scenes),
                source=f"{printable(self.source.name)}, {len(damaged)} damaged records left out",
                seed=0,
                compact=self.compact,
            )
            for note in reader.notes(place):
                print(printable(f"note: {note}"), file=sys.stderr)
            if damaged:
                shown = ", ".join(damaged[:_SHOWN]) + (", ..." if len(damaged) > _SHOWN else "")
                print(printable(f"note: {len(damaged)} damaged records were left out: {shown}"), file=sys.stderr)

    def _begun(self, reader: Reader, writer: SceneWriter) -> tuple[Any, list[str]]:
        """Return the place and the damaged records up to it, from the journal of an unfinished import."""
        try:
            place, damaged = msgspec.convert(writer.place or (None, []), tuple[reader.place_type | None, list[str]])
            row = place.get("row", 0) if isinstance(place, dict) else place or 0
            if row > reader.total:
                raise ValueError(f"its place is {row} of {reader.total}")
            if reader.unit == "scenes" and writer.num_scenes + len(damaged) > row:
                raise ValueError(f"it has {writer.num_scenes} scenes of {row}")
            if writer.image_shape not in (None, (reader.size, reader.size, 3)):
                raise ValueError(f"its images have the shape {writer.image_shape}")
            return place, damaged
        except (msgspec.ValidationError, ValueError) as error:
            raise UserError(
                f"the unfinished file in {writer.folder} is damaged ({error}) and removed: repeat the command"
            ) from error

    def _copy(self, reader: Reader, writer: SceneWriter, place: Any, damage: Damage) -> Any:
        with bar(reader.total, reader.unit) as progress:
            for block in reader.blocks(place, damage) if not self._is_full(writer) else ():
                kept = None if self.num is None else self.num - writer.num_scenes
                writer.append(
                    block.images[:kept],
                    None if block.labels is None else block.labels[:kept],
                    {name: values[:kept] for name, values in block.factors.items()},
                    place=(block.place, damage.positions),
                )
                place = block.place
                progress.set_postfix_str(f"{writer.num_scenes} scenes", refresh=False)
                progress.update(block.done - progress.n)
                if self._is_full(writer):
                    break
        return place

    def _is_full(self, writer: SceneWriter) -> bool:
        return self.num is not None and writer.num_scenes >= self.num

    def _check(self) -> None:
        if not os.path.exists(self.source):  # unlike Path.exists, it accepts names that are too long
            raise UserError(f"no such file or folder: {self.source}")
        if not (self.source.is_file() or self.source.is_dir()):  # opening a pipe would block
            raise UserError(f"{self.source} is neither a file nor a folder: name what was published")
        check_bounds(self)
        if self.name != "images" and (self.masks or self.num_background is not None):
            raise UserError("--masks and --num-background are for images alone: leave them out")
        if (self.masks is None) != (self.num_background is None):
            raise UserError("--masks and --num-background go together: give both or none")
        is_folder = self.source.is_dir()
        if is_folder != (self.name == "images" or (self.name == "shapestacks" and not h5py.is_hdf5(self.source))):
            found, expected = ("a folder", "a file") if is_folder else ("a file", "a folder")
            raise UserError(f"{self.source} is {found}, but {self.name} is read from {expected}")

    def _reader(self) -> Reader:
        size = self.size or _SIZES.get(self.name)
        if self.name == "images":
            return ImageFolder(self.source, size, self.masks, self.num_background or 0)
        if self.source.is_file() and h5py.is_hdf5(self.source):
            if self.name not in ("objects-room", "clevr6", "shapestacks"):
                raise UserError(f"{self.source} is an HDF5 file, but {self.name} was published as TFRecords only")
            max_objects = MAX_CLEVR6_OBJECTS if self.name == "clevr6" else None
            return ObjectCentric(self.source, size, 4 if self.name == "objects-room" else 1, max_objects)
        if self.name == "shapestacks":
            return ShapeStacks(self.source, size, self.num)
        if self.name == "clevr6":
            return Clevr6(self.source, size)
        return ObjectsRoom(self.source, size, _ENTITIES[self.name])


def _name_of(path: Path) -> str:
    return printable(str(path.resolve()))
