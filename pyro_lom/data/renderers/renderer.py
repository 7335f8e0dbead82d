"""What every renderer offers, and how a scene follows from its seed."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from pyro_lom.errors import UserError

MAX_TRIES = 1000  # layouts of one scene that may break a rule before that is a mistake in the rules


class RenderedScene(NamedTuple):
    image: UInt8[np.ndarray, "H W 3"]
    labels: UInt8[np.ndarray, "H W"]
    """Background entities are 0..num_background-1, objects come after them."""
    factors: dict[str, Shaped[np.ndarray, "max_objects"]]
    """Properties of each object by name, 0 where there is none; a property of the scene has one column."""


RenderScene = Callable[[int, int], RenderedScene]
"""(seed, index) -> the scene: the same one in whatever process and order."""


class Renderer(ABC):
    """One kind of scene. A frozen dataclass, which costs nothing to make and to send to another process."""

    size: int
    """Height and width in pixels."""
    num_background: int
    """How many labels are background."""
    version: int
    """Goes up whenever the scenes of a seed change."""
    block_size: int
    """Scenes to make at a time, so that they take a second or two."""
    views: int = 1
    """Successive scenes that show the same objects: splits keep them together."""
    package: str
    """The engine, as it is called where packages are installed from."""
    extra: str
    """The extra of this project that installs it."""

    @abstractmethod
    def open(self) -> RenderScene:
        """Start the engine, once in a process.

        Raises:
            UserError: it cannot be started.
        """

    @property
    def engine(self) -> str:
        """Name and version of the engine.

        Raises:
            UserError: it is not installed.
        """
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:
            raise UserError(
                f'{self.package} is not installed: run pip install -e ".[{self.extra}]" in the project\'s folder'
            ) from None


def generator(renderer: Renderer, seed: int, index: int) -> np.random.Generator:
    """Source of all that is random in layout `index` of a seed."""
    return np.random.default_rng((renderer.version, seed, index))


def pixels_of(labels: UInt8[np.ndarray, "H W"], num_background: int, num_objects: int) -> np.ndarray:
    """(num_objects,): how many pixels show each object."""
    return np.bincount(labels.ravel(), minlength=num_background + num_objects)[num_background:]


def padded(values: dict[str, Shaped[np.ndarray, "objects"]], columns: int) -> dict[str, np.ndarray]:
    """Each array filled up with zeros to `columns`."""
    return {name: np.pad(column, (0, columns - len(column))) for name, column in values.items()}
