"""Renderer of CLEVR scenes with 3 to 6 objects, path-traced by Mitsuba.

Lamps, materials and colours follow the published generator (github.com/facebookresearch/clevr-dataset-gen), which uses
Blender. The parameters for Mitsuba were matched by eye and by mean colours.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pyro_lom.data.renderers import clevr_layout
from pyro_lom.data.renderers.clevr_layout import Layout
from pyro_lom.data.renderers.meshes import rounded_cube, rounded_cylinder
from pyro_lom.data.renderers.renderer import MAX_TRIES, Renderer, RenderScene, generator, padded, pixels_of
from pyro_lom.data.writer import Scene
from pyro_lom.errors import UserError

_SAMPLES = 4  # per pixel and pass
_LAMP_JITTER = 1.0
_LAMPS = (  # place, side, radiance, colour, passes
    ((6.45, -2.91, 4.26), 0.5, 100.0, (1.0, 0.93, 0.82), 7),
    ((-4.67, -4.01, 3.01), 0.5, 30.0, (0.76, 0.82, 1.0), 4),
    ((-1.17, 2.65, 5.82), 1.0, 12.5, (1.0, 1.0, 1.0), 4),
)
_SUN, _SUN_FROM, _SUN_PASSES = 0.45, (11.66, -6.63, 25.82), 4
_AMBIENT, _AMBIENT_PASSES = 0.02, 2  # from all directions: without it the tops of metal objects are black
_FLOOR = 0.8


@dataclass(frozen=True)
class Clevr6(Renderer):
    """Renderer of CLEVR6. Label 0 is the floor, and objects have labels from 1.

    Factors are named as in the published files. They have one column per object, and 0 for absent objects: `present`,
    `x`, `y`, `z`, `rotation` in degrees, `size` (0 large, 1 small), `material` (0 rubber, 1 metal), `shape` (0 cube, 1
    sphere, 2 cylinder), `color` (index into `clevr_layout.COLOURS`), and `pixel_x`, `pixel_y`, `depth` of the centre.
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
            self._mi.set_variant("scalar_rgb")  # the only variant that requires no other library
            importlib.import_module("drjit").set_thread_count(1)
        except (ImportError, RuntimeError) as error:
            raise UserError(f'Mitsuba cannot be started: {error}; run pip install -e ".[clevr]"') from error
        self._meshes = {clevr_layout.CUBE: rounded_cube(), clevr_layout.CYLINDER: rounded_cylinder()}

    def render(self, seed: int, index: int) -> Scene:
        rng, size = generator(self._renderer, seed, index), self._renderer.size
        for _ in range(MAX_TRIES):
            layout = clevr_layout.lay_out(rng)
            labels = clevr_layout.labels_of(layout, size)
            if (pixels_of(labels, 1, len(layout.shape)) >= clevr_layout.MIN_SHARE * labels.size).all():
                return Scene(self._trace(layout, rng), labels, _factors(layout, size))
        raise RuntimeError(f"no layout of scene {index} shows every object")

    def _trace(self, layout: Layout, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
        # Light adds up, so each source is traced in a scene of its own. Then no lamp, which should be visible only in
        # metal, blocks the light of another. The sum is also reproducible: Mitsuba's order of several sources varies.
        objects = self._surroundings(layout) | self._objects(layout)
        return _srgb(sum(self._light(objects | {"light": light}, rng, n) for light, n in self._lights(layout, rng)))

    def _light(self, parts: dict[str, Any], rng: np.random.Generator, num_passes: int) -> np.ndarray:
        scene = self._mi.load_dict(parts)
        seeds = rng.integers(2**31, size=num_passes).tolist()
        passes = np.stack([np.array(self._mi.render(scene, seed=seed)) for seed in seeds])
        # A path that reaches a lamp via a metal object makes a speck, which is bright in one pass only.
        return np.minimum(passes, 1.25 * np.median(passes, axis=0) + 0.01).mean(0)

    def _surroundings(self, layout: Layout) -> dict[str, Any]:
        transform, size = self._mi.ScalarTransform4f, self._renderer.size
        target = (layout.camera + layout.axes[2]).tolist()
        film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb"}
        return {
            "type": "scene",
            "integrator": {"type": "path", "max_depth": 4},
            "camera": {
                "type": "perspective",
                "fov": float(np.degrees(clevr_layout.VIEW)),
                "to_world": transform().look_at(origin=layout.camera.tolist(), target=target, up=[0, 0, 1]),
                "sampler": {"type": "multijitter", "sample_count": _SAMPLES},
                "film": film | {"rfilter": {"type": "gaussian"}},
            },
            "floor": {"type": "rectangle", "to_world": transform().scale(50), "bsdf": _diffuse(_FLOOR)},
        }

    def _lights(self, layout: Layout, rng: np.random.Generator) -> Iterator[tuple[dict[str, Any], int]]:
        """Yield each light source and its number of passes."""
        transform = self._mi.ScalarTransform4f
        for middle, side, radiance, colour, passes in _LAMPS:
            while layout.looks_towards(place := middle + rng.uniform(-_LAMP_JITTER, _LAMP_JITTER, 3)):
                pass  # lamps are invisible in Blender
            aimed = transform().look_at(origin=place.tolist(), target=[0, 0, 0], up=[0, 0, 1])
            emitter = {"type": "area", "radiance": _rgb(radiance, colour)}
            yield {"type": "rectangle", "to_world": aimed @ transform().scale(side / 2), "emitter": emitter}, passes
        direction = [-x for x in _SUN_FROM]
        yield {"type": "directional", "direction": direction, "irradiance": _rgb(_SUN)}, _SUN_PASSES
        yield {"type": "constant", "radiance": _rgb(_AMBIENT)}, _AMBIENT_PASSES

    def _objects(self, layout: Layout) -> dict[str, Any]:
        objects = {}
        for k, shape in enumerate(layout.shape.tolist()):
            colour = (clevr_layout.COLOURS[layout.color[k]] / 255).tolist()
            material = _metal(colour) if layout.material[k] == clevr_layout.METAL else _rubber(colour)
            place, scale = layout.position[k], float(layout.scale[k])
            if shape == clevr_layout.SPHERE:
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
    surface = {"type": "roughconductor", "material": "none", "distribution": "ggx", "alpha": alpha}
    return surface | {"specular_reflectance": _rgb(1.0, colour)}


def _rubber(colour: Any) -> dict[str, Any]:
    return {"type": "blendbsdf", "weight": 0.05, "matte": _diffuse(1.0, colour), "shine": _gloss(0.25)}


def _metal(colour: Any) -> dict[str, Any]:
    return {"type": "blendbsdf", "weight": 0.4, "brushed": _gloss(0.2, colour), "polished": _gloss(0.07, colour)}


def _factors(layout: Layout, size: int) -> dict[str, Float[np.ndarray, "max_objects"]]:
    factors = {"present": np.ones(len(layout.shape)), "rotation": layout.rotation}
    factors |= {name: getattr(layout, name) for name in ("size", "material", "shape", "color")}
    factors |= dict(zip("xyz", layout.position.T, strict=True))
    factors |= dict(zip(("pixel_x", "pixel_y", "depth"), layout.in_image(size).T, strict=True))
    return padded(factors, clevr_layout.MAX_OBJECTS)


def _srgb(light: Float[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Convert linear light, where 1 is white, to 8-bit sRGB."""
    light = light.clip(0, 1)
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255 * encoded).round().astype(np.uint8)
