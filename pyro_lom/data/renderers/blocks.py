"""Stacks of blocks as in ShapeStacks: their random construction, and the simulation of their physics.

Sizes and rules follow the published generator (github.com/ogroth/shapestacks). Every dimension is between 0.5 and 1.
Positions are drawn from the top block down. The centre of mass of all blocks above a block must be within the inner
half of its surface. A stack can break that rule at one block (`MASS`), or have a round block below its top (`SURFACE`).
"""

from collections.abc import Iterator
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation

CUBOID, CYLINDER, LYING_CYLINDER, SPHERE = range(4)
MASS, SURFACE = "mass", "surface"
COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)], float)
GEOM_TYPES = {CUBOID: "box", CYLINDER: "cylinder", LYING_CYLINDER: "cylinder", SPHERE: "sphere"}
MAX_BLOCKS = 6
MOVED = 0.08  # maximum movement of any block in a stack that stands
_BEYOND = 0.05  # distance of the centre of mass from the block's edge where `MASS` is broken
_SPREAD = 2.0  # maximum distance of a stack's centre from the origin, along x and along y
_AT_REST = 0.02  # maximum velocity of a block at rest, in units or radians per second
_STEP = 0.004  # seconds per step of the simulation


class Stack(NamedTuple):
    """A stack of blocks, in order from the lowest to the highest."""

    shape: Int[np.ndarray, "blocks"]
    half: Float[np.ndarray, "blocks 3"]
    """Half the extent along the block's own x and y, and along the vertical."""
    position: Float[np.ndarray, "blocks 3"]
    """Centre of each block."""
    quaternion: Float[np.ndarray, "blocks 4"]
    colour: Int[np.ndarray, "blocks"]
    """Index into `COLOURS`."""


def pile(rng: np.random.Generator, num_blocks: int, broken_rule: str | None = None) -> Stack:
    """Draw a stack that keeps all rules, or breaks `broken_rule` at a random block below the highest."""
    violated = int(rng.integers(num_blocks - 1)) if broken_rule else -1
    choices = [[CUBOID, CYLINDER]] * (num_blocks - 1) + [[CUBOID, CYLINDER, LYING_CYLINDER, SPHERE]]
    if broken_rule == SURFACE:
        choices[violated] = [LYING_CYLINDER, SPHERE]
    shapes, halves = [], []
    for choice in choices:
        shapes.append(int(rng.choice(choice)))
        halves.append(_half(rng, shapes[-1]))
    yaw = rng.uniform(0, 360, num_blocks)
    shape, half = np.array(shapes), np.array(halves)
    mass = np.prod(2 * half, axis=1) * np.array([1, np.pi / 4, np.pi / 4, np.pi / 6])[shape]

    position = np.zeros((num_blocks, 3))
    for block in reversed(range(num_blocks - 1)):
        above = slice(block + 1, None)
        balance = mass[above] @ position[above, :2] / mass[above].sum()
        x, y = _offset(rng, shapes[block], half[block], broken_rule if block == violated else None)
        cos, sin = np.cos(np.radians(yaw[block])), np.sin(np.radians(yaw[block]))
        position[block, :2] = balance - (cos * x - sin * y, sin * x + cos * y)
    position[:, :2] += rng.uniform(-_SPREAD, _SPREAD, 2) - position[:, :2].mean(0)
    height = 2 * half[:, 2]
    position[:, 2] = np.cumsum(height) - height / 2
    colour = rng.permutation(MAX_BLOCKS) if rng.random() < 0.5 else rng.integers(MAX_BLOCKS, size=MAX_BLOCKS)
    return Stack(shape, half, position, _quaternions(shape, yaw), colour[:num_blocks])


def let_go(mujoco: ModuleType, stack: Stack) -> bool:
    """Return whether the stack stands for 2 seconds under gravity."""
    for data in _simulated(mujoco, stack, 2):
        moved = np.linalg.norm(data.qpos.reshape(-1, 7)[:, :3] - stack.position, axis=1)
        if moved.max() > MOVED:
            return False
    return True


def topple(mujoco: ModuleType, stack: Stack) -> Stack | None:
    """Return the fallen stack at rest; None if it moves for 10 seconds or has fewer than two blocks on the floor."""
    for data in _simulated(mujoco, stack, 10):
        if np.abs(data.qvel).max() < _AT_REST:
            on_floor = {int(geoms.max()) for geoms in data.contact.geom if geoms.min() == 0}
            poses = data.qpos.reshape(-1, 7).copy()
            return stack._replace(position=poses[:, :3], quaternion=poses[:, 3:]) if len(on_floor) > 1 else None
    return None


