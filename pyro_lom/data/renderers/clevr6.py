"""CLEVR's scenes of 3 to 6 objects, path-traced by Mitsuba.

Lamps, materials and colours follow the published generator (github.com/facebookresearch/clevr-dataset-gen), which is
for Blender; what looks alike in Mitsuba was found by eye and by mean colours.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pyro_lom.data.renderers.clevr_layout import (
    COLOURS,
    CUBE,
    MAX_OBJECTS,
    METAL,
    MIN_SHARE,
    SPHERE,
    VIEW,
    Layout,
    labels_of,
    lay_out,
)
from pyro_lom.data.renderers.meshes import rounded_cube, rounded_cylinder
from pyro_lom.data.renderers.renderer import (
    MAX_TRIES,
    RenderedScene,
    Renderer,
    RenderScene,
    generator,
    padded,
    pixels_of,
)
from pyro_lom.errors import UserError

_SAMPLES = 4  # of each pixel in a pass
_LAMP_JITTER = 1.0
_LAMPS = (  # place, side, radiance, colour, passes
    ((6.45, -2.91, 4.26), 0.5, 100.0, (1.0, 0.93, 0.82), 7),
    ((-4.67, -4.01, 3.01), 0.5, 30.0, (0.76, 0.82, 1.0), 4),
    ((-1.17, 2.65, 5.82), 1.0, 12.5, (1.0, 1.0, 1.0), 4),
)
_SUN, _SUN_FROM, _SUN_PASSES = 0.45, (11.66, -6.63, 25.82), 4
_AMBIENT, _AMBIENT_PASSES = 0.02, 2  # from everywhere: without it the tops of metal objects are black
_FLOOR = 0.8


@dataclass(frozen=True)
class Clevr6(Renderer):
    """Labels are 0 floor, 1.. objects.

    Factors as in the published files, one column per object and 0 where there is none: `present`, `x`, `y`, `z`,
    `rotation` in degrees, `size` (0 large, 1 small), `material` (0 rubber, 1 metal), `shape` (0 cube, 1 sphere,
    2 cylinder), `color` (index into `clevr_layout.COLOURS`), and `pixel_x`, `pixel_y`, `depth` of its middle.
    """

    size: int = 96

    num_background = 1
    version = 1
    block_size = 2
    package, extra = "mitsuba", "clevr"

    def open(self) -> RenderScene:
        return _Studio(self).render


class _Studio:
    def __init__(self, renderer: Clevr6):
        self._renderer = renderer
        try:
            self._mi = importlib.import_module("mitsuba")
            self._mi.set_variant("scalar_rgb")  # the one that needs nothing but the package
            importlib.import_module("drjit").set_thread_count(1)
        except (ImportError, RuntimeError) as error:
            raise UserError(f'Mitsuba cannot be started: {error}; run pip install -e ".[clevr]"') from error
        self._meshes = {CUBE: rounded_cube(), 2: rounded_cylinder()}

    def render(self, seed: int, index: int) -> RenderedScene:
        rng, size = generator(self._renderer, seed, index), self._renderer.size
        for _ in range(MAX_TRIES):
            layout = lay_out(rng)
            labels = labels_of(layout, size)
            if (pixels_of(labels, 1, len(layout.shape)) >= MIN_SHARE * labels.size).all():
                break
        else:
            raise RuntimeError(f"no layout of scene {index} shows every object")
        return RenderedScene(self._trace(layout, rng), labels, _factors(layout, size))

    def _trace(self, layout: Layout, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        # Light adds up. A scene for each of its sources keeps lamps, which are to be seen in metal only, out of the
        # light of others, and is exact: among several, Mitsuba's order differs from time to time.
        objects = self._surroundings(layout) | self._objects(layout)
        return _srgb(sum(self._light(objects | {"light": light}, rng, n) for light, n in self._lights(layout, rng)))

    def _light(self, parts: dict[str, Any], rng: np.random.Generator, num_passes: int) -> np.ndarray:
        scene = self._mi.load_dict(parts)
        seeds = rng.integers(2**31, size=num_passes).tolist()
        passes = np.stack([np.array(self._mi.render(scene, seed=seed)) for seed in seeds])
        # A path that finds a lamp by way of a metal object leaves a speck: bright in one pass alone.
        return np.minimum(passes, 1.25 * np.median(passes, axis=0) + 0.01).mean(0)

    def _surroundings(self, layout: Layout) -> dict[str, Any]:
        transform, size = self._mi.ScalarTransform4f, self._renderer.size
        target = (layout.camera + layout.axes[2]).tolist()
        return {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": 4},
            "camera": {
                "type": "perspective",
                "fov": float(np.degrees(VIEW)),
                "to_world": transform().look_at(origin=layout.camera.tolist(), target=target, up=[0, 0, 1]),
                "sampler": {"type": "multijitter", "sample_count": _SAMPLES},
                "film": {
                    "type": "hdrfilm",
                    "width": size,
                    "height": size,
                    "pixel_format": "rgb",
                    "rfilter": {"type": "gaussian"},
                },
            },
            "floor": {"type": "rectangle", "to_world": transform().scale(50), "bsdf": _diffuse(_FLOOR)},
        }

    def _lights(self, layout: Layout, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], int]]:
        """Each source of light, and in how many passes it is traced."""
        transform = self._mi.ScalarTransform4f
        for middle, side, radiance, colour, passes in _LAMPS:
            place = middle + rng.uniform(-_LAMP_JITTER, _LAMP_JITTER, 3)
            while layout.looks_towards(place):  # Blender's lamps cannot be seen themselves
                place = middle + rng.uniform(-_LAMP_JITTER, _LAMP_JITTER, 3)
            aimed = transform().look_at(origin=place.tolist(), target=[0, 0, 0], up=[0, 0, 1])
            emitter = {"type": "area", "radiance": _rgb(radiance, colour)}
            yield {"type": "rectangle", "to_world": aimed @ transform().scale(side / 2), "emitter": emitter}, passes
        direction = [-x for x in _SUN_FROM]
        yield {"type": "directional", "direction": direction, "irradiance": _rgb(_SUN)}, _SUN_PASSES
        yield {"type": "constant", "radiance": _rgb(_AMBIENT)}, _AMBIENT_PASSES

    def _objects(self, layout: Layout) -> dict[str, Any]:
        objects = {}
        for k, shape in enumerate(layout.shape.tolist()):
            colour = (COLOURS[layout.color[k]] / 255).tolist()
            material = _metal(colour) if layout.material[k] == METAL else _rubber(colour)
            place, scale = layout.position[k], float(layout.scale[k])
            if shape == SPHERE:
                objects[f"object{k}"] = {"type": "sphere", "center": place.tolist(), "radius": scale, "bsdf": material}
                continue
            cos, sin = np.cos(np.radians(layout.rotation[k])), np.sin(np.radians(layout.rotation[k]))
            turn = np.array([(cos, -sin, 0), (sin, cos, 0), (0, 0, 1)])
            vertices, normals, triangles = self._meshes[shape]
            objects[f"object{k}"] = self._mesh(scale * vertices @ turn.T + place, normals @ turn.T, triangles, material)
        return objects

    def _mesh(self, vertices: np.ndarray, normals: np.ndarray, triangles: np.ndarray, material: dict[str, Any]) -> Any:
        properties = self._mi.Properties()
        properties["bsdf"] = self._mi.load_dict(material)
        mesh = self._mi.Mesh("mesh", len(vertices), len(triangles), has_vertex_normals=True, props=properties)
        parameters = self._mi.traverse(mesh)
        parameters["vertex_positions"] = vertices.ravel().astype(np.float32)
        parameters["vertex_normals"] = normals.ravel().astype(np.float32)
        parameters["faces"] = triangles.ravel().astype(np.uint32)
        parameters.update()
        return mesh


def _rgb(value: float, colour: Any = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    return {"type": "rgb", "value": [value * channel for channel in colour]}


def _diffuse(value: float, colour: Any = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    return {"type": "diffuse", "reflectance": _rgb(value, colour)}


def _gloss(alpha: float, colour: Any = (1.0, 1.0, 1.0)) -> dict[str, Any]:
    return {
        "type": "roughconductor",
        "material": "none",
        "distribution": "ggx",
        "alpha": alpha,
        "specular_reflectance": _rgb(1.0, colour),
    }


def _rubber(colour: Any) -> dict[str, Any]:
    return {"type": "blendbsdf", "weight": 0.05, "matte": _diffuse(1.0, colour), "shine": _gloss(0.25)}


def _metal(colour: Any) -> dict[str, Any]:
    return {"type": "blendbsdf", "weight": 0.4, "brushed": _gloss(0.2, colour), "polished": _gloss(0.07, colour)}


def _factors(layout: Layout, size: int) -> dict[str, Float[np.ndarray, "max_objects"]]:
    factors = {"present": np.ones(len(layout.shape)), "rotation": layout.rotation}
    factors |= {name: getattr(layout, name) for name in ("size", "material", "shape", "color")}
    factors |= {name: layout.position[:, axis] for axis, name in enumerate("xyz")}
    factors |= dict(zip(("pixel_x", "pixel_y", "depth"), layout.in_image(size).T, strict=True))
    return padded({name: values.astype(np.float32) for name, values in factors.items()}, MAX_OBJECTS)


def _srgb(light: Float[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Linear light, 1 being white, as a screen shows it."""
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * encoded).round().astype(np.uint8)
