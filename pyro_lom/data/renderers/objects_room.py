"""Rooms in the manner of Objects Room, drawn by MuJoCo.

A square room under an open sky: one flat blue, floor and walls each of one hue, with textures of light and dark, and
objects of saturated colours that stand on the floor, lit from above. The ranges are tuned by eye to the published
preview (github.com/google-deepmind/multi_object_datasets); the original's are not known.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.colors import hsv_to_rgb

from pyro_lom.data.renderers import meshes
from pyro_lom.data.renderers.renderer import (
    MAX_TRIES,
    RenderedScene,
    Renderer,
    RenderScene,
    generator,
    padded,
    pixels_of,
)
from pyro_lom.data.renderers.textures import checks, clouds, coloured, hexagons, masonry, planks, png, stripes
from pyro_lom.data.renderers.view import View, mujoco_with_gl

SHAPES = ("sphere", "capsule", "cylinder", "box", "cone", "icosahedron", "torus", "hollow triangle")
SIZES = np.linspace(0.16, 0.30, 8)  # radius, in the units of a room 5 wide
MIN_SHARE = 12 / 64**2  # of the image: what is seen of each object at least
SKY, FLOOR, WALLS = 0, 1, (2, 3)
NUM_BACKGROUND = 4
_HALF, _HEIGHT = 2.5, 1.25  # of the room
_MESHES = {4: meshes.cone(), 5: meshes.icosahedron(), 6: meshes.torus(), 7: meshes.hollow_triangle()}
_LOWEST = {shape: -float(vertices[:, 2].min()) for shape, (vertices, _) in _MESHES.items()}
_VIEW = np.radians(50)  # angle that the camera sees
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
        self._model = model = mujoco.MjModel.from_xml_string(*_model(View.buffer(renderer.size), self._columns))
        model.geom_sameframe[:] = 0  # else geoms that were compiled at the origin stay there
        self._data = mujoco.MjData(model)
        self._view = View(mujoco, model, renderer.size)
        kinds = mujoco.mjtGeom
        self._kinds = [kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE, kinds.mjGEOM_CYLINDER, kinds.mjGEOM_BOX]
        self._objects = [model.geom(f"object{k}").id for k in range(self._columns)]
        self._label_of = np.zeros(model.ngeom + 1, np.uint8)  # the last is -1, the sky
        for label, names in {FLOOR: ["floor"], WALLS[0]: ["wall0", "wall1"], WALLS[1]: ["wall2", "wall3"]}.items():
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

        for name, textures in (("floor", _FLOORS), ("wall", _WALLS)):
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
            self._put(self._objects[k], int(shape[k]), int(scale[k]), places[k], rotation[k], colour[k])
        self._mujoco.mj_kinematics(model, self._data)
        self._mujoco.mj_camlight(model, self._data)
        factors = dict(shape=shape, scale=scale, hue=hue, x=places[:, 0], y=places[:, 1], rotation=rotation)
        factors = {name: values.astype(np.float32) for name, values in factors.items()}
        return {"present": np.ones(count, np.float32)} | factors

    def _put(self, geom: int, shape: int, scale: int, place: np.ndarray, rotation: float, colour: np.ndarray) -> None:
        model, mujoco, radius = self._model, self._mujoco, float(SIZES[scale])
        turn = np.array([np.cos(np.radians(rotation) / 2), 0, 0, np.sin(np.radians(rotation) / 2)])
        model.geom_rgba[geom] = (*colour, 1)
        if shape in _MESHES:
            mesh = model.mesh(f"{shape}-{scale}").id
            position, quaternion = np.empty(3), np.empty(4)  # MuJoCo turned and moved the vertices when it compiled
            mujoco.mju_rotVecQuat(position, model.mesh_pos[mesh], turn)
            mujoco.mju_mulQuat(quaternion, turn, model.mesh_quat[mesh])
            model.geom_type[geom], model.geom_dataid[geom] = mujoco.mjtGeom.mjGEOM_MESH, mesh
            model.geom_pos[geom] = position + [*place, radius * _LOWEST[shape]]
            model.geom_quat[geom] = quaternion
            return
        half = {0: (radius, 0, 0), 1: (0.62 * radius, 0.62 * radius, 0), 2: (0.8 * radius, 0.9 * radius, 0)}
        model.geom_type[geom], model.geom_dataid[geom] = self._kinds[shape], -1
        model.geom_size[geom] = half.get(shape, (0.78 * radius,) * 3)
        height = {0: radius, 1: 1.24 * radius, 2: 0.9 * radius, 3: 0.78 * radius}[shape]
        model.geom_pos[geom], model.geom_quat[geom] = (*place, height), turn

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
            if apart.all() and distance > 0.9 + radius and ahead @ away > np.cos(_VIEW / 2) * distance:
                places = np.concatenate([places, place[None]])


def _shaded(pattern: np.ndarray, depth: float) -> bytes:
    """A near-white texture, which the colour of floor or wall multiplies."""
    dark = round(255 * (1 - depth))
    return png(coloured(pattern, (dark,) * 3, (255,) * 3))


_FLOORS = {
    "hexagons": (lambda: _shaded(hexagons(6), 0.4), 3),
    "clouds": (lambda: _shaded(clouds(1, 1.8), 0.4), 2),
    "checks": (lambda: _shaded(checks(4), 0.25), 3),
    "planks": (lambda: _shaded(planks(6, 2, 2), 0.45), 2),
}
_WALLS = {
    "bricks": (lambda: _shaded(masonry(8, 4, 3, joint=0.008), 0.4), 1),
    "blobs": (lambda: _shaded((clouds(4, 1.7) - 0.4) * 5, 0.3), 0.75),
    "stripes": (lambda: _shaded(stripes(8), 0.2), 1),
}
"""Textures by name: how each is drawn, and how often it is repeated across a room's height."""


