"""Which objects lie where in a scene of CLEVR, and which of them each pixel shows.

Numbers and rules are those of the published generator (github.com/facebookresearch/clevr-dataset-gen). Images show
the 192x192 pixels of its 320x240 that are kept of it (rows 29 to 220, columns 64 to 255).
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
MIN_SHARE = 200 / 192**2  # of the image: what is seen of each object at least
VIEW = 2 * np.arctan(16 / 35 * 192 / 320)  # angle that the camera sees
_CAMERA, _TARGET = np.array([7.48, -6.51, 5.34]), np.array([0, 0, 0.25])
_CAMERA_JITTER = 0.5
_HALF_FLOOR = 3.0  # objects lie within it
_MIN_DISTANCE = 0.25  # between surfaces, as seen from above
_MARGIN = 0.4  # between middles along the camera's right and ahead, so that left of and behind are never unclear
_TRIES = 50  # to place an object before all are taken off again


class Layout(NamedTuple):
    shape: Int[np.ndarray, "objects"]
    size: Int[np.ndarray, "objects"]
    """Index into `SIZES`."""
    material: Int[np.ndarray, "objects"]
    color: Int[np.ndarray, "objects"]
    """Index into `COLOURS`."""
    position: Float[np.ndarray, "objects 3"]
    """Of the middle."""
    rotation: Float[np.ndarray, "objects"]
    """About z, in degrees."""
    camera: Float[np.ndarray, "3"]

    @property
    def scale(self) -> Float[np.ndarray, "objects"]:
        """Half the height of each object."""
        return SIZES[self.size]

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Rows: to the right, down and ahead, as the camera sees."""
        ahead = _TARGET - self.camera
        ahead = ahead / np.linalg.norm(ahead)
        right = np.cross(ahead, [0, 0, 1])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(ahead, right), ahead])

    def in_image(self, size: int) -> Float[np.ndarray, "objects 3"]:
        """Column and row, in pixels, of the middle of each object, and how far ahead it is."""
        right, down, ahead = self.axes @ (self.position - self.camera).T
        scale = size / 2 / np.tan(VIEW / 2) / ahead
        return np.stack([size / 2 + scale * right, size / 2 + scale * down, ahead], 1)

    def looks_towards(self, place: Float[np.ndarray, "3"]) -> bool:
        """Whether something at `place`, of half a unit or less to all sides, could be in the image."""
        right, down, ahead = self.axes @ (place - self.camera)
        return bool(ahead > -0.5 and max(abs(right), abs(down)) < np.tan(VIEW / 2) * ahead + 0.75)


def lay_out(rng: np.random.Generator) -> Layout:
    """Objects that keep the rules of distance; whether all are seen is for `labels_of` to show."""
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS, endpoint=True))
    shape, size, material, color = (rng.integers(n, size=count) for n in (3, 2, 2, len(COLOURS)))
    layout = Layout(
        shape=shape,
        size=size,
        material=material,
        color=color,
        position=np.zeros((count, 3)),
        rotation=rng.uniform(0, 360, count),
        camera=_CAMERA + rng.uniform(-_CAMERA_JITTER, _CAMERA_JITTER, 3),
    )
    right, _, ahead = layout.axes
    cardinal = np.stack([right[:2], ahead[:2] / np.linalg.norm(ahead[:2])])
    places = None
    while places is None:
        places = _places(rng, layout.scale, cardinal)
    return layout._replace(position=np.column_stack([places, layout.scale]))


def labels_of(layout: Layout, size: int) -> UInt8[np.ndarray, "size size"]:
    """0 the floor, 1.. the objects: whatever a ray through the middle of each pixel meets first."""
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
    """Where objects of those sizes lie; None if one of them finds no place."""
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


# How far along each ray, in units of its length, a shape lies that reaches from -1 to 1; infinity where it is missed.


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
    """Where rays enter and leave -1 to 1 along each axis."""
    with np.errstate(divide="ignore"):
        near, far = (-1 - start) / rays, (1 - start) / rays
    return np.minimum(near, far), np.maximum(near, far)


_MEETS = {CUBE: _meets_cube, SPHERE: _meets_sphere, CYLINDER: _meets_cylinder}
