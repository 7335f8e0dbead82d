"""What `experiments/data.py` does: one dataclass of options a command, each with a `run`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments import cli
from experiments.importing import Import
from pyro_lom.data.hdf5 import read_scenes


@dataclass(frozen=True)
class Info:
    """Describe and check a file of scenes."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """HDF5 file, or folder of images."""

    def run(self) -> None:
        print(read_scenes(self.file).images.shape)


Command = Annotated[Info, tyro.conf.subcommand("info")] | Annotated[Import, tyro.conf.subcommand("import")]


def main(arguments: list[str]) -> None:
    cli.parse(Command, arguments, prog="data.py", description="Look at, import and render data sets.").run()
