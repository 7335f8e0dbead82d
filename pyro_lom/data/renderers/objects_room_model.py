"""The room of Objects Room as a MuJoCo model: floor, walls, sky, a lamp, a camera, and objects out of sight."""

import numpy as np

from pyro_lom.data.renderers import meshes
from pyro_lom.data.renderers.textures import checks, clouds, hexagons, masonry, materials, planks, stripes

SIZES = np.linspace(0.16, 0.30, 8)  # radius
HALF, HEIGHT = 2.5, 1.25  # half the width of the room, and its height
VIEW = np.radians(50)  # the camera's angle of view, in radians
PRIMITIVES = {"sphere": (1, 0, 0), "capsule": (0.62, 0.62, 0), "cylinder": (0.8, 0.9, 0), "box": (0.78, 0.78, 0.78)}
"""MuJoCo's geom `size` of an object of radius 1."""
MESHES = {
    "cone": meshes.cone(),
    "icosahedron": meshes.icosahedron(),
    "torus": meshes.torus(),
    "hollow triangle": meshes.hollow_triangle(),
}
SHAPES = (*PRIMITIVES, *MESHES)
HEIGHTS = {"sphere": 1, "capsule": 1.24, "cylinder": 0.9, "box": 0.78}
HEIGHTS |= {shape: -float(vertices[:, 2].min()) for shape, (vertices, _) in MESHES.items()}
"""Height of the centre of an object of radius 1 that stands on the floor."""


_WHITE = (255, 255, 255)
FLOORS = {
    "hexagons": (lambda: hexagons(6), (153, 153, 153), _WHITE, "3 3"),
    "clouds": (lambda: clouds(1, 1.8), (153, 153, 153), _WHITE, "2 2"),
    "checks": (lambda: checks(4), (191, 191, 191), _WHITE, "3 3"),
    "planks": (lambda: planks(6, 2, 2), (140, 140, 140), _WHITE, "2 2"),
}
WALLS = {
    "bricks": (lambda: masonry(8, 4, 3, joint=0.008), (153, 153, 153), _WHITE, "4 1"),
    "blobs": (lambda: (clouds(4, 1.7) - 0.4) * 5, (178, 178, 178), _WHITE, "3 0.75"),
    "stripes": (lambda: stripes(8), (204, 204, 204), _WHITE, "4 1"),
}
"""`Texture`s by name. They are near white, because the colour of floor or wall multiplies them."""


def room(num_objects: int) -> tuple[str, dict[str, bytes]]:
    """Return the room as MJCF, and the content of the files that the MJCF refers to."""
    floors, floor_files = materials("floor", FLOORS, 'specular="0"')
    walls, wall_files = materials("wall", WALLS, 'specular="0"')
    assets = floors + walls
    for shape, (vertices, triangles) in MESHES.items():
        smooth = "true" if shape == "torus" else "false"
        numbers = f'vertex="{_text(vertices)}" face="{_text(triangles)}" smoothnormal="{smooth}"'
        for scale, radius in enumerate(SIZES):
            assets.append(f'<mesh name="{shape}-{scale}" scale="{radius} {radius} {radius}" {numbers}/>')
    middle = HEIGHT / 2
    geoms = [f'<geom name="floor" type="plane" size="{HALF} {HALF} 1" material="floor0"/>']
    for k, (x, y) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):  # the direction that the wall faces
        geoms.append(
            f'<geom name="wall{k}" type="plane" size="{HALF} {middle} 1" material="wall0" '
            f'pos="{-x * HALF} {-y * HALF} {middle}" xyaxes="{-y} {x} 0 0 0 1"/>'
        )
    for k in range(num_objects):
        geoms.append(f'<geom name="object{k}" type="sphere" size="0.1" material="object" pos="0 0 -50"/>')
    mjcf = f"""<mujoco>
  <statistic extent="5" center="0 0 0.5"/>
  <visual>
    <global fovy="{np.degrees(VIEW):.6g}"/>
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
</mujoco>"""
    return mjcf, floor_files | wall_files


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.6g}" for number in numbers.ravel())
