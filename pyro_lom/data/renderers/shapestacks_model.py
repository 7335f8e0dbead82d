"""The world of ShapeStacks as a MuJoCo model: floor, two walls, sky, lamps, cameras, and blocks out of sight."""

import numpy as np

from pyro_lom.data.renderers.blocks import MAX_BLOCKS
from pyro_lom.data.renderers.textures import checks, clouds, hexagons, masonry, materials, planks, stripes, waves

_CORNERS = [(-1, -1), (-1, 1), (1, 1), (1, -1)]
VIEW = 2 * np.arctan(np.tan(np.radians(45) / 2) * 196 / 224)
"""Angle of view of all cameras, in radians."""

FLOORS = {
    "boards": (lambda: planks(8, 2, 11), (44, 28, 16), (122, 90, 58), "2 2"),
    "parquet": (lambda: planks(16, 6, 12), (58, 32, 16), (134, 92, 52), "2 2"),
    "tiles": (lambda: masonry(4, 4, 13, offset=0, joint=0.008), (60, 60, 58), (138, 134, 126), "3 3"),
    "concrete": (lambda: clouds(14, 1.1), (62, 62, 64), (112, 110, 106), "2 2"),
    "marble": (lambda: waves(2, 15), (86, 92, 90), (142, 142, 138), "2 2"),
    "chessboard": (lambda: 0.7 * checks(4) + 0.3 * clouds(16, 1.2), (36, 40, 46), (130, 128, 122), "2 2"),
}
WALLS = {
    "bricks": (lambda: masonry(12, 4, 21, joint=0.006), (140, 134, 126), (96, 46, 32), "2 2"),
    "stones": (lambda: masonry(6, 3, 22, offset=0.4), (44, 42, 38), (124, 116, 104), "2 2"),
    "plaster": (lambda: clouds(23, 1.3), (122, 114, 96), (148, 142, 126), "2 2"),
    "stripes": (lambda: 0.8 * stripes(8) + 0.2 * clouds(24, 1.1), (78, 92, 84), (142, 142, 128), "2 2"),
    "honeycomb": (lambda: 0.75 * hexagons(6) + 0.25 * clouds(25, 1.1), (58, 62, 70), (120, 126, 132), "2 2"),
    "panels": (lambda: planks(2, 8, 26).T, (42, 24, 14), (114, 78, 46), "2 2"),
}
"""`Texture`s by name, with repetitions across 20 units. The colours are dark because five lamps illuminate them."""


def world() -> tuple[str, dict[str, bytes]]:
    """Return the world as MJCF, and the content of the files that the MJCF refers to."""
    floors, floor_files = materials("floor", FLOORS)
    walls, wall_files = materials("wall", WALLS)
    lights = ['<light directional="true" pos="0 0 20" dir="0 0 -1"/>']
    lights += [f'<light directional="true" pos="{9 * x} {9 * y} 20" dir="{-9 * x} {-9 * y} -20"/>' for x, y in _CORNERS]
    blocks = [f'<geom name="object{k}" type="sphere" size="0.5" pos="0 0 -50"/>' for k in range(MAX_BLOCKS)]
    mjcf = f"""<mujoco>
  <statistic extent="10" center="0 0 2"/>
  <visual>
    <global fovy="{np.degrees(VIEW):.9g}"/>
    <quality shadowsize="1024" offsamples="0"/>
    <map znear="0.05" zfar="6" shadowclip="1.6"/>
    <headlight active="0"/>
  </visual>
  <asset>
    <texture type="skybox" builtin="gradient" rgb1="0.4 0.6 0.8" rgb2="0 0 0" width="128" height="128"/>
    {" ".join(floors + walls)}
  </asset>
  <worldbody>
    <geom name="floor" type="plane" size="10 10 1" material="floor0"/>
    <geom name="wall0" type="plane" size="10 10 1" pos="0 10 10" xyaxes="1 0 0 0 0 1" material="wall0"/>
    <geom name="wall1" type="plane" size="10 10 1" pos="10 0 10" xyaxes="0 -1 0 0 0 1" material="wall0"/>
    {" ".join(lights + blocks + _cameras())}
  </worldbody>
</mujoco>"""
    return mjcf, floor_files | wall_files


def _cameras() -> list[str]:
    """Return the cameras in the order of the published files: three in each corner, then one above each corner."""
    places = [(x * a, y * b, 5, 15, angle) for x, y in _CORNERS for a, b, angle in ((7, 7, 45), (9, 2, 15), (2, 9, 75))]
    places += [(5 * x, 5 * y, 9, 45, 45) for x, y in _CORNERS]
    cameras = []
    for x, y, z, down, angle in places:
        ahead = np.array([-np.sign(x) * np.cos(np.radians(angle)), -np.sign(y) * np.sin(np.radians(angle))])
        up = [*(np.sin(np.radians(down)) * ahead), np.cos(np.radians(down))]
        axes = " ".join(f"{number:.9g}" for number in (ahead[1], -ahead[0], 0, *up))
        cameras.append(f'<camera pos="{x} {y} {z}" xyaxes="{axes}"/>')
    return cameras
