"""Every test runs with shapes and types checked, Pyro's validation on, an empty parameter store, and torch seeded."""

import signal

import jaxtyping

# The hook comes first: it does not check modules that were imported before. The "tower" accepts an int for a float, as
# type checkers do.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook(["pyro_lom", "models", "guides", "experiments"], CHECKER)

import experiments  # noqa: E402, F401, I001 - sets what OpenMP reads, before torch is imported
import pyro  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from pyro_lom.data.renderers.objects_room import ObjectsRoom  # noqa: E402
from pyro_lom.data.renderers.view import mujoco_with_gl  # noqa: E402
from pyro_lom.errors import UserError  # noqa: E402
from pyro_lom.training.signals import STOP_SIGNALS  # noqa: E402


def pytest_addoption(parser):
    parser.addoption(
        "--gpu-tests-on", choices=["cuda", "cpu"], default="cuda", help="cpu: rehearse the tests marked gpu"
    )


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # this process starts the workers
        import arviz  # noqa: F401 - its first import of a day writes a file, and fails in two processes at once


@pytest.fixture(autouse=True)
def clean_slate():
    pyro.clear_param_store()
    torch.manual_seed(0)
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with pyro.validation_enabled():
        yield
    for number, handler in handlers.items():  # a command that was stopped ignores further signals
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def mujoco():
    """MuJoCo with OpenGL; tests are skipped where it is not."""
    try:
        assert ObjectsRoom().engine.startswith("mujoco ")
        return mujoco_with_gl()
    except UserError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def mitsuba():
    """Mitsuba; tests are skipped where it is not."""
    reason = "Mitsuba is not installed: it comes with the extra clevr"
    return pytest.importorskip("mitsuba", reason=reason, exc_type=ImportError)
