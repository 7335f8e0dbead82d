"""MuJoCo without a way to draw is one line that says what to install."""

import os
import subprocess
import sys
from ctypes.util import find_library
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("mujoco") is None, reason="MuJoCo is not installed: it is the extra render")

PROGRAM = """
import os
from pyro_lom.data.renderers.view import mujoco_with_gl
from pyro_lom.errors import UserError
try:
    mujoco_with_gl()
    print(os.environ["MUJOCO_GL"])
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("chosen", "reason"), [("nonsense", "MUJOCO_GL=nonsense does not work"), ("glfw", "MUJOCO_GL=glfw does not work")]
)
def test_what_the_environment_names_does_not_work(chosen, reason):
    environment = {k: v for k, v in os.environ.items() if k != "DISPLAY"} | {"MUJOCO_GL": chosen}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.stdout == (
        f"MuJoCo cannot draw here: {reason}; install a library for it: apt install libegl1 libgl1 (or libosmesa6)\n"
    ), result.stderr


def without(*libraries):
    """What that program says where such libraries cannot be loaded."""
    hide = f"""
import ctypes, ctypes.util
load, find = ctypes.CDLL, ctypes.util.find_library
hidden = lambda name: any(part in str(name) for part in {libraries})
def load_but(name, *rest, **options):
    if hidden(name):
        raise OSError("no such library")
    return load(name, *rest, **options)
ctypes.CDLL = ctypes.cdll._dlltype = load_but
ctypes.util.find_library = lambda name: None if hidden(name) else find(name)
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run([sys.executable, "-c", hide + PROGRAM], env=environment, capture_output=True, text=True)


def test_no_library_at_all():
    result = without("GL", "OSMesa")
    assert result.stdout == (
        "MuJoCo cannot draw here: neither EGL nor OSMesa works; install a library for it: apt install libegl1 libgl1 "
        "(or libosmesa6)\n"
    ), result.stderr


@pytest.mark.skipif(find_library("OSMesa") is None, reason="OSMesa is not installed")
def test_osmesa_where_there_is_no_egl():
    result = without("EGL")
    assert result.stdout == "osmesa\n", result.stderr
