"""Pictures of MuJoCo models, drawn off screen by OpenGL."""

import importlib
import os
import re
import sys
import weakref
from types import ModuleType

import numpy as np
from jaxtyping import Int, UInt8

from pyro_lom.errors import UserError

_BACKENDS = ("egl", "osmesa")
_SAMPLES = 2  # a pixel's colour is the mean of 2x2: smooths edges, shadows and textures alike


def mujoco_with_gl() -> ModuleType:
    """MuJoCo with a way to draw without a screen: what MUJOCO_GL names, or else EGL, or else OSMesa.

    Raises:
        UserError: neither works here.
    """
    chosen = os.environ.get("MUJOCO_GL")
    os.environ.setdefault("LP_NUM_THREADS", "1")  # Mesa: a process a core, not a thread
    for backend in (chosen,) if chosen else _BACKENDS:
        before = dict(os.environ)
        os.environ["MUJOCO_GL"] = backend  # read when mujoco is imported, and once only
        try:
            mujoco = importlib.import_module("mujoco")
            View(mujoco, mujoco.MjModel.from_xml_string("<mujoco/>"), 8)
            return mujoco
        except Exception:  # without a library: AttributeError, RuntimeError, ImportError or MuJoCo's own
            _forget_backend(before)
    wanted = f"MUJOCO_GL={chosen} does not work" if chosen else "neither EGL nor OSMesa works"
    raise UserError(
        f"MuJoCo cannot draw here: {wanted}; install a library for it: apt install libegl1 libgl1 (or libosmesa6)"
    )


class View:
    """What a camera sees of a model, in pixels.

    Args:
        mujoco: from `mujoco_with_gl`.
        model: an `MjModel` whose off-screen buffer is `View.buffer(size)` wide and high.
        size: height and width in pixels.
    """

    def __init__(self, mujoco: ModuleType, model, size: int):
        self._mujoco, self._model, self._size = mujoco, model, size
        side = self.buffer(size)
        self._gl = mujoco.GLContext(side, side)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        weakref.finalize(self, _free, self._gl, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=100)
        self._options = mujoco.MjvOption()
        self._perturb = mujoco.MjvPerturb()

    @staticmethod
    def buffer(size: int) -> int:
        """Width of the off-screen buffer that images of `size` pixels need."""
        return _SAMPLES * size

    def look(self, data, camera: int = 0) -> None:
        """Take up what the model holds now.

        Args:
            data: the model's `MjData`, with positions up to date.
            camera: number of the camera in the model.
        """
        mujoco = self._mujoco
        seen_from = mujoco.MjvCamera()
        seen_from.type, seen_from.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, self._perturb, seen_from, every, self._scene)

    def geoms(self) -> Int[np.ndarray, "size size"]:
        """Number of the geom at the middle of each pixel; -1 where there is none."""
        codes = self._pixels(self._size, True).astype(np.int32) @ [1, 1 << 8, 1 << 16]
        geom_of = np.full(self._scene.ngeom + 1, -1)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            geom_of[geom.segid + 1] = geom.objid
        return geom_of[codes]

    def image(self) -> UInt8[np.ndarray, "size size 3"]:
        """The colours, each pixel the mean of its samples."""
        fine = self._pixels(self.buffer(self._size), False).astype(np.uint16)
        rows = sum(fine[k::_SAMPLES] for k in range(_SAMPLES))
        total = sum(rows[:, k::_SAMPLES] for k in range(_SAMPLES))
        return ((total + _SAMPLES**2 // 2) // _SAMPLES**2).astype(np.uint8)

    def _pixels(self, side: int, as_codes: bool) -> UInt8[np.ndarray, "side side 3"]:
        mujoco, flags = self._mujoco, self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = as_codes
        viewport = mujoco.MjrRect(0, 0, side, side)
        self._gl.make_current()  # another view may have been drawn, or freed, in between
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((side, side, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return pixels[::-1]  # OpenGL counts rows from below


def _free(gl, context) -> None:
    gl.make_current()  # else the textures of another view of the same number would go
    context.free()
    gl.free()


def _forget_backend(environment: dict[str, str]) -> None:
    """Undo what the import of one way to draw leaves behind, so that another can be tried."""
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):
        os.environ.pop(name, None)
        if name in environment:
            os.environ[name] = environment[name]
    parts = re.compile(r"(OpenGL|mujoco\.(egl|osmesa|glfw|gl_context|rendering))(\.|$)|mujoco$")
    for name in [name for name in sys.modules if parts.match(name)]:
        del sys.modules[name]
