"""Reader of Multi-dSprites and Tetrominoes in the TFRecord files of Multi-Object Datasets."""

from pathlib import Path
from typing import NamedTuple

from pyro_lom.data.importers.block import Scene
from pyro_lom.data.importers.labels import pack_objects
from pyro_lom.data.importers.multi_object import TFRecordReader, check_finite
from pyro_lom.data.importers.tfrecord import float_values


class _Layout(NamedTuple):
    side: int  # pixels
    num_entities: int  # with the background
    num_channels: int
    entities_first: bool
    factors: tuple[str, ...]


_OF_SPRITES = ("x", "y", "shape", "orientation", "scale")
LAYOUTS = {
    "multi-dsprites-binarized": _Layout(64, 4, 1, False, _OF_SPRITES),
    "multi-dsprites-colored-on-grayscale": _Layout(64, 6, 3, False, _OF_SPRITES),
    "multi-dsprites-colored-on-colored": _Layout(64, 5, 3, False, _OF_SPRITES),
    "tetrominoes": _Layout(35, 4, 3, True, ("x", "y", "shape")),
}
"""Published layouts by the names that `data.py` gives them."""


class Sprites(TFRecordReader):
    """Reader of one of `LAYOUTS`. Label 0 is the background, and factors describe the sprites.

    Images of Tetrominoes, 35x35, get black borders, as their background is black.
    """

    num_background = 1
    pad = True

    def __init__(self, path: Path, size: int, name: str):
        side, num_entities, self.num_channels, self.entities_first, self._factors = LAYOUTS[name]
        self.source_size = (side, side)
        super().__init__(path, size, num_entities)

    def _scene(self, features: dict[str, memoryview], counts: dict[str, int]) -> Scene:
        factors = {name: float_values(features, name, self.num_entities)[1:] for name in self._factors}
        present = self._present(features)
        colours = float_values(features, "color", self.num_entities * self.num_channels)
        for channel, values in enumerate(colours.reshape(self.num_entities, self.num_channels)[1:].T):
            factors[f"color_{channel}"] = values
        check_finite(factors, present)
        image, labels = self._pixels(features, counts)
        return Scene(image, *pack_objects(labels, present, factors, self.num_background, self.num_entities - 1))
