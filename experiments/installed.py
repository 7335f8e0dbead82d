"""Imported by commands that run as scripts: prints one line instead of a traceback if a library is not installed."""

import sys

try:
    from experiments import fit  # noqa: F401 - imports all that the commands need
except ModuleNotFoundError as missing:
    print(f"error: {missing.name} is not installed: run pip install -e . in the project's folder", file=sys.stderr)
    sys.exit(2)
except KeyboardInterrupt:  # while libraries load
    sys.exit(130)
