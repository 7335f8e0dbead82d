"""`data.py import`: the published files of a data set, or a person's own images, in the project's layout."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import h5py
import tyro
from tqdm import tqdm

from pyro_lom.data.importers.block import Damage, Reader
from pyro_lom.data.importers.image_folder import ImageFolder
from pyro_lom.data.importers.multi_object import MAX_CLEVR6_OBJECTS, Clevr6, ObjectsRoom
from pyro_lom.data.importers.object_centric import ObjectCentric
from pyro_lom.data.importers.shapestacks import ShapeStacks
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError

Name = Literal[
    "objects-room",
    "objects-room-six-objects",
    "objects-room-identical-colour",
    "objects-room-empty-room",
    "clevr6",
    "shapestacks",
    "images",
]
VERSION = 1
_ENTITIES = {
    "objects-room": 7,
    "objects-room-six-objects": 10,
    "objects-room-identical-colour": 10,
    "objects-room-empty-room": 4,
}
_SIZES = {"clevr6": 96} | dict.fromkeys((*_ENTITIES, "shapestacks"), 64)
_SHOWN = 10  # positions of damaged records that are told


@dataclass(frozen=True)
class Import:
    """Read the published files of a data set, or your own images, into one HDF5 file.

    objects-room, its three test variants and clevr6 are read from the TFRecords of Multi-Object Datasets, shapestacks
    from the folder its archives unpack to, and objects-room, clevr6 and shapestacks also from the *-full.hdf5 files of
    object-centric-library. images is a folder of your own. A command that was stopped goes on when it is repeated.
    """

    name: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """What SOURCE holds: objects-room, objects-room-six-objects, objects-room-identical-colour,
    objects-room-empty-room, clevr6, shapestacks or images."""
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The published file, or the folder."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The HDF5 file to write, such as data/objects-room.h5, where the presets look."""
    size: int | None = None
    """Height and width in pixels: 64, for clevr6 96, for images their own unless given. Images are resized bilinearly,
    labels to the nearest."""
    num: int | None = None
    """Read no more than this many scenes."""
    masks: Path | None = None
    """For images: folder of PNG files with the images' names, whose grey values are the labels."""
    num_background: int | None = None
    """For images with --masks: how many labels, from 0 up, are background."""
    skip_damaged: bool = False
    """Leave out damaged records, and tell which, instead of stopping at the first."""
    compact: bool = False
    """Compress each image by itself: half the size, a tenth of the reading speed."""

    def run(self) -> None:
        self._check()
        reader = self._reader()
        made_by = {
            "name": self.name,
            "source": str(self.source.resolve()),
            "state of the source": [reader.total, self.source.stat().st_mtime_ns],
            "--size": self.size,
            "--num": self.num,
            "--masks": self.masks and str(self.masks.resolve()),
            "--num-background": self.num_background,
            "--skip-damaged": self.skip_damaged,
        }
        with SceneWriter(self.out, made_by) as writer:
            place, damaged = writer.place or (None, [])
            damage = Damage(str(self.source), self.skip_damaged, damaged)
            try:
                place = self._copy(reader, writer, place, damage)
            except KeyboardInterrupt:
                print(f"{self.out}: {writer.num_scenes} scenes are kept; the same command goes on", file=sys.stderr)
                raise
            if not writer.num_scenes:
                raise UserError(f"{self.source} has no scene that could be read: name another file")
            writer.finish(
                name=self.name,
                version=VERSION,
                num_background=reader.num_background,
                splits=reader.splits(writer.num_scenes),
                source=f"{self.source.name}, {len(damage.positions)} damaged records left out",
                seed=0,
                compact=self.compact,
            )
            num_scenes = writer.num_scenes
        for note in reader.notes(place):
            print(f"note: {note}", file=sys.stderr)
        if damage.positions:
            shown = ", ".join(damage.positions[:_SHOWN]) + (", ..." if len(damage.positions) > _SHOWN else "")
            print(f"note: {len(damage.positions)} damaged records were left out: {shown}", file=sys.stderr)
        print(f"{self.out}: {num_scenes} scenes; python experiments/data.py info {self.out} describes them")

    def _copy(self, reader: Reader, writer: SceneWriter, place: Any, damage: Damage) -> Any:
        with tqdm(
            total=reader.total,
            unit=reader.unit,
            unit_scale=reader.unit == "B",
            mininterval=0.5 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
        ) as bar:
            for block in reader.blocks(place, damage) if not self._is_full(writer) else ():
                kept = len(block.images) if self.num is None else min(len(block.images), self.num - writer.num_scenes)
                writer.append(
                    block.images[:kept],
                    None if block.labels is None else block.labels[:kept],
                    {name: values[:kept] for name, values in block.factors.items()},
                    place=(block.place, damage.positions),
                )
                place = block.place
                bar.set_postfix_str(f"{writer.num_scenes} scenes", refresh=False)
                bar.update(block.done - bar.n)
                if self._is_full(writer):
                    break
        return place

    def _is_full(self, writer: SceneWriter) -> bool:
        return self.num is not None and writer.num_scenes >= self.num

    def _check(self) -> None:
        if not self.source.exists():
            raise UserError(f"no such file or folder: {self.source}")
        if not (self.source.is_file() or self.source.is_dir()):
            raise UserError(f"{self.source} is neither a file nor a folder: name what was published")
        if self.size is not None and not 8 <= self.size <= 1024:
            raise UserError(f"--size is {self.size}: it must be from 8 to 1024 pixels")
        if self.num is not None and self.num < 1:
            raise UserError(f"--num is {self.num}: it must be 1 or more")
        if self.name != "images" and (self.masks or self.num_background is not None):
            raise UserError("--masks and --num-background are for images alone: leave them out")
        if (self.masks is None) != (self.num_background is None):
            raise UserError("--masks and --num-background go together: give both or none")
        if self.num_background is not None and not 0 <= self.num_background <= 255:
            raise UserError(f"--num-background is {self.num_background}: it must be from 0 to 255")
        wants_folder = self.name == "images" or (self.name == "shapestacks" and not h5py.is_hdf5(self.source))
        if wants_folder != self.source.is_dir():
            kinds = {True: "a folder", False: "a file"}
            raise UserError(
                f"{self.source} is {kinds[not wants_folder]}, but {self.name} is read from {kinds[wants_folder]}"
            )

    def _reader(self) -> Reader:
        size = self.size or _SIZES.get(self.name)
        if self.name == "images":
            return ImageFolder(self.source, size, self.masks, self.num_background or 0)
        if self.source.is_file() and h5py.is_hdf5(self.source):
            return self._object_centric(size)
        if self.name == "shapestacks":
            return ShapeStacks(self.source, size, self.num)
        if self.name == "clevr6":
            return Clevr6(self.source, size)
        return ObjectsRoom(self.source, size, _ENTITIES[self.name])

    def _object_centric(self, size: int) -> ObjectCentric:
        if self.name not in ("objects-room", "clevr6", "shapestacks"):
            raise UserError(f"{self.source} is an HDF5 file, but {self.name} was published as TFRecords only")
        if self.name == "clevr6":
            return ObjectCentric(self.source, size, num_background=1, max_objects=MAX_CLEVR6_OBJECTS)
        return ObjectCentric(self.source, size, num_background=4 if self.name == "objects-room" else 1)
