"""Measure training steps: `python experiments/benchmark.py [options]`."""

import sys

try:
    from experiments import benchmarking, cli
except ModuleNotFoundError as missing:
    print(
        f"error: {missing.name} is not installed: run pip install -e . in the project's folder first", file=sys.stderr
    )
    sys.exit(2)
except KeyboardInterrupt:  # while libraries load
    sys.exit(130)

if __name__ == "__main__":
    cli.run(benchmarking.main)
