"""The room of Objects Room as a MuJoCo model: floor, walls, sky, a lamp, a camera, and objects to be put in place."""

import numpy as np

from pyro_lom.data.renderers import meshes
from pyro_lom.data.renderers.textures import checks, clouds, coloured, hexagons, masonry, planks, png, stripes

SIZES = np.linspace(0.16, 0.30, 8)  # radius
HALF, HEIGHT = 2.5, 1.25  # of the room
VIEW = np.radians(50)  # angle that the camera sees
PRIMITIVES = {"sphere": (1, 0, 0), "capsule": (0.62, 0.62, 0), "cylinder": (0.8, 0.9, 0), "box": (0.78, 0.78, 0.78)}
"""Sizes as MuJoCo knows them, of an object of radius 1."""
MESHES = {
    "cone": meshes.cone(),
    "icosahedron": meshes.icosahedron(),
    "torus": meshes.torus(),
    "hollow triangle": meshes.hollow_triangle(),
}
SHAPES = (*PRIMITIVES, *MESHES)
HEIGHTS = {"sphere": 1, "capsule": 1.24, "cylinder": 0.9, "box": 0.78}
HEIGHTS |= {shape: -float(vertices[:, 2].min()) for shape, (vertices, _) in MESHES.items()}
"""Of the middle of an object of radius 1 that stands on the floor."""


def _shaded(pattern: np.ndarray, depth: float) -> bytes:
    """A near-white texture, which the colour of floor or wall multiplies."""
    dark = round(255 * (1 - depth))
    return png(coloured(pattern, (dark,) * 3, (255,) * 3))


FLOORS = {
    "hexagons": (lambda: _shaded(hexagons(6), 0.4), 3),
    "clouds": (lambda: _shaded(clouds(1, 1.8), 0.4), 2),
    "checks": (lambda: _shaded(checks(4), 0.25), 3),
    "planks": (lambda: _shaded(planks(6, 2, 2), 0.45), 2),
}
WALLS = {
    "bricks": (lambda: _shaded(masonry(8, 4, 3, joint=0.008), 0.4), 1),
    "blobs": (lambda: _shaded((clouds(4, 1.7) - 0.4) * 5, 0.3), 0.75),
    "stripes": (lambda: _shaded(stripes(8), 0.2), 1),
}
"""Textures by name: how each is drawn, and how often it is repeated across a room's height."""


def room(buffer: int, num_objects: int) -> tuple[str, dict[str, bytes]]:
    """The room as MJCF, and the files that it names."""
    files, assets = {}, []
    for surface, textures, (across, down) in (("floor", FLOORS, (1, 1)), ("wall", WALLS, (4, 1))):
        for k, (name, (draw, repeat)) in enumerate(textures.items()):
            files[f"{name}.png"] = draw()
            assets.append(f'<texture name="{name}" type="2d" file="{name}.png"/>')
            assets.append(
                f'<material name="{surface}{k}" texture="{name}" specular="0" '
                f'texrepeat="{across * repeat} {down * repeat}"/>'
            )
    for shape, (vertices, triangles) in MESHES.items():
        numbers = f'vertex="{_text(vertices)}" face="{_text(triangles)}"'
        for scale, radius in enumerate(SIZES):
            smooth = "true" if shape == "torus" else "false"
            assets.append(
                f'<mesh name="{shape}-{scale}" scale="{radius} {radius} {radius}" {numbers} smoothnormal="{smooth}"/>'
            )
    middle = HEIGHT / 2
    walls = [("-1 0 0", f"{HALF} 0"), ("1 0 0", f"-{HALF} 0"), ("0 -1 0", f"0 {HALF}"), ("0 1 0", f"0 -{HALF}")]
    geoms = [f'<geom name="floor" type="plane" size="{HALF} {HALF} 1" material="floor0"/>']
    for k, (inwards, place) in enumerate(walls):
        x, y, _ = map(int, inwards.split())
        geoms.append(
            f'<geom name="wall{k}" type="plane" size="{HALF} {middle} 1" material="wall0" pos="{place} {middle}" '
            f'xyaxes="{-y} {x} 0 0 0 1"/>'
        )
    geoms += [
        f'<geom name="object{k}" type="sphere" size="0.1" material="object" pos="0 0 -50"/>' for k in range(num_objects)
    ]
    return (
        f"""<mujoco>
  <statistic extent="5" center="0 0 0.5"/>
  <visual>
    <global offwidth="{buffer}" offheight="{buffer}" fovy="{np.degrees(VIEW):.6g}"/>
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
