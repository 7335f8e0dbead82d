"""The commands, and what Python uses: `fit`, `Factory`, `evaluate`, `load_run` and `sample_scenes`."""

import ctypes
import os
import sys
from importlib import import_module
from types import ModuleType

# OpenMP reads this when torch is imported. By default its threads spin for milliseconds while they wait. Steps of small
# networks then take seconds if another process is busy. A short spin costs 1 % on an idle machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# By default, glibc returns large blocks to the system, and their pages cost page faults when they are allocated again.
# In small networks, these faults are 12 % of the time of a step.
if sys.platform == "linux" and hasattr(_libc := ctypes.CDLL(None), "mallopt"):
    _libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    _libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _function(module: str, name: str) -> property:
    """Return a property that imports the function at first use. Importing `experiments.fit` does not replace it."""
    return property(lambda package: getattr(import_module(module), name), lambda package, submodule: None)


class _Package(ModuleType):
    fit = _function("experiments.fit", "fit")
    Factory = _function("experiments.parts", "Factory")
    evaluate = _function("experiments.evaluate", "evaluate")
    load_run = _function("experiments.loading", "load_run")
    sample_scenes = _function("experiments.evaluation.reading", "sample_scenes")


sys.modules[__name__].__class__ = _Package
