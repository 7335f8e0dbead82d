"""Look at and import data sets: `python experiments/data.py COMMAND ...`, see `--help`."""

import sys

try:
    from experiments import cli, datasets
except ModuleNotFoundError as missing:
    print(
        f"error: {missing.name} is not installed: run pip install -e . in the project's folder first", file=sys.stderr
    )
    sys.exit(2)

if __name__ == "__main__":
    cli.run(datasets.main)
