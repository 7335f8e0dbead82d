"""`data.py info`: contents and checks of a data set, and a contact sheet."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from experiments import cli
from pyro_lom.data.hdf5 import Scenes, read_scenes
from pyro_lom.data.inspection import Inspection, inspect_scenes
from pyro_lom.data.layout import attribute
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.pictures import size_text
from pyro_lom.data.scenes import why_no_objects
from pyro_lom.data.self_contained import open_hdf5, reading
from pyro_lom.errors import printable
from pyro_lom.figures import colour_labels, save_grid

_COLUMNS, _ROWS = 12, 4
_SIDE = 256  # pixels of the largest images on the sheet


@dataclass(frozen=True)
class Info:
    """Describe a file of scenes, check all of it, and draw a contact sheet."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """HDF5 file, or folder of images."""
    sheet: Path | None = None
    """PNG file of the contact sheet; by default NAME-sheet.png in the folder of FILE."""

    def run(self) -> None:
        scenes = read_scenes(self.file)
        sheet = self.sheet or self.file.with_name(f"{self.file.stem}-sheet.png")
        cli.check_output(sheet, "--sheet", suffix=".png")
        inspection = inspect_scenes(scenes, progress=sys.stderr.isatty())
        draw_sheet(sheet, scenes)
        cli.sign(sheet)
        complaint = why_no_objects(scenes)
        for line in (*scenes.notes, *([f"warning: {complaint}"] if complaint else [])):
            print(printable(line), file=sys.stderr)
        for title, text in [*self._lines(scenes, inspection), ("contact sheet", str(sheet))]:
            print(printable(f"{title:<15}{text}"))

    def _lines(self, scenes: Scenes, inspection: Inspection) -> Iterator[tuple[str, str]]:
        number, height, width, channels = scenes.images.shape
        colours, megabytes = {1: "grey", 3: "RGB"}[channels], math.prod(scenes.images.shape) / 1e6
        yield "name", f"{scenes.name}, version {scenes.version}"
        if self.file.is_file():
            with reading(self.file), open_hdf5(self.file) as file:
                source, seed = (attribute(file, name, self.file) for name in ("source", "seed"))
            if isinstance(source, str) and source:
                yield "source", f"{source}, seed {'unknown' if seed is None else seed}"
        yield "images", f"{number}, {size_text((height, width))}, {colours}, {megabytes:.1f} MB"
        mean = ", ".join(f"{value:.3f}" for value in inspection.mean)
        values = f"{inspection.lowest} to {inspection.highest}; mean {mean} of 1"
        yield "pixels", f"{values}; {inspection.num_flat} images flat"
        splits = (f"{name} {rows.start} to {rows.stop - 1}" for name, rows in scenes.splits.items() if rows)
        yield "splits", ", ".join(splits)
        if scenes.labels is None:
            yield "labels", "none"
            return
        shares = (inspection.label_scenes / number).tolist()
        in_scene = (inspection.num_objects / number).tolist()
        background, used = scenes.num_background, np.flatnonzero(shares).tolist()
        yield "background", _shares({k: shares[k] for k in range(background)}) or "none"
        yield "objects", _shares({k: shares[k] for k in used if k >= background}) or "none"
        yield "in a scene", f"{_shares({k: share for k, share in enumerate(in_scene) if share})} of scenes"
        for name, values in scenes.factors.items():
            yield f"  {name}", f"{values.shape[1]} columns, {values.min():.4g} to {values.max():.4g}"


def draw_sheet(path: Path, scenes: Scenes) -> None:
    """Write a contact sheet of evenly spaced scenes, with their labels below them."""
    chosen = np.unique(np.linspace(0, len(scenes.images) - 1, _COLUMNS * _ROWS).round().astype(int))
    every = -(-max(scenes.image_shape) // _SIDE)  # large images are shown by some of their pixels
    rows = []
    for some in np.array_split(chosen, range(_COLUMNS, len(chosen), _COLUMNS)):
        images = np.stack([scenes.images[scene][::every, ::every] for scene in some])
        rows.append((f"from {some[0]}", float_images(images)))
        if scenes.labels is not None:
            labels = np.stack([scenes.labels[scene][::every, ::every] for scene in some])
            rows.append(("labels", colour_labels(torch.from_numpy(labels).long())))
    save_grid(path, rows, printable(f"Contact sheet of {scenes.name}: {len(scenes.images)} scenes"))


def _shares(shares: dict[int, float]) -> str:
    return ", ".join(f"{key} in {share:.1%}" for key, share in shares.items())
