"""Latent Object Models in Pyro: everything that does not depend on a particular system."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Imported at first use: processes that render data sets import this package and need neither torch nor Pyro.
_EXPORTS = {
    "TraceScene_ELBO": "elbo",
    "complete": "posterior",
    "explain": "posterior",
    "keep_slots": "posterior",
    "temperature": "tempering",
}
__all__ = [*_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