def geom_size(shape: int, half: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    """Return the size of a block as the three numbers that MuJoCo requires."""
    x, y, z = map(float, half)
    return {CUBOID: (x, y, z), CYLINDER: (x, z, 0.0), LYING_CYLINDER: (x, y, 0.0), SPHERE: (x, 0.0, 0.0)}[shape]


def lift(rng: np.random.Generator, stack: Stack) -> Stack:
    """Return the stack with a random block, not the lowest, and all blocks above it raised by 0.6 to 1.2."""
    position = stack.position.copy()
    position[rng.integers(1, len(position)) :, 2] += rng.uniform(0.6, 1.2)
    return stack._replace(position=position)


def set_apart(rng: np.random.Generator, stack: Stack) -> Stack:
    """Return the blocks at random places on the floor, without overlap, in a square of side length `num_blocks`."""
    spread, reach = 0.5 * len(stack.shape), np.linalg.norm(stack.half[:, :2], axis=1)
    while True:
        places = rng.uniform(-spread, spread, (len(reach), 2))
        apart = np.linalg.norm(places[:, None] - places, axis=2) + 100 * np.eye(len(reach))
        if (apart > reach[:, None] + reach).all():
            return stack._replace(position=np.column_stack([places, stack.half[:, 2]]))


def corners(stack: Stack) -> Float[np.ndarray, "blocks 8 3"]:
    """Return the corners of a box around each block, along the block's own axes."""
    lies = (stack.shape == LYING_CYLINDER)[:, None]
    half = np.where(lies, stack.half[:, [0, 2, 1]], stack.half)  # its own z axis is horizontal
    own = half[:, None] * np.array(list(product((-1, 1), repeat=3)))
    turned = Rotation.from_quat(np.roll(stack.quaternion, -1, axis=1)).as_matrix() @ own.transpose(0, 2, 1)
    return stack.position[:, None] + turned.transpose(0, 2, 1)


def heading(quaternion: Float[np.ndarray, "blocks 4"]) -> Float[np.ndarray, "blocks"]:
    """Return the angle in degrees from the world's x axis to each block's x axis, seen from above."""
    w, x, y, z = quaternion.T
    return np.degrees(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2))) % 360


def _half(rng: np.random.Generator, shape: int) -> np.ndarray:
    x, y, z = rng.uniform(0.25, 0.5, 3)
    return np.array({CUBOID: (x, y, z), CYLINDER: (x, x, z), LYING_CYLINDER: (x, y, x), SPHERE: (x, x, x)}[shape])


def _offset(rng: np.random.Generator, shape: int, half: np.ndarray, broken_rule: str | None) -> np.ndarray:
    """Draw the offset of the centre of mass above a block from the block's centre, along the block's x and y."""
    side = rng.choice([-1, 1], 2)
    if shape in (LYING_CYLINDER, SPHERE):  # slightly off the line or point of balance
        return rng.uniform(0.02, 0.06, 2) * side
    if broken_rule == MASS:
        over = np.array([(1, 0), (0, 1), (1, 1)][rng.integers(3)], bool)
        return np.where(over, side * (half[:2] + _BEYOND), rng.uniform(-1, 1, 2) * half[:2])
    while True:
        offset = rng.uniform(-0.5, 0.5, 2)
        if shape == CUBOID or np.hypot(*offset) < 0.5:
            return offset * half[:2]


def _quaternions(shape: np.ndarray, yaw: np.ndarray) -> Float[np.ndarray, "blocks 4"]:
    """Return rotations by `yaw` about z. Lying cylinders are first rotated by 90 degrees about x."""
    w, z = np.cos(np.radians(yaw) / 2), np.sin(np.radians(yaw) / 2)
    lies = shape == LYING_CYLINDER
    tipped = np.sqrt(0.5) * np.stack([w, w, z, z], 1)
    return np.where(lies[:, None], tipped, np.stack([w, 0 * w, 0 * w, z], 1))


def _simulated(mujoco: ModuleType, stack: Stack, seconds: int) -> Iterator[Any]:
    """Yield the state of the stack under gravity, an `MjData`, ten times per second."""
    model = mujoco.MjModel.from_xml_string(_physics(stack))
    data = mujoco.MjData(model)
    for _ in range(10 * seconds):
        mujoco.mj_step(model, data, nstep=round(0.1 / _STEP))
        yield data


def _physics(stack: Stack) -> str:
    bodies = []
    for shape, half, position, quaternion, _ in zip(*stack, strict=True):
        vectors = (position, quaternion, geom_size(int(shape), half))
        place, turn, size = (" ".join(map(repr, map(float, vector))) for vector in vectors)
        friction = "1 0.01 0.01" if GEOM_TYPES[shape] == "cylinder" else "1 0.005 0.0001"
        bodies.append(
            f'<body pos="{place}" quat="{turn}"><freejoint/><geom type="{GEOM_TYPES[shape]}" '
            f'size="{size}" friction="{friction}" condim="6"/></body>'
        )
    return (
        f'<mujoco><option timestep="{_STEP}" cone="elliptic"/><worldbody>'
        f'<geom type="plane" size="20 20 1"/>{"".join(bodies)}</worldbody></mujoco>'
    )
