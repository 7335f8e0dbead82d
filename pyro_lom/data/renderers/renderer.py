"""The interface of renderers, and functions that they share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from pyro_lom.data.writer import Scene
from pyro_lom.errors import UserError

MAX_TRIES = 1000  # layouts tried for one scene; if all of them break a rule, the rules are wrong


RenderScene = Callable[[int, int], Scene]
"""A function that renders scene (seed, index). The scene depends neither on the process nor on the order of calls."""


class Renderer(ABC):
    """A renderer of one kind of scene. Subclasses are frozen dataclasses, which are cheap to create and to pickle."""

    size: int
    """Height and width in pixels."""
    num_background: int
    """Number of background labels."""
    version: int
    """Version of the scenes. It increases whenever the scenes of a seed change."""
    block_size: int
    """Number of scenes per task of a process, which takes one or two seconds."""
    views: int = 1
    """Number of successive scenes that show the same objects. Splits keep them together."""
    package: str
    """Name of the engine's Python package."""
    extra: str
    """Name of the extra of this project that installs the engine."""

    @abstractmethod
    def open(self) -> RenderScene:
        """Start the engine, once per process, and return the function that renders.

        Raises:
            UserError: the engine cannot be started.
        """

    @property
    def engine(self) -> str:
        """The name and version of the engine.

        Raises:
            UserError: the engine is not installed.
        """
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            raise UserError(
                f'{self.package} is not installed: run pip install -e ".[{self.extra}]" in the project\'s folder'
            ) from None


def generator(renderer: Renderer, seed: int, index: int) -> np.random.Generator:
    """Return the random generator for scene layout `index` of a seed."""
    return np.random.default_rng((renderer.version, seed, index))


def pixels_of(labels: UInt8[np.ndarray, "H W"], num_background: int, num_objects: int) -> np.ndarray:
    """Return the number of pixels of each object, shape (num_objects,)."""
    return np.bincount(labels.ravel(), minlength=num_background + num_objects)[num_background:]


def padded(values: dict[str, Shaped[np.ndarray, "objects"]], columns: int) -> dict[str, Float32[np.ndarray, "columns"]]:
    """Return each array as float32, padded with zeros to length `columns`."""
    return {name: np.pad(column.astype(np.float32), (0, columns - len(column))) for name, column in values.items()}
