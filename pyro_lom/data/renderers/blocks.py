"""Stacks of blocks in the manner of ShapeStacks: how they are piled up, and what physics makes of them.

Sizes and rules are those of the published generator (github.com/ogroth/shapestacks): every dimension from 0.5 to 1;
piled from the top down, so that the centre of mass of what lies above is known, and put within half of the surface
under it. A stack breaks that rule at one place (`MASS`), or has a round block below its top (`SURFACE`).
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

CUBOID, CYLINDER, LYING_CYLINDER, SPHERE = range(4)
MASS, SURFACE = "mass", "surface"
COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)], float)
GEOM_TYPES = {CUBOID: "box", CYLINDER: "cylinder", LYING_CYLINDER: "cylinder", SPHERE: "sphere"}
MAX_BLOCKS = 6
MOVED = 0.08  # a stack in which a block moves further has not stood
_BEYOND = 0.05  # how far past the edge the centre of mass lies where that rule is broken
_SPREAD = 2.0  # of the middle of stacks, to all sides
_AT_REST = 0.02  # units, or radians, a second
_STEP, _STEPS_PER_LOOK, _LOOKS = 0.004, 25, 20  # of physics, 2 seconds in all


class Stack(NamedTuple):
    """Blocks from the lowest to the highest."""

    shape: Int[np.ndarray, "blocks"]
    half: Float[np.ndarray, "blocks 3"]
    """Half the extent along the block's own x and y, and upwards."""
    position: Float[np.ndarray, "blocks 3"]
    """Of the middle."""
    quaternion: Float[np.ndarray, "blocks 4"]
    colour: Int[np.ndarray, "blocks"]
    """Index into `COLOURS`."""


def pile(rng: np.random.Generator, num_blocks: int, broken_rule: str | None = None) -> Stack:
    """A stack that keeps the rules, or breaks one of them, below its highest block or somewhere lower."""
    violated = int(rng.integers(num_blocks - 1)) if broken_rule else -1
    shapes, halves = [], []
    for block in range(num_blocks):
        if block == num_blocks - 1:
            shape = int(rng.integers(4))
        elif block == violated and broken_rule == SURFACE:
            shape = int(rng.choice([LYING_CYLINDER, SPHERE]))
        else:
            shape = int(rng.choice([CUBOID, CYLINDER]))
        shapes.append(shape)
        halves.append(_half(rng, shape))
    yaw = rng.uniform(0, 360, num_blocks)
    shape, half = np.array(shapes), np.array(halves)
    mass = np.prod(2 * half, axis=1) * np.array([1, np.pi / 4, np.pi / 4, np.pi / 6])[shape]

    position = np.zeros((num_blocks, 3))
    for block in reversed(range(num_blocks - 1)):
        above = slice(block + 1, None)
        balance = mass[above] @ position[above, :2] / mass[above].sum()
        offset = _offset(rng, shapes[block], half[block], broken_rule if block == violated else None)
        position[block, :2] = balance - _turned(offset, yaw[block])
    position[:, :2] += rng.uniform(-_SPREAD, _SPREAD, 2) - position[:, :2].mean(0)
    height = 2 * half[:, 2]
    position[:, 2] = np.cumsum(height) - height / 2
    colour = rng.permutation(MAX_BLOCKS) if rng.random() < 0.5 else rng.integers(MAX_BLOCKS, size=MAX_BLOCKS)
    return Stack(shape, half, position, _quaternions(shape, yaw), colour[:num_blocks])


def let_go(mujoco: ModuleType, stack: Stack) -> bool:
    """Whether the stack stands for 2 seconds under gravity."""
    model = mujoco.MjModel.from_xml_string(_physics(stack))
    data = mujoco.MjData(model)
    for _ in range(_LOOKS):
        mujoco.mj_step(model, data, nstep=_STEPS_PER_LOOK)
        moved = np.linalg.norm(data.qpos.reshape(-1, 7)[:, :3] - stack.position, axis=1)
        if moved.max() > MOVED:
            return False
    return True


def topple(mujoco: ModuleType, stack: Stack) -> Stack | None:
    """Where blocks lie once all are at rest; None if they are not within 10 seconds, or only one is on the floor."""
    model = mujoco.MjModel.from_xml_string(_physics(stack))
    data = mujoco.MjData(model)
    for _ in range(5 * _LOOKS):
        mujoco.mj_step(model, data, nstep=_STEPS_PER_LOOK)
        if np.abs(data.qvel).max() < _AT_REST:
            break
    else:
        return None
    on_floor = {int(geoms.max()) for geoms in data.contact.geom if geoms.min() == 0}
    poses = data.qpos.reshape(-1, 7).copy()
    return stack._replace(position=poses[:, :3], quaternion=poses[:, 3:]) if len(on_floor) > 1 else None


