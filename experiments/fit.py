"""Fit a model: `python experiments/fit.py [PRESET] [options]`; without arguments, the demo."""

import sys

try:
    from experiments import cli, fitting
except ModuleNotFoundError as missing:
    print(
        f"error: {missing.name} is not installed: run pip install -e . in the project's folder first", file=sys.stderr
    )
    sys.exit(2)
except KeyboardInterrupt:  # while libraries load
    sys.exit(130)

if __name__ == "__main__":
    cli.run(fitting.main)
