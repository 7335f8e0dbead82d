"""Rooms in the manner of Objects Room, drawn by MuJoCo.

A square room under an open sky: one flat blue, floor and walls each of one hue, with textures of light and dark, and
objects of saturated colours that stand on the floor, lit from above. The ranges are tuned by eye to the published
preview (github.com/google-deepmind/multi_object_datasets); the original's are not known.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.colors import hsv_to_rgb

from pyro_lom.data.renderers.objects_room_model import (
    FLOORS,
    HEIGHTS,
    PRIMITIVES,
    SHAPES,
    SIZES,
    VIEW,
    WALLS,
    room,
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
from pyro_lom.data.renderers.view import View, mujoco_with_gl

MIN_SHARE = 12 / 64**2  # of the image: what is seen of each object at least
NUM_BACKGROUND = 4
_OUT_OF_SIGHT = (0.0, 0.0, -50.0)


@dataclass(frozen=True)
class ObjectsRoom(Renderer):
    """Labels are 0 sky, 1 floor, 2 and 3 the walls across x and across y, 4.. objects.

    Factors, one column per object and 0 where there is none: `present`, `shape` (index into `SHAPES`), `scale` (index
    into `SIZES`), `hue` in degrees, `x`, `y` in a room that reaches from -2.5 to 2.5, and `rotation` in degrees.

    Args:
        size: height and width of the images.
        num_objects: smallest and largest number of objects.
        one_colour: whether all objects of a scene have the same colour.
    """

    size: int = 64
    num_objects: tuple[int, int] = (1, 3)
    one_colour: bool = False

    num_background = NUM_BACKGROUND
    version = 1
    block_size = 200
    package, extra = "mujoco", "render"

    def open(self) -> RenderScene:
        return _Room(self).render


class _Room:
    """A model whose parts are moved and dyed for each scene: to compile another would take ten times as long."""

    def __init__(self, renderer: ObjectsRoom):
        self._renderer = renderer
        self._columns = max(3, renderer.num_objects[1])
        self._mujoco = mujoco = mujoco_with_gl()
        self._model = model = mujoco.MjModel.from_xml_string(*room(View.buffer(renderer.size), self._columns))
        model.geom_sameframe[:] = 0  # else geoms that were compiled at the origin stay there
        self._data = mujoco.MjData(model)
        self._view = View(mujoco, model, renderer.size)
        self._objects = [model.geom(f"object{k}").id for k in range(self._columns)]
        self._label_of = np.zeros(model.ngeom + 1, np.uint8)  # the last is -1, the sky
        for label, names in {1: ["floor"], 2: ["wall0", "wall1"], 3: ["wall2", "wall3"]}.items():
            self._label_of[[model.geom(name).id for name in names]] = label
        self._label_of[self._objects] = NUM_BACKGROUND + np.arange(self._columns)

    def render(self, seed: int, index: int) -> RenderedScene:
        rng = generator(self._renderer, seed, index)
        for _ in range(MAX_TRIES):
            factors = self._lay_out(rng)
            self._view.look(self._data)
            labels = self._label_of[self._view.geoms()]
            count = len(factors["present"])
            if (pixels_of(labels, NUM_BACKGROUND, count) >= MIN_SHARE * labels.size).all():
                return RenderedScene(self._view.image(), labels, padded(factors, self._columns))
        raise RuntimeError(f"no layout of scene {index} shows every object")

    def _lay_out(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        model = self._model
        # Camera: on a ring within the walls, and looks a little past the middle.
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
        model.geom_pos[self._objects] = _OUT_OF_SIGHT
        for k in range(count):
            self._put(self._objects[k], SHAPES[shape[k]], int(scale[k]), places[k], rotation[k], colour[k])
        self._mujoco.mj_kinematics(model, self._data)
        self._mujoco.mj_camlight(model, self._data)
        factors = dict(shape=shape, scale=scale, hue=hue, x=places[:, 0], y=places[:, 1], rotation=rotation)
        factors = {name: values.astype(np.float32) for name, values in factors.items()}
        return {"present": np.ones(count, np.float32)} | factors

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
        shift, quaternion = np.empty(3), np.empty(4)  # MuJoCo turned and moved the vertices when it compiled
        mujoco.mju_rotVecQuat(shift, model.mesh_pos[mesh], turn)
        mujoco.mju_mulQuat(quaternion, turn, model.mesh_quat[mesh])
        model.geom_type[geom], model.geom_dataid[geom] = mujoco.mjtGeom.mjGEOM_MESH, mesh
        model.geom_pos[geom], model.geom_quat[geom] = stand + shift, quaternion

    def _looking(self, direction: np.ndarray) -> Float[np.ndarray, "4"]:
        """Quaternion of an upright camera that looks that way."""
        back = -direction / np.linalg.norm(direction)
        right = np.cross([0, 0, 1], back)
        right /= np.linalg.norm(right)
        quaternion = np.empty(4)
        self._mujoco.mju_mat2Quat(quaternion, np.stack([right, np.cross(back, right), back], 1).ravel())
        return quaternion


def _places(
    rng: np.random.Generator, radii: Float[np.ndarray, "objects"], eye: Float[np.ndarray, "2"], target: np.ndarray
) -> Float[np.ndarray, "objects 2"]:
    """Places on the floor in view of the camera where objects of those radii keep apart, and away from it."""
    ahead = (target - eye) / np.linalg.norm(target - eye)
    while True:  # begins anew where the first objects leave no room
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