def geom_size(shape: int, half: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    """The three numbers by which MuJoCo knows the size of such a block."""
    x, y, z = map(float, half)
    return {CUBOID: (x, y, z), CYLINDER: (x, z, 0.0), LYING_CYLINDER: (x, y, 0.0), SPHERE: (x, 0.0, 0.0)}[shape]


def lift(rng: np.random.Generator, stack: Stack) -> Stack:
    """The stack with its upper part, cut off at random, moved up by 0.6 to 1.2."""
    position = stack.position.copy()
    position[rng.integers(1, len(position)) :, 2] += rng.uniform(0.6, 1.2)
    return stack._replace(position=position)


def set_apart(rng: np.random.Generator, stack: Stack) -> Stack:
    """The blocks beside each other on the floor, in a square that grows with their number, none in another."""
    spread, reach = 0.5 * len(stack.shape), np.linalg.norm(stack.half[:, :2], axis=1)
    while True:
        places = rng.uniform(-spread, spread, (len(reach), 2))
        apart = np.linalg.norm(places[:, None] - places, axis=2) + 100 * np.eye(len(reach))
        if (apart > reach[:, None] + reach).all():
            return stack._replace(position=np.column_stack([places, stack.half[:, 2]]))


def heading(quaternion: Float[np.ndarray, "blocks 4"]) -> Float[np.ndarray, "blocks"]:
    """Degrees from the world's x axis to each block's own, seen from above."""
    w, x, y, z = quaternion.T
    return np.degrees(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2))) % 360


def _half(rng: np.random.Generator, shape: int) -> np.ndarray:
    x, y, z = rng.uniform(0.25, 0.5, 3)
    return np.array({CUBOID: (x, y, z), CYLINDER: (x, x, z), LYING_CYLINDER: (x, y, x), SPHERE: (x, x, x)}[shape])


def _offset(rng: np.random.Generator, shape: int, half: np.ndarray, broken_rule: str | None) -> np.ndarray:
    """Of the centre of mass above a block from the block's middle, along its own x and y."""
    side = rng.choice([-1, 1], 2)
    if shape in (LYING_CYLINDER, SPHERE):  # a little off the line or point where it would balance
        return rng.uniform(0.02, 0.06, 2) * side
    if broken_rule == MASS:
        over = np.array([(1, 0), (0, 1), (1, 1)][rng.integers(3)], bool)
        return np.where(over, side * (half[:2] + _BEYOND), rng.uniform(-1, 1, 2) * half[:2])
    while True:
        offset = rng.uniform(-0.5, 0.5, 2)
        if shape == CUBOID or np.hypot(*offset) < 0.5:
            return offset * half[:2]


def _turned(offset: np.ndarray, yaw: float) -> np.ndarray:
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    return np.array([cos * offset[0] - sin * offset[1], sin * offset[0] + cos * offset[1]])


def _quaternions(shape: np.ndarray, yaw: np.ndarray) -> Float[np.ndarray, "blocks 4"]:
    """Turned about z, after a cylinder that lies was tipped about x."""
    w, z = np.cos(np.radians(yaw) / 2), np.sin(np.radians(yaw) / 2)
    lies = shape == LYING_CYLINDER
    tipped = np.sqrt(0.5) * np.stack([w, w, z, z], 1)
    return np.where(lies[:, None], tipped, np.stack([w, 0 * w, 0 * w, z], 1))


def _physics(stack: Stack) -> str:
    bodies = []
    for shape, half, position, quaternion in zip(
        stack.shape.tolist(), stack.half, stack.position, stack.quaternion, strict=True
    ):
        numbers = [" ".join(map(repr, map(float, row))) for row in (position, quaternion, geom_size(shape, half))]
        friction = "1 0.01 0.01" if GEOM_TYPES[shape] == "cylinder" else "1 0.005 0.0001"
        bodies.append(
            f'<body pos="{numbers[0]}" quat="{numbers[1]}"><freejoint/><geom type="{GEOM_TYPES[shape]}" '
            f'size="{numbers[2]}" friction="{friction}" condim="6"/></body>'
        )
    return (
        f'<mujoco><option timestep="{_STEP}" cone="elliptic"/><worldbody>'
        f'<geom type="plane" size="20 20 1"/>{"".join(bodies)}</worldbody></mujoco>'
    )
