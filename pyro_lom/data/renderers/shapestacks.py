"""Renderer of stacks of blocks as in ShapeStacks, simulated and rendered by MuJoCo. The textures are our own.

World, cameras, lights and colours follow the published generator (github.com/ogroth/shapestacks). It renders 224x224
pixels; images show the central 196x196 pixels, as in GENESIS.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import binary_dilation, find_objects

from pyro_lom.data.renderers import blocks
from pyro_lom.data.renderers.blocks import MAX_BLOCKS, Stack
from pyro_lom.data.renderers.renderer import MAX_TRIES, Renderer, RenderScene, generator, padded, pixels_of
from pyro_lom.data.renderers.shapestacks_model import FLOORS, VIEW, WALLS, world
from pyro_lom.data.renderers.view import Stage
from pyro_lom.data.writer import Scene

Broken = Literal["floating", "apart", "toppled"]
MIN_SHARE = 0.005  # of the image: minimum visible area of a block, so that `metrics/stacks.py` counts it
_GAP = 3 / 64  # of the image's width: minimum width of a visible gap in a broken stack
_NEAR_BLOCKS = 4  # maximum number of blocks, seen from near
_NEAR_SIDE = 1 / 8  # of the image's width: minimum visible width and height of a block, seen from near
_NEAR_FILLED = 0.8  # of the image's width and height: maximum extent of all blocks together, seen from near
_NEAREST = 2.5  # width in units of the view of the nearest camera, at the distance of the blocks


@dataclass(frozen=True)
class ShapeStacks(Renderer):
    """Renderer of stacks before anything moves. Half of the stacks with two or more blocks are unstable. Label 0 is the
    background; the blocks have labels from 1, starting with the lowest.

    Factors have one column per block, and 0 for absent blocks: `present`, `order` (1 is the lowest), `shape` (0 cuboid,
    1 cylinder, 2 lying cylinder, 3 sphere), `width`, `depth`, `height`, `colour` (index into `blocks.COLOURS`), `x`,
    `y`, `z` of the centre and `yaw` in degrees. Factors of the scene have one column: `num_blocks`, `stands`
    (simulated; 0 for broken stacks) and `camera` (1 to 16, as in the published files).

    Args:
        broken: None, or how two or more blocks fail to form a stack: the upper part is "floating" above the lower
            part, the blocks are "apart" on the floor, or a stack has fallen and is at rest ("toppled").
        near: whether the cameras are moved, without turning them, so that 1 to 4 blocks are in the middle of the image
            and as large as possible. Each block is visible over an eighth of the image's width and height at least.
    """

    size: int = 64
    broken: Broken | None = None
    near: bool = False

    num_background = 1
    version = 1
    block_size = 100
    views = 4
    package, extra = "mujoco", "render"

    def open(self) -> RenderScene:
        return _World(self).render


class _World(Stage):
    def __init__(self, renderer: ShapeStacks):
        super().__init__(renderer, world(), MAX_BLOCKS)
        self._last = (-1, -1)  # seed and number of the stack in the model

    def render(self, seed: int, index: int) -> Scene:
        number, view = divmod(index, self._renderer.views)
        if self._last != (seed, number):
            self._set_up(generator(self._renderer, seed, number))
            self._last = (seed, number)
        camera, labels = self._looks[view]
        self._view.look(self._data, camera)
        return Scene(self._view.image(), labels, self._factors | {"camera": np.float32([camera + 1])})

    def _set_up(self, rng: np.random.Generator) -> None:
        """Put a new stack into the model, and choose cameras from which all its blocks are visible."""
        for _ in range(MAX_TRIES):
            stands, stack = self._draw(rng)
            self._place(stack)
            self._furnish(rng)
            self._looks = self._looks_at(rng, stack)
            if self._looks is not None:
                break
        else:
            raise RuntimeError("no stack of a thousand shows all its blocks")
        count = len(stack.shape)
        columns = {"present": np.ones(count), "order": 1 + np.arange(count), "shape": stack.shape}
        columns |= {"colour": stack.colour, "yaw": blocks.heading(stack.quaternion)}
        columns |= dict(zip(("width", "depth", "height"), 2 * stack.half.T, strict=True))
        columns |= dict(zip("xyz", stack.position.T, strict=True))
        scene = {"num_blocks": np.float32([count]), "stands": np.float32([stands])}
        self._factors = padded(columns, MAX_BLOCKS) | scene

    def _draw(self, rng: np.random.Generator) -> tuple[bool, Stack]:
        """Return whether the stack stands, and the stack. With two or more blocks, it stands with probability 0.5."""
        broken, rules = self._renderer.broken, [blocks.MASS, blocks.SURFACE]
        most = _NEAR_BLOCKS if self._renderer.near else MAX_BLOCKS
        num_blocks = int(rng.integers(1 if broken is None else 2, most, endpoint=True))
        if broken == "toppled":
            while (fallen := blocks.topple(self._mujoco, blocks.pile(rng, num_blocks, rng.choice(rules)))) is None:
                pass
            return False, fallen
        to_stand = broken is not None or num_blocks == 1 or rng.random() < 0.5
        stack = None
        while stack is None or blocks.let_go(self._mujoco, stack) != to_stand:
            stack = blocks.pile(rng, num_blocks, None if to_stand else rng.choice(rules))
        if broken is None:
            return to_stand, stack
        return False, {"floating": blocks.lift, "apart": blocks.set_apart}[broken](rng, stack)

    def _place(self, stack: Stack) -> None:
        model = self._model
        model.geom_pos[self._objects] = (0, 0, -50)  # out of sight
        for shape, half, position, quaternion, colour, geom in zip(*stack, self._objects, strict=False):
            model.geom_type[geom] = getattr(self._mujoco.mjtGeom, f"mjGEOM_{blocks.GEOM_TYPES[shape].upper()}")
            model.geom_size[geom] = blocks.geom_size(int(shape), half)
            model.geom_pos[geom], model.geom_quat[geom] = position, quaternion
            model.geom_rgba[geom] = (*blocks.COLOURS[colour], 1)

    def _furnish(self, rng: np.random.Generator) -> None:
        model = self._model
        wall, floor = (int(rng.integers(len(textures))) for textures in (WALLS, FLOORS))
        for geom, material in {"wall0": f"wall{wall}", "wall1": f"wall{wall}", "floor": f"floor{floor}"}.items():
            model.geom(geom).matid = model.material(material).id
        model.light_castshadow[:] = np.arange(model.nlight) == rng.integers(model.nlight)
        self._move()

    def _looks_at(self, rng: np.random.Generator, stack: Stack) -> list[tuple[int, np.ndarray]] | None:
        """Return a camera and its labels for each view; None if too few cameras see all blocks and the break."""
        looks, num_blocks = [], len(stack.shape)
        for camera in rng.permutation(self._model.ncam).tolist():
            if self._renderer.near:
                self._approach(camera, blocks.corners(stack).reshape(-1, 3))
            labels = self._labels(camera)
            seen = (pixels_of(labels, 1, num_blocks) >= MIN_SHARE * labels.size).all()
            if self._renderer.near:
                sides = [part.stop - part.start for box in find_objects(labels, num_blocks) if box for part in box]
                seen = seen and min(sides) >= _NEAR_SIDE * len(labels)
            if seen and self._shows_break(labels, num_blocks):
                looks.append((camera, labels))
            if len(looks) == self._renderer.views:
                return looks
        return None

    def _approach(self, camera: int, points: Float[np.ndarray, "points 3"]) -> None:
        """Move a camera, without turning it, so that the points are in the middle and fill the image up to a margin."""
        axes = self._data.cam_xmat[camera].reshape(3, 3)  # its columns point to the right, up and backwards
        seen = points @ axes
        middle = (seen.min(0) + seen.max(0)) / 2
        across, back = np.abs(seen - middle)[:, :2].max(1), (seen - middle)[:, 2]
        slope = np.tan(VIEW / 2)  # half the image's width per unit of distance
        distance = max((across / (_NEAR_FILLED * slope) + back).max(), _NEAREST / 2 / slope)
        self._model.cam_pos[camera] = axes @ (middle + [0, 0, distance])
        self._move()

    def _shows_break(self, labels: UInt8[np.ndarray, "H W"], num_blocks: int) -> bool:
        """Return whether the gap is visible: between two successive blocks if floating, around each block if apart."""
        if self._renderer.broken not in ("floating", "apart"):
            return True
        gap = round(_GAP * len(labels))
        grown = [binary_dilation(labels == block, iterations=gap) for block in range(1, num_blocks + 1)]
        if self._renderer.broken == "floating":
            return not all((grown[k] & (labels == k + 2)).any() for k in range(num_blocks - 1))
        return not any((grown[a] & (labels == b + 1)).any() for a, b in combinations(range(num_blocks), 2))
