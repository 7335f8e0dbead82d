"""Look at, import and render data sets: `python experiments/data.py COMMAND ...`."""

if __name__ == "__main__":
    import installed  # noqa: F401

if __name__ != "__mp_main__":  # rendering processes import this file again, but use nothing of it
    from typing import Annotated

    import tyro

    from experiments import cli
    from experiments.datasets.describing import Info
    from experiments.datasets.importing import Import
    from experiments.datasets.rendering import Render

    Command = (
        Annotated[Info, tyro.conf.subcommand("info")]
        | Annotated[Import, tyro.conf.subcommand("import")]
        | Annotated[Render, tyro.conf.subcommand("render")]
    )


def main(arguments: list[str]) -> None:
    cli.parse(Command, arguments, prog="data.py", description="Look at, import and render data sets.").run()


if __name__ == "__main__":
    cli.run(main, saves_memory="--size, or the --workers of render")
