"""Layouts of objects in scenes of CLEVR, and the label of each pixel.

Numbers and rules follow the published generator (github.com/facebookresearch/clevr-dataset-gen). It renders 320x240
pixels; images show the 192x192 pixels in rows 29 to 220 and columns 64 to 255, as in the importer of CLEVR6.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

CUBE, SPHERE, CYLINDER = range(3)
RUBBER, METAL = range(2)
SIZES = np.array([0.7, 0.35])  # half the height: large, small
COLOURS = np.array(
    [
        (87, 87, 87),  # gray
        (173, 35, 35),  # red
        (42, 75, 215),  # blue
        (29, 105, 20),  # green
        (129, 74, 25),  # brown
        (129, 38, 192),  # purple
        (41, 208, 208),  # cyan
        (255, 238, 51),  # yellow
    ]
)
MIN_OBJECTS, MAX_OBJECTS = 3, 6
MIN_SHARE = 200 / 192**2  # of the image: minimum visible area of an object
VIEW = 2 * np.arctan(16 / 35 * 192 / 320)  # the camera's angle of view, in radians
_CAMERA, _TARGET = np.array([7.48, -6.51, 5.34]), np.array([0, 0, 0.25])
_CAMERA_JITTER = 0.5
_HALF_FLOOR = 3.0  # x and y of objects are between -3 and 3
_MIN_DISTANCE = 0.25  # between surfaces, seen from above
_MARGIN = 0.4  # between centres along the camera's right and ahead: left and right, front and behind are clear
_TRIES = 50  # to place an object before all objects are placed anew


class Layout(NamedTuple):
    shape: Int[np.ndarray, "objects"]
    size: Int[np.ndarray, "objects"]
    """Index into `SIZES`."""
    material: Int[np.ndarray, "objects"]
    color: Int[np.ndarray, "objects"]
    """Index into `COLOURS`."""
    position: Float[np.ndarray, "objects 3"]
    """Centre of each object."""
    rotation: Float[np.ndarray, "objects"]
    """Rotation about z, in degrees."""
    camera: Float[np.ndarray, "3"]

    @property
    def scale(self) -> Float[np.ndarray, "objects"]:
        """Half the height of each object."""
        return SIZES[self.size]

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """The camera's axes, as rows: right, down and ahead."""
        ahead = _TARGET - self.camera
        ahead = ahead / np.linalg.norm(ahead)
        right = np.cross(ahead, [0, 0, 1])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(ahead, right), ahead])

    def in_image(self, size: int) -> Float[np.ndarray, "objects 3"]:
        """Return the column and row of each object's centre, in pixels, and its distance along the camera's axis."""
        right, down, ahead = self.axes @ (self.position - self.camera).T
        scale = size / 2 / np.tan(VIEW / 2) / ahead
        return np.stack([size / 2 + scale * right, size / 2 + scale * down, ahead], 1)

    def looks_towards(self, place: Float[np.ndarray, "3"]) -> bool:
        """Return whether an object at `place`, up to half a unit in each direction, could be visible."""
        right, down, ahead = self.axes @ (place - self.camera)
        return bool(ahead > -0.5 and max(abs(right), abs(down)) < np.tan(VIEW / 2) * ahead + 0.75)


def lay_out(rng: np.random.Generator) -> Layout:
    """Draw objects that keep the distance rules. Their visibility is not checked."""
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS, endpoint=True))
    shape, size, material, color = (rng.integers(n, size=count) for n in (3, 2, 2, len(COLOURS)))
    rotation, camera = rng.uniform(0, 360, count), _CAMERA + rng.uniform(-_CAMERA_JITTER, _CAMERA_JITTER, 3)
    layout = Layout(shape, size, material, color, np.zeros((count, 3)), rotation, camera)
    right, _, ahead = layout.axes
    cardinal = np.stack([right[:2], ahead[:2] / np.linalg.norm(ahead[:2])])
    while (places := _places(rng, layout.scale, cardinal)) is None:
        pass
    return layout._replace(position=np.column_stack([places, layout.scale]))


def labels_of(layout: Layout, size: int) -> UInt8[np.ndarray, "size size"]:
    """Return labels: k + 1 where the ray through the pixel's centre meets object k first, 0 where it meets none."""
    across = (np.arange(size) + 0.5) / size * 2 - 1
    right, down = np.meshgrid(across * np.tan(VIEW / 2), across * np.tan(VIEW / 2))
    rays = np.stack([right, down, np.ones_like(right)], -1) @ layout.axes
    nearest, labels = np.full((size, size), np.inf), np.zeros((size, size), np.uint8)
    for k in range(len(layout.shape)):
        cos, sin = np.cos(np.radians(layout.rotation[k])), np.sin(np.radians(layout.rotation[k]))
        to_object = np.array([(cos, sin, 0), (-sin, cos, 0), (0, 0, 1)]) / layout.scale[k]
        start = to_object @ (layout.camera - layout.position[k])
        distance = _MEETS[layout.shape[k]](start, rays @ to_object.T)
        labels[distance < nearest] = k + 1
        nearest = np.minimum(nearest, distance)
    return labels


def _places(rng: np.random.Generator, scale: np.ndarray, cardinal: np.ndarray) -> np.ndarray | None:
    """Draw places of objects with radii `scale`; return None if an object has no place."""
    places = np.zeros((0, 2))
    for k in range(len(scale)):
        for _ in range(_TRIES):
            place = rng.uniform(-_HALF_FLOOR, _HALF_FLOOR, 2)
            away = place - places
            apart = np.linalg.norm(away, axis=1) >= scale[k] + scale[:k] + _MIN_DISTANCE
            clear = np.abs(away @ cardinal.T) >= _MARGIN
            if apart.all() and clear.all():
                places = np.concatenate([places, place[None]])
                break
        else:
            return None
    return places


# These functions return the distance along each ray, in ray lengths, to a shape from -1 to 1, or infinity.


def _meets_sphere(start: Float[np.ndarray, "3"], rays: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    a, half_b, c = (rays**2).sum(-1), rays @ start, start @ start - 1
    inside = half_b**2 - a * c
    return np.where(inside > 0, (-half_b - np.sqrt(inside.clip(0))) / a, np.inf)


def _meets_cube(start: Float[np.ndarray, "3"], rays: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    enters, leaves = _between_planes(start, rays)
    enters, leaves = enters.max(-1), leaves.min(-1)
    return np.where(enters < leaves, enters, np.inf)


def _meets_cylinder(start: Float[np.ndarray, "3"], rays: Float[np.ndarray, "H W 3"]) -> Float[np.ndarray, "H W"]:
    above, below = (distance[..., 0] for distance in _between_planes(start[2:], rays[..., 2:]))
    a, half_b, c = (rays[..., :2] ** 2).sum(-1), rays[..., :2] @ start[:2], start[:2] @ start[:2] - 1
    inside = half_b**2 - a * c
    root = np.sqrt(inside.clip(0))
    enters, leaves = np.maximum(above, (-half_b - root) / a), np.minimum(below, (-half_b + root) / a)
    return np.where((inside > 0) & (enters < leaves), enters, np.inf)


def _between_planes(start: np.ndarray, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances at which rays enter and leave the range -1 to 1 along each axis."""
    with np.errstate(divide="ignore"):
        near, far = (-1 - start) / rays, (1 - start) / rays
    return np.minimum(near, far), np.maximum(near, far)


_MEETS = {CUBE: _meets_cube, SPHERE: _meets_sphere, CYLINDER: _meets_cylinder}
