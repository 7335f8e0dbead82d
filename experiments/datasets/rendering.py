"""`data.py render`: stand-ins for the published data sets, in the project's layout."""

from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.config import Processes, Seed, check_bounds, within
from experiments.datasets import bar, writing
from pyro_lom.data.importers.block import genesis_splits
from pyro_lom.data.layout import MAX_SCENES
from pyro_lom.data.renderers.clevr6 import Clevr6
from pyro_lom.data.renderers.objects_room import ObjectsRoom
from pyro_lom.data.renderers.pool import RenderPool
from pyro_lom.data.renderers.shapestacks import ShapeStacks
from pyro_lom.errors import UserError

RENDERERS = {
    "objects-room": ObjectsRoom(),
    "objects-room-six-objects": ObjectsRoom(num_objects=(6, 6)),
    "objects-room-identical-colour": ObjectsRoom(num_objects=(4, 6), one_colour=True),
    "objects-room-empty-room": ObjectsRoom(num_objects=(0, 0)),
    "shapestacks": ShapeStacks(),
    "shapestacks-floating": ShapeStacks(broken="floating"),
    "shapestacks-apart": ShapeStacks(broken="apart"),
    "shapestacks-toppled": ShapeStacks(broken="toppled"),
    "shapestacks-near": ShapeStacks(near=True),
    "shapestacks-near-floating": ShapeStacks(near=True, broken="floating"),
    "shapestacks-near-apart": ShapeStacks(near=True, broken="apart"),
    "shapestacks-near-toppled": ShapeStacks(near=True, broken="toppled"),
    "clevr6": Clevr6(),
}
TRAINED_ON = ("objects-room", "shapestacks", "shapestacks-near", "clevr6")
"""Data sets with training and test splits. All others are test sets."""
Name = Literal[tuple(RENDERERS)]


@dataclass(frozen=True)
class Render:
    """Render a data set, with labels and factors, into one HDF5 file.

    MuJoCo renders objects-room and shapestacks (pip install -e ".[render]"), and Mitsuba renders clevr6 (".[clevr]").
    The test sets are objects-room's six-objects, identical-colour and empty-room, and the broken stacks of shapestacks
    and shapestacks-near: floating, apart and toppled. The scenes depend on the seed and not on the number of workers.
    If a command was stopped, repeat it to continue.
    """

    name: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Data set: objects-room, shapestacks, shapestacks-near, clevr6, or a test set such as objects-room-six-objects."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """HDF5 file to write. The presets read data/NAME.h5."""
    num: Annotated[int, within(1, MAX_SCENES)] = 50_000
    """Number of scenes."""
    seed: Seed = 0
    """Seed of the scenes."""
    workers: Processes = 1
    """Number of rendering processes; one per core is fastest."""
    size: Annotated[int, within(32, 512, "pixels")] | None = None
    """Height and width in pixels; by default 96 for clevr6 and 64 for all others."""
    compact: bool = False
    """Compress each image separately: half the file size, a tenth of the reading speed."""

    def run(self) -> None:
        check_bounds(self)
        renderer = RENDERERS[self.name]
        renderer = replace(renderer, size=self.size or renderer.size)
        made_by = {"name": self.name, "version": renderer.version, "engine": renderer.engine}
        made_by |= {"--num": self.num, "--seed": self.seed, "--size": renderer.size}
        try:
            with RenderPool(renderer, self.workers) as pool, writing(self.out, made_by) as writer:
                with bar(self.num, "image", initial=writer.num_scenes) as progress:
                    for block in pool.blocks(self.seed, range(writer.num_scenes, self.num)):
                        writer.append(*block)
                        progress.update(writer.num_scenes - progress.n)
                is_split = self.name in TRAINED_ON
                writer.finish(
                    name=self.name,
                    version=renderer.version,
                    num_background=renderer.num_background,
                    splits=genesis_splits(self.num, renderer.views) if is_split else {"test": range(self.num)},
                    source=f"rendered by {renderer.engine}",
                    seed=self.seed,
                    compact=self.compact,
                )
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker was killed, perhaps out of memory; {writer.num_scenes} scenes of {self.out} are kept: "
                "the same command goes on, with fewer --workers if need be"
            ) from error
