"""Off-screen images of MuJoCo models, rendered with OpenGL, and what renderers with MuJoCo have in common."""

import importlib
import os
import re
import sys
import weakref
from types import ModuleType

import numpy as np
from jaxtyping import Int, UInt8

from pyro_lom.data.renderers.renderer import Renderer
from pyro_lom.errors import UserError

_BACKENDS = ("egl", "osmesa")
_SAMPLES = 2  # a pixel's colour is the mean of 2x2 samples: smooths edges, shadows and textures


def mujoco_with_gl() -> ModuleType:
    """Import MuJoCo with an off-screen backend: MUJOCO_GL if it is set, otherwise EGL, and OSMesa if EGL fails.

    Raises:
        UserError: no backend works.
    """
    chosen = os.environ.get("MUJOCO_GL")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # one thread of Mesa, since each core has a process
    for backend in (chosen,) if chosen else _BACKENDS:
        before = dict(os.environ)
        os.environ["MUJOCO_GL"] = backend  # mujoco reads this once, when it is imported
        try:
            mujoco = importlib.import_module("mujoco")
            View(mujoco, mujoco.MjModel.from_xml_string("<mujoco/>"), 8)
            return mujoco
        except Exception:  # a missing library can raise AttributeError, RuntimeError, ImportError or mujoco.FatalError
            _forget_backend(before)
    wanted = f"MUJOCO_GL={chosen} does not work" if chosen else "neither EGL nor OSMesa works"
    raise UserError(
        f"MuJoCo cannot draw here: {wanted}; install a library for it: apt install libegl1 libgl1 (or libosmesa6)"
    )


class View:
    """Images and segmentations of a model, rendered from its cameras.

    Args:
        mujoco: from `mujoco_with_gl`.
        model: an `MjModel`. The size of its off-screen buffer is changed to that of the samples.
        size: height and width in pixels.
    """

    def __init__(self, mujoco: ModuleType, model, size: int):
        self._mujoco, self._model, self._size = mujoco, model, size
        side = model.vis.global_.offwidth = model.vis.global_.offheight = _SAMPLES * size
        self._gl = mujoco.GLContext(side, side)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        weakref.finalize(self, _free, self._gl, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=100)
        self._options = mujoco.MjvOption()

    def look(self, data, camera: int = 0) -> None:
        """Update the scene to the state `data` of the model, whose positions are up to date, seen from a camera."""
        mujoco = self._mujoco
        seen_from = mujoco.MjvCamera()
        seen_from.type, seen_from.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, seen_from, every, self._scene)

    def geoms(self) -> Int[np.ndarray, "size size"]:
        """Return the number of the geom at the centre of each pixel, -1 if there is no geom."""
        codes = self._pixels(self._size, True).astype(np.int32) @ [1, 1 << 8, 1 << 16]
        geom_of = np.full(self._scene.ngeom + 1, -1)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            geom_of[geom.segid + 1] = geom.objid
        return geom_of[codes]

    def image(self) -> UInt8[np.ndarray, "size size 3"]:
        """Return the colour image. Each pixel is the mean of its samples."""
        fine = self._pixels(_SAMPLES * self._size, False).astype(np.uint16)
        rows = sum(fine[k::_SAMPLES] for k in range(_SAMPLES))
        total = sum(rows[:, k::_SAMPLES] for k in range(_SAMPLES))
        return ((total + _SAMPLES**2 // 2) // _SAMPLES**2).astype(np.uint8)

    def _pixels(self, side: int, as_codes: bool) -> UInt8[np.ndarray, "side side 3"]:
        mujoco, flags = self._mujoco, self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = as_codes
        viewport = mujoco.MjrRect(0, 0, side, side)
        self._gl.make_current()  # rendering or freeing another view changes the current context
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((side, side, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1]  # OpenGL numbers rows from the bottom


class Stage:
    """A MuJoCo model whose parts are changed for each scene, since compiling a new model takes ten times as long.

    Args:
        model: the model as MJCF, and the content of its files. It contains geoms named object0, object1, ...
        num_objects: number of these geoms. Their labels are the first after those of the background.
    """

    def __init__(self, renderer: Renderer, model: tuple[str, dict[str, bytes]], num_objects: int):
        self._renderer = renderer
        self._mujoco = mujoco_with_gl()
        self._model = self._mujoco.MjModel.from_xml_string(*model)
        self._model.geom_sameframe[:] = 0  # otherwise geoms that were compiled at the origin stay there
        self._data = self._mujoco.MjData(self._model)
        self._view = View(self._mujoco, self._model, renderer.size)
        self._objects = [self._model.geom(f"object{k}").id for k in range(num_objects)]
        self._label_of = np.zeros(self._model.ngeom + 1, np.uint8)  # the last entry, index -1, is the sky
        self._label_of[self._objects] = renderer.num_background + np.arange(num_objects)

    def _labels(self, camera: int = 0) -> UInt8[np.ndarray, "size size"]:
        """Return the label of each pixel, seen from a camera."""
        self._view.look(self._data, camera)
        return self._label_of[self._view.geoms()]

    def _move(self) -> None:
        """Compute the positions of all parts after changes to the model."""
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_camlight(self._model, self._data)


def _free(gl, context) -> None:
    gl.make_current()  # otherwise textures of another view that have the same numbers would be freed
    context.free()
    gl.free()


def _forget_backend(environment: dict[str, str]) -> None:
    """Restore environment variables and remove imported modules of a backend, so that another can be tried."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        os.environ.pop(name, None)
        if name in environment:
            os.environ[name] = environment[name]
    parts = re.compile(r"(OpenGL|mujoco\.(egl|osmesa|glfw|gl_context|rendering))(\.|$)|mujoco$")
    for name in [name for name in sys.modules if parts.match(name)]:
        del sys.modules[name]
