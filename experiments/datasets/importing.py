"""`data.py import`: conversion of published data sets, or of your own images, to the project's layout."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import tyro

from experiments.config import Count, Fit, check_bounds, within
from experiments.datasets import bar, writing
from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.data.importers.array_file import ArrayFile
from pyro_lom.data.importers.block import Damage, Reader
from pyro_lom.data.importers.image_folder import ClevrTex, ImageFolder
from pyro_lom.data.importers.multi_object import MAX_CLEVR6_OBJECTS, Clevr6, ObjectsRoom
from pyro_lom.data.importers.object_centric import ObjectCentric, is_object_centric
from pyro_lom.data.importers.shapestacks import ShapeStacks
from pyro_lom.data.importers.sprites import LAYOUTS, Sprites
from pyro_lom.data.scenes import why_no_objects
from pyro_lom.data.sources import FOLDER, HDF5, NPY, NPZ, TFRECORD, check_address, check_is_data, kind_of
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError, printable

VERSION = 1
_ROOMS = ("objects-room", "objects-room-six-objects", "objects-room-identical-colour", "objects-room-empty-room")
_ENTITIES = dict(zip(_ROOMS, (7, 10, 10, 4), strict=True))
Name = Literal[(*_ROOMS, "clevr6", "shapestacks", *LAYOUTS, "clevrtex", "images")]
_SIZES = {"clevr6": 96, "tetrominoes": 48, "clevrtex": 128, "images": None}  # 64 for all others
_KINDS = {
    "images": (FOLDER, NPZ, NPY, HDF5),
    "clevrtex": (FOLDER,),
    "shapestacks": (FOLDER, HDF5),
    **dict.fromkeys(_ROOMS[1:], (TFRECORD,)),
}
"""Kinds of SOURCE by name; a TFRecord or HDF5 file for all others."""
_SHOWN = 10  # positions of damaged records that are printed


@dataclass(frozen=True)
class Import:
    """Convert the published files of a data set, or your own images, to one HDF5 file.

    objects-room, its three test variants, clevr6, multi-dsprites-* and tetrominoes are read from the TFRecords of
    Multi-Object Datasets, clevr6, multi-dsprites-* and tetrominoes also from EMORL's HDF5 files, and objects-room,
    clevr6 and shapestacks also from the *-full.hdf5 files of object-centric-library. shapestacks and clevrtex are read
    from the folders of their unpacked archives. images are a folder, an .npz or .npy file, or an HDF5 file. If a
    command was stopped, repeat it to continue.
    """

    name: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Data set in SOURCE, or images for your own."""
    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Published file, or folder of the published files or of your own images."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """HDF5 file to write. The presets read data/objects-room.h5, data/shapestacks.h5 and data/clevr6.h5."""
    size: Annotated[int, within(8, 1024, "pixels")] | None = None
    """Height and width in pixels; by default 48 for tetrominoes, 96 for clevr6, 128 for clevrtex, 64 for other
    published data, and for images their own size. Resizing is bilinear for images and nearest-neighbour for labels."""
    fit: Fit = "crop"
    """For images: crop images that are not square about the centre, or pad them with black."""
    num: Count | None = None
    """Largest number of scenes to read."""
    masks: Path | None = None
    """For images: folder of PNG files with the same names as the images, if masks are not found among the images. A
    label is a grey value or palette index, or the number of a mask if each object has a mask of its own."""
    num_background: Annotated[int, within(0, 255)] | None = None
    """For images with masks: number of background labels, which are the lowest labels; by default 1."""
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
        made_by |= {"--fit": self.fit}
        with writing(self.out, made_by) as writer:
            place, damaged = self._begun(reader, writer)
            for remark in reader.remarks():
                print(printable(remark), file=sys.stderr)
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
            if complaint := why_no_objects(read_scenes(self.out)):
                print(printable(f"warning: {complaint}"), file=sys.stderr)
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
            if writer.image_shape not in (None, (reader.size, reader.size, reader.num_channels)):
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
        check_address(self.source)
        if not os.path.exists(self.source):  # unlike Path.exists, it accepts names that are too long
            raise UserError(f"no such file or folder: {self.source}")
        if not (self.source.is_file() or self.source.is_dir()):  # opening a pipe would block
            raise UserError(f"{self.source} is neither a file nor a folder: name what was published")
        check_bounds(self)
        if self.name != "images" and (self.masks or self.num_background is not None or self.fit != "crop"):
            raise UserError("--masks, --num-background and --fit are for images alone: leave them out")
        if self.masks is not None and not self.source.is_dir():
            raise UserError(f"--masks is for a folder of images, and {self.source} is a file: leave it out")

    def _reader(self) -> Reader:
        kind, size, is_padded = kind_of(self.source), self.size or _SIZES.get(self.name, 64), self.fit == "pad"
        check_is_data(self.source, kind)
        expected = _KINDS.get(self.name, (TFRECORD, HDF5))
        if kind not in expected and (kind or TFRECORD not in expected):  # the reader says how TFRecords are damaged
            found = kind or "not a file in a known format"
            raise UserError(f"{self.source} is {found}, but {self.name} is read from {' or '.join(expected)}")
        if self.name == "images":
            return self._own_images(kind, size, is_padded)
        if self.name == "clevrtex":
            return ClevrTex(self.source, size, self.num)
        if self.name == "shapestacks" and kind == FOLDER:
            return ShapeStacks(self.source, size, self.num)
        max_objects = MAX_CLEVR6_OBJECTS if self.name == "clevr6" else None
        if kind == HDF5 and self.name in ("objects-room", "shapestacks"):
            return ObjectCentric(self.source, size, 4 if self.name == "objects-room" else 1)
        if kind == HDF5:
            if is_object_centric(self.source):
                return ObjectCentric(self.source, size, 1, max_objects)
            return ArrayFile(self.source, size, 1, num=self.num, pad=self.name in LAYOUTS)
        if self.name == "clevr6":
            return Clevr6(self.source, size)
        if self.name in LAYOUTS:
            return Sprites(self.source, size, self.name)
        return ObjectsRoom(self.source, size, _ENTITIES[self.name])

    def _own_images(self, kind: str, size: int | None, pad: bool) -> Reader:
        if kind == FOLDER:
            given = 1 if self.num_background is None else self.num_background
            reader = ImageFolder(self.source, size, self.masks, given, num=self.num, pad=pad)
        else:
            reader = ArrayFile(self.source, size, self.num_background, num=self.num, pad=pad)
        if self.num_background and not reader.num_background:
            found = "; ".join(reader.remarks())
            raise UserError(f"there are no masks for --num-background: leave it out, or add masks ({found})")
        return reader


def _name_of(path: Path) -> str:
    return printable(str(path.resolve()))
