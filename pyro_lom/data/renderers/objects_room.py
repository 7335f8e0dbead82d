"""Renderer of rooms as in Objects Room, with MuJoCo.

A square room is open to a sky of uniform blue. Floor and walls have one hue each and textures of varying brightness.
Objects of saturated colours stand on the floor and are lit from above. All ranges were tuned by eye to the published
preview (github.com/google-deepmind/multi_object_datasets), because the original ranges are unknown.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.colors import hsv_to_rgb

from pyro_lom.data.renderers.objects_room_model import FLOORS, HEIGHTS, PRIMITIVES, SHAPES, SIZES, VIEW, WALLS, room
from pyro_lom.data.renderers.renderer import MAX_TRIES, Renderer, RenderScene, generator, padded, pixels_of
from pyro_lom.data.renderers.view import Stage
from pyro_lom.data.writer import Scene

MIN_SHARE = 12 / 64**2  # of the image: minimum visible area of an object


@dataclass(frozen=True)
class ObjectsRoom(Renderer):
    """Renderer of rooms. Labels: 0 sky, 1 floor, 2 walls perpendicular to x, 3 walls perpendicular to y, 4.. objects.

    Factors have one column per object, and 0 for absent objects: `present`, `shape` (index into `SHAPES`), `scale`
    (index into `SIZES`), `hue` and `rotation` in degrees, and `x`, `y` in a room that extends from -2.5 to 2.5.

    Args:
        num_objects: smallest and largest number of objects.
        one_colour: whether all objects of a scene have the same colour.
    """

    size: int = 64
    num_objects: tuple[int, int] = (1, 3)
    one_colour: bool = False

    num_background = 4
    version = 1
    block_size = 200
    package, extra = "mujoco", "render"

    def open(self) -> RenderScene:
        return _Room(self).render


class _Room(Stage):
    def __init__(self, renderer: ObjectsRoom):
        columns = max(3, renderer.num_objects[1])
        super().__init__(renderer, room(columns), columns)
        for label, names in {1: ["floor"], 2: ["wall0", "wall1"], 3: ["wall2", "wall3"]}.items():
            self._label_of[[self._model.geom(name).id for name in names]] = label

    def render(self, seed: int, index: int) -> Scene:
        rng = generator(self._renderer, seed, index)
        for _ in range(MAX_TRIES):
            factors, labels = self._lay_out(rng), self._labels()
            sizes = pixels_of(labels, self._renderer.num_background, len(factors["present"]))
            if (sizes >= MIN_SHARE * labels.size).all():
                return Scene(self._view.image(), labels, padded(factors, len(self._objects)))
        raise RuntimeError(f"no layout of scene {index} shows every object")

    def _lay_out(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        model = self._model
        # The camera is on a ring within the walls and looks at a random point near the middle.
        around, radius = rng.uniform(0, 2 * np.pi), rng.uniform(1.7, 2.1)
        eye = np.array([radius * np.cos(around), radius * np.sin(around), rng.uniform(0.55, 0.95)])
        target = np.array([*rng.uniform(-0.35, 0.35, 2), rng.uniform(0.15, 0.45)])
        model.cam_pos[0], model.cam_quat[0] = eye, self._looking(target - eye)
        lamp = np.array([*rng.uniform(-1.2, 1.2, 2), rng.uniform(3.0, 4.0)])
        model.light_pos[0], model.light_dir[0] = lamp, -lamp / np.linalg.norm(lamp)

        for name, textures in (("floor", FLOORS), ("wall", WALLS)):
            material = model.material(f"{name}{rng.integers(len(textures))}").id
            dye = hsv_to_rgb((rng.integers(10) / 10, rng.uniform(0.55, 0.8), rng.uniform(0.75, 1.0)))
            for geom in [name] if name == "floor" else [f"wall{k}" for k in range(4)]:
                model.geom(geom).matid = material
                model.geom(geom).rgba = (*dye, 1)

        count = int(rng.integers(*self._renderer.num_objects, endpoint=True))
        shape, scale = rng.integers(len(SHAPES), size=count), rng.integers(len(SIZES), size=count)
        rotation = rng.uniform(0, 360, count)
        hue = rng.uniform(0, 360, 1 if self._renderer.one_colour else count)
        colour = np.stack([hue / 360, rng.uniform(0.75, 1, hue.shape), rng.uniform(0.8, 1, hue.shape)], -1)
        hue, colour = np.broadcast_to(hue, count), np.broadcast_to(hsv_to_rgb(colour), (count, 3))
        places = _places(rng, SIZES[scale], eye[:2], target[:2])
        model.geom_pos[self._objects] = (0, 0, -50)  # out of sight
        for k in range(count):
            self._put(self._objects[k], SHAPES[shape[k]], int(scale[k]), places[k], rotation[k], colour[k])
        self._move()
        x, y = places.T
        return dict(present=np.ones(count), shape=shape, scale=scale, hue=hue, x=x, y=y, rotation=rotation)

    def _put(self, geom: int, shape: str, scale: int, place: np.ndarray, rotation: float, colour: np.ndarray) -> None:
        model, mujoco, radius = self._model, self._mujoco, float(SIZES[scale])
        turn = np.array([np.cos(np.radians(rotation) / 2), 0, 0, np.sin(np.radians(rotation) / 2)])
        stand = np.array([*place, radius * HEIGHTS[shape]])
        model.geom_rgba[geom] = (*colour, 1)
        if shape in PRIMITIVES:
            model.geom_type[geom] = getattr(mujoco.mjtGeom, f"mjGEOM_{shape.upper()}")
            model.geom_dataid[geom] = -1
            model.geom_size[geom] = radius * np.array(PRIMITIVES[shape])
            model.geom_pos[geom], model.geom_quat[geom] = stand, turn
            return
        mesh = model.mesh(f"{shape}-{scale}").id
        shift, quaternion = np.empty(3), np.empty(4)  # MuJoCo's compiler rotates and shifts the vertices of a mesh
        mujoco.mju_rotVecQuat(shift, model.mesh_pos[mesh], turn)
        mujoco.mju_mulQuat(quaternion, turn, model.mesh_quat[mesh])
        model.geom_type[geom], model.geom_dataid[geom] = mujoco.mjtGeom.mjGEOM_MESH, mesh
        model.geom_pos[geom], model.geom_quat[geom] = stand + shift, quaternion

    def _looking(self, direction: np.ndarray) -> Float[np.ndarray, "4"]:
        """Return the quaternion of an upright camera that looks in `direction`."""
        back = -direction / np.linalg.norm(direction)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], 1).ravel())
        return quaternion


def _places(
    rng: np.random.Generator, radii: Float[np.ndarray, "objects"], eye: Float[np.ndarray, "2"], target: np.ndarray
) -> Float[np.ndarray, "objects 2"]:
    """Draw places on the floor, in view of and away from the camera, where objects with `radii` do not touch."""
    ahead = (target - eye) / np.linalg.norm(target - eye)
    while True:  # restarts if the first objects leave no space for the others
        places = np.zeros((0, 2))
        for _ in range(50 * len(radii) + 1):
            if len(places) == len(radii):
                return places
            radius, place = radii[len(places)], rng.uniform(-1.3, 1.3, 2)
            apart = np.linalg.norm(places - place, axis=1) > radius + radii[: len(places)] + 0.05
            away = place - eye
            distance = np.linalg.norm(away)
            if apart.all() and distance > 0.9 + radius and ahead @ away > np.cos(VIEW / 2) * distance:
                places = np.concatenate([places, place[None]])