def _model(buffer: int, num_objects: int) -> tuple[str, dict[str, bytes]]:
    """The room as MJCF, and the files that it names."""
    files, assets = {}, []
    for surface, textures, (across, down) in (("floor", _FLOORS, (1, 1)), ("wall", _WALLS, (4, 1))):
        for k, (name, (draw, repeat)) in enumerate(textures.items()):
            files[f"{name}.png"] = draw()
            assets.append(f'<texture name="{name}" type="2d" file="{name}.png"/>')
            assets.append(
                f'<material name="{surface}{k}" texture="{name}" specular="0" '
                f'texrepeat="{across * repeat} {down * repeat}"/>'
            )
    for shape, (vertices, triangles) in _MESHES.items():
        numbers = f'vertex="{_text(vertices)}" face="{_text(triangles)}"'
        for scale, radius in enumerate(SIZES):
            smooth = "true" if SHAPES[shape] == "torus" else "false"
            assets.append(
                f'<mesh name="{shape}-{scale}" scale="{radius} {radius} {radius}" {numbers} smoothnormal="{smooth}"/>'
            )
    middle = _HEIGHT / 2
    walls = [("-1 0 0", f"{_HALF} 0"), ("1 0 0", f"-{_HALF} 0"), ("0 -1 0", f"0 {_HALF}"), ("0 1 0", f"0 -{_HALF}")]
    geoms = [f'<geom name="floor" type="plane" size="{_HALF} {_HALF} 1" material="floor0"/>']
    for k, (inwards, place) in enumerate(walls):
        x, y, _ = map(int, inwards.split())
        geoms.append(
            f'<geom name="wall{k}" type="plane" size="{_HALF} {middle} 1" material="wall0" pos="{place} {middle}" '
            f'xyaxes="{-y} {x} 0 0 0 1"/>'
        )
    geoms += [
        f'<geom name="object{k}" type="sphere" size="0.1" material="object" pos="0 0 -50"/>' for k in range(num_objects)
    ]
    return (
        f"""<mujoco>
  <statistic extent="5" center="0 0 0.5"/>
  <visual>
    <global offwidth="{buffer}" offheight="{buffer}" fovy="{np.degrees(_VIEW):.6g}"/>
    <quality shadowsize="640" offsamples="0"/>
    <map znear="0.02" zfar="5"/>
    <headlight ambient="0.42 0.42 0.42" diffuse="0.18 0.18 0.18" specular="0 0 0"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="flat" rgb1="0.6 0.886 0.976" width="16" height="96"/>
    <material name="object" specular="0.35" shininess="0.4"/>
    {" ".join(assets)}
  </asset>
  <worldbody>
    <light pos="0 0 3.5" dir="0 0 -1" diffuse="0.62 0.62 0.62" specular="0.4 0.4 0.4" cutoff="80" exponent="0.5"/>
    <camera name="eye"/>
    {" ".join(geoms)}
  </worldbody>
</mujoco>""",
        files,
    )


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.6g}" for number in numbers.ravel())
