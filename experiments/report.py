"""Make one HTML page of a run: `python experiments/report.py RUN [options]`."""

import sys

try:
    from experiments import cli, reporting
except ModuleNotFoundError as missing:
    print(
        f"error: {missing.name} is not installed: run pip install -e . in the project's folder first", file=sys.stderr
    )
    sys.exit(2)
except KeyboardInterrupt:  # while libraries load
    sys.exit(130)

if __name__ == "__main__":
    cli.run(reporting.main)
