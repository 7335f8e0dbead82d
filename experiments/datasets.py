"""What `experiments/data.py` does: one dataclass of options a command, each with a `run`."""

from typing import Annotated

import tyro

from experiments import cli
from experiments.describing import Info
from experiments.importing import Import
from experiments.rendering import Render

Command = (
    Annotated[Info, tyro.conf.subcommand("info")]
    | Annotated[Import, tyro.conf.subcommand("import")]
    | Annotated[Render, tyro.conf.subcommand("render")]
)


def main(arguments: list[str]) -> None:
    cli.parse(Command, arguments, prog="data.py", description="Look at, import and render data sets.").run()
