"""Look at, import and render data sets: `python experiments/data.py COMMAND ...`, see `--help`."""

import sys

# All of it, for processes that render import this file too, and have no use for torch.
if __name__ == "__main__":
    try:
        from experiments import cli, datasets
    except ModuleNotFoundError as missing:
        print(
            f"error: {missing.name} is not installed: run pip install -e . in the project's folder first",
            file=sys.stderr,
        )
        sys.exit(2)

    cli.run(datasets.main)
