"""A renderer that needs no engine, and fails where it is told to."""

import os
import sys
from dataclasses import dataclass

import numpy as np

from pyro_lom.data.renderers.renderer import Renderer, generator
from pyro_lom.data.writer import Scene
from pyro_lom.errors import UserError


@dataclass(frozen=True)
class Noise(Renderer):
    """Scenes of noise; their factors are their index, and whether the process that made them has torch."""

    size: int = 8
    fails_to: str = ""

    num_background = 1
    version = 1
    block_size = 3
    package, extra = "numpy", "noise"

    def open(self):
        if self.fails_to == "start":
            raise UserError("no noise here; make some")
        if self.fails_to == "live":
            os._exit(1)

        def render(seed, index):
            if self.fails_to == "render" and index == 13:
                os._exit(1)
            rng = generator(self, seed, index)
            image = rng.integers(256, size=(self.size, self.size, 3), dtype=np.uint8)
            has_torch = np.array(["torch" in sys.modules])
            return Scene(image, image[..., 0] % 4, {"index": np.array([index]), "has_torch": has_torch})

        return render
