"""`data.py render`: stand-ins for the published data sets, made on any machine, in the project's layout."""

import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

from pyro_lom.data.importers.block import genesis_splits
from pyro_lom.data.renderers.clevr6 import Clevr6
from pyro_lom.data.renderers.objects_room import ObjectsRoom
from pyro_lom.data.renderers.pool import RenderPool
from pyro_lom.data.renderers.renderer import Renderer
from pyro_lom.data.renderers.shapestacks import ShapeStacks
from pyro_lom.data.writer import SceneWriter
from pyro_lom.errors import UserError

RENDERERS: dict[str, Renderer] = {
    "objects-room": ObjectsRoom(),
    "objects-room-six-objects": ObjectsRoom(num_objects=(6, 6)),
    "objects-room-identical-colour": ObjectsRoom(num_objects=(4, 6), one_colour=True),
    "objects-room-empty-room": ObjectsRoom(num_objects=(0, 0)),
    "shapestacks": ShapeStacks(),
    "shapestacks-floating": ShapeStacks(broken="floating"),
    "shapestacks-apart": ShapeStacks(broken="apart"),
    "shapestacks-toppled": ShapeStacks(broken="toppled"),
    "clevr6": Clevr6(),
}
TRAINED_ON = ("objects-room", "shapestacks", "clevr6")
"""Data sets that are split; all others are for testing."""
Name = Literal[tuple(RENDERERS)]


@dataclass(frozen=True)
class Render:
    """Render a stand-in for a published data set, with labels and factors, into one HDF5 file.

    objects-room and shapestacks are drawn by MuJoCo (pip install -e ".[render]"), clevr6 by Mitsuba (".[clevr]"). The
    test sets are objects-room's six-objects, identical-colour and empty-room, and shapestacks' broken stacks: floating,
    apart and toppled. A seed gives the same scenes whatever the number of workers. A command that was stopped goes on
    when it is repeated.
    """

    name: Annotated[Name, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """What to render: objects-room, shapestacks, clevr6, or a test set, such as objects-room-six-objects."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The HDF5 file to write, such as data/objects-room.h5, where the presets look."""
    num: int = 50_000
    """How many scenes."""
    seed: int = 0
    """Another seed gives other scenes."""
    workers: int = 1
    """Processes that render; one for each core is fastest."""
    size: int | None = None
    """Height and width in pixels: 64, for clevr6 96, unless given."""
    compact: bool = False
    """Compress each image by itself: half the size, a tenth of the reading speed."""

    def run(self) -> None:
        self._check()
        renderer = RENDERERS[self.name]
        renderer = replace(renderer, size=self.size or renderer.size)
        made_by = {
            "name": self.name,
            "version": renderer.version,
            "engine": renderer.engine,
            "--num": self.num,
            "--seed": self.seed,
            "--size": renderer.size,
        }
        kept = None
        try:
            with RenderPool(renderer, self.workers) as pool, SceneWriter(self.out, made_by) as writer:
                try:
                    self._render(pool, writer)
                finally:
                    kept = writer.num_scenes
                self._finish(writer, renderer)
        except KeyboardInterrupt:
            if kept is not None:
                print(f"{self.out}: {kept} scenes are kept; the same command goes on", file=sys.stderr)
            raise
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker was killed, perhaps for want of memory; {kept} scenes of {self.out} are kept: the same "
                "command goes on, with fewer --workers if need be"
            ) from error
        print(f"{self.out}: {self.num} scenes; python experiments/data.py info {self.out} describes them")

    def _render(self, pool: RenderPool, writer: SceneWriter) -> None:
        with tqdm(
            total=self.num,
            initial=writer.num_scenes,
            unit="image",
            mininterval=0.5 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
        ) as bar:
            for block in pool.blocks(self.seed, range(writer.num_scenes, self.num)):
                writer.append(*block)
                bar.update(len(block.images))

    def _finish(self, writer: SceneWriter, renderer: Renderer) -> None:
        splits = genesis_splits(self.num, renderer.views)
        writer.finish(
            name=self.name,
            version=renderer.version,
            num_background=renderer.num_background,
            splits=splits if self.name in TRAINED_ON else {"test": range(self.num)},
            source=f"rendered by {renderer.engine}",
            seed=self.seed,
            compact=self.compact,
        )

    def _check(self) -> None:
        if self.num < 1:
            raise UserError(f"--num is {self.num}: it must be 1 or more")
        if self.seed < 0:
            raise UserError(f"--seed is {self.seed}: it must not be negative")
        if not 1 <= self.workers <= 256:
            raise UserError(f"--workers is {self.workers}: it must be from 1 to 256")
        if self.size is not None and not 32 <= self.size <= 512:
            raise UserError(f"--size is {self.size}: it must be from 32 to 512 pixels")
