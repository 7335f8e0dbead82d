"""Stacks of blocks in the manner of ShapeStacks, simulated and drawn by MuJoCo, with textures of our own.

World, cameras, lights and colours are those of the published generator (github.com/ogroth/shapestacks); images show
the middle 196 of the 224 pixels that it draws, as GENESIS crops them.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from scipy.ndimage import binary_dilation

from pyro_lom.data.renderers.blocks import (
    COLOURS,
    GEOM_TYPES,
    MASS,
    MAX_BLOCKS,
    SURFACE,
    Stack,
    geom_size,
    heading,
    let_go,
    lift,
    pile,
    set_apart,
    topple,
)
from pyro_lom.data.renderers.renderer import (
    MAX_TRIES,
    RenderedScene,
    Renderer,
    RenderScene,
    generator,
    padded,
    pixels_of,
)
from pyro_lom.data.renderers.shapestacks_model import FLOORS, WALLS, world
from pyro_lom.data.renderers.view import View, mujoco_with_gl

Broken = Literal["floating", "apart", "toppled"]
MIN_SHARE = 0.005  # of the image: what is seen of each block at least, so that `metrics/stacks.py` counts it
_GAP = 3 / 64  # of the image: where a break is to be seen, it is at least as wide
_OUT_OF_SIGHT = (0.0, 0.0, -50.0)


@dataclass(frozen=True)
class ShapeStacks(Renderer):
    """Labels are 0 background, 1.. blocks from the lowest up. Half of the stacks of two blocks or more will fall; they
    are shown before anything moves.

    Factors, one column per block and 0 where there is none: `present`, `order` (1 is the lowest), `shape` (0 cuboid,
    1 cylinder, 2 lying cylinder, 3 sphere), `width`, `depth`, `height`, `colour` (index into `blocks.COLOURS`), `x`,
    `y`, `z` of the middle and `yaw` in degrees; and of the scene, in one column, `num_blocks`, `stands`, which physics
    decides, and `camera`, 1 to 16 as in the published files.

    Args:
        size: height and width of the images.
        broken: draws stacks of two blocks or more that do not hold together: an upper part that is "floating" above
            the lower one, blocks "apart" on the floor, or what a stack that falls becomes ("toppled").
    """

    size: int = 64
    broken: Broken | None = None

    num_background = 1
    version = 1
    block_size = 100
    views = 4
    package, extra = "mujoco", "render"

    def open(self) -> RenderScene:
        return _World(self).render


class _World:
    """A model whose parts are moved and dyed for each stack."""

    def __init__(self, renderer: ShapeStacks):
        self._renderer = renderer
        self._mujoco = mujoco = mujoco_with_gl()
        self._model = model = mujoco.MjModel.from_xml_string(*world(View.buffer(renderer.size)))
        model.geom_sameframe[:] = 0  # else geoms that were compiled at the origin stay there
        self._data = mujoco.MjData(model)
        self._view = View(mujoco, model, renderer.size)
        self._types = {shape: getattr(mujoco.mjtGeom, f"mjGEOM_{name.upper()}") for shape, name in GEOM_TYPES.items()}
        self._blocks = [model.geom(f"block{k}").id for k in range(MAX_BLOCKS)]
        self._label_of = np.zeros(model.ngeom + 1, np.uint8)
        self._label_of[self._blocks] = 1 + np.arange(MAX_BLOCKS)
        self._last = (-1, -1)  # seed and number of the stack that the model holds

    def render(self, seed: int, index: int) -> RenderedScene:
        number, view = divmod(index, self._renderer.views)
        if self._last != (seed, number):
            self._set_up(generator(self._renderer, seed, number))
            self._last = (seed, number)
        camera, labels = self._looks[view]
        self._view.look(self._data, camera)
        return RenderedScene(self._view.image(), labels, self._factors | {"camera": np.float32([camera + 1])})

    def _set_up(self, rng: np.random.Generator) -> None:
        """Put a new stack into the model, and find cameras that see all of it."""
        for _ in range(MAX_TRIES):
            stands, stack = self._draw(rng)
            self._place(stack)
            self._furnish(rng)
            self._looks = self._looks_at(rng, len(stack.shape))
            if self._looks is not None:
                break
        else:
            raise RuntimeError("no stack of a thousand shows all its blocks")
        columns = {
            "present": np.ones(len(stack.shape)),
            "order": 1 + np.arange(len(stack.shape)),
            "shape": stack.shape,
            "colour": stack.colour,
            "yaw": heading(stack.quaternion),
        }
        columns |= {name: 2 * stack.half[:, axis] for axis, name in enumerate(("width", "depth", "height"))}
        columns |= {name: stack.position[:, axis] for axis, name in enumerate("xyz")}
        columns = {name: values.astype(np.float32) for name, values in columns.items()}
        scene = {"num_blocks": np.float32([len(stack.shape)]), "stands": np.float32([stands])}
        self._factors = padded(columns, MAX_BLOCKS) | scene

    def _draw(self, rng: np.random.Generator) -> tuple[bool, Stack]:
        """A stack, and whether it stands: as often as not where it has more than one block."""
        broken = self._renderer.broken
        num_blocks = int(rng.integers(1 if broken is None else 2, MAX_BLOCKS, endpoint=True))
        if broken == "toppled":
            while (fallen := topple(self._mujoco, pile(rng, num_blocks, rng.choice([MASS, SURFACE])))) is None:
                pass
            return False, fallen
        to_stand = broken is not None or num_blocks == 1 or rng.random() < 0.5
        while True:
            stack = pile(rng, num_blocks, None if to_stand else rng.choice([MASS, SURFACE]))
            if let_go(self._mujoco, stack) == to_stand:
                break
        if broken is None:
            return to_stand, stack
        return False, {"floating": lift, "apart": set_apart}[broken](rng, stack)

    def _place(self, stack: Stack) -> None:
        model = self._model
        model.geom_pos[self._blocks] = _OUT_OF_SIGHT
        for block, geom in enumerate(self._blocks[: len(stack.shape)]):
            shape = int(stack.shape[block])
            model.geom_type[geom] = self._types[shape]
            model.geom_size[geom] = geom_size(shape, stack.half[block])
            model.geom_pos[geom], model.geom_quat[geom] = stack.position[block], stack.quaternion[block]
            model.geom_rgba[geom] = (*COLOURS[stack.colour[block]], 1)

    def _furnish(self, rng: np.random.Generator) -> None:
        model = self._model
        wall, floor = (int(rng.integers(len(textures))) for textures in (WALLS, FLOORS))
        for geom, material in {"wall0": f"wall{wall}", "wall1": f"wall{wall}", "floor": f"floor{floor}"}.items():
            model.geom(geom).matid = model.material(material).id
        model.light_castshadow[:] = np.arange(model.nlight) == rng.integers(model.nlight)
        self._mujoco.mj_kinematics(model, self._data)
        self._mujoco.mj_camlight(model, self._data)

    def _looks_at(self, rng: np.random.Generator, num_blocks: int) -> list[tuple[int, np.ndarray]] | None:
        """As many cameras as there are views, each with the labels it sees; None if there are not as many."""
        looks = []
        for camera in rng.permutation(self._model.ncam).tolist():
            self._view.look(self._data, camera)
            labels = self._label_of[self._view.geoms()]
            seen = (pixels_of(labels, 1, num_blocks) >= MIN_SHARE * labels.size).all()
            if seen and self._shows_break(labels, num_blocks):
                looks.append((camera, labels))
            if len(looks) == self._renderer.views:
                return looks
        return None

    def _shows_break(self, labels: UInt8[np.ndarray, "H W"], num_blocks: int) -> bool:
        """Whether the gap is seen: somewhere between floating blocks, all around blocks that are apart."""
        if self._renderer.broken not in ("floating", "apart"):
            return True
        gap = round(_GAP * len(labels))
        grown = [binary_dilation(labels == block, iterations=gap) for block in range(1, num_blocks + 1)]
        if self._renderer.broken == "floating":
            return not all((grown[k] & (labels == k + 2)).any() for k in range(num_blocks - 1))
        return not any((grown[a] & (labels == b + 1)).any() for a, b in combinations(range(num_blocks), 2))
