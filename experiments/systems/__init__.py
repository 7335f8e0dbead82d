"""All systems: their options and presets by name, and their construction."""

import importlib
import sys
import traceback
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from experiments.config import Config, check_bounds
from experiments.parts import exchange
from experiments.systems import (
    autoregressive,
    emorl,
    genesis,
    genesis_v2,
    genesis_v2_autoregressive,
    gnm,
    lom,
    nvae,
    sri,
    vae,
)
from experiments.systems.options import ImageShape, SystemOptions
from pyro_lom.errors import UserError
from pyro_lom.system import System

_MODULES = (
    lom,
    genesis_v2,
    genesis,
    emorl,
    autoregressive,
    genesis_v2_autoregressive,
    sri,
    vae,
    gnm,
    nvae,
)

SYSTEMS: tuple[type[SystemOptions], ...] = tuple(kind for module in _MODULES for kind in module.SYSTEMS)
PRESETS: dict[str, Config] = {config.preset: config for module in _MODULES for config in module.PRESETS}
ADAPTING = {lom.OWN.preset}
"""Presets whose options the command adapts to the images (`experiments/adapt.py`)."""
PRESETS |= {"demo": lom.DEMO, "demo-64": PRESETS[f"{lom.DEMO.preset}-64"]}


def preset(name: str, systems: Iterable[type[SystemOptions]] = ()) -> Config:
    """Return the preset `name`. The kinds of your own `systems` are names of presets with default values.

    Raises:
        UserError: the preset does not exist. The message lists all presets.
    """
    own = {kind.kind: kind for kind in systems}
    if name in own:
        return Config(preset=name, model=own[name]())
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; choose one of {', '.join([*own, *PRESETS])}")
    return PRESETS[name]


def build(config: Config, image_shape: ImageShape, **parts: Any) -> System:
    """Build the system of a configuration for images (C, H, W), with the user's `parts` in place of its own.

    Raises:
        UserError: the configuration, the images and the parts are not compatible.
    """
    check(config)
    return exchange(config.model.build(image_shape, config.train), parts)


def check(config: Config, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
    """Raise UserError for options that are out of bounds, have no effect or are not compatible with each other."""
    check_bounds(config)
    config.model.check(config.train, accumulate=accumulate, cuda_graph=cuda_graph)


def own_systems(module: str | None) -> tuple[type[SystemOptions], ...]:
    """Import a user's module, and return its subclasses of `SystemOptions`; without a module, return ().

    Raises:
        UserError: the module cannot be imported, or defines no system.
    """
    if module is None:
        return ()
    if "" not in sys.path:  # a script's path contains its own folder instead of the current one
        sys.path.append("")
    try:
        found: ModuleType = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"--systems {module} cannot be imported: {error}; run in the folder that has it") from error
    except Exception as error:  # a module can raise anything
        last = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
        place = f"{last.filename}:{last.lineno}"
        raise UserError(f"--systems {module} cannot be imported: {type(error).__name__}: {error} ({place})") from error
    kinds = [kind for kind in vars(found).values() if isinstance(kind, type) and issubclass(kind, SystemOptions)]
    own = tuple(kind for kind in kinds if kind.__module__ == found.__name__ and "kind" in vars(kind))
    if not own:
        raise UserError(f"--systems {module}: the module defines no subclass of SystemOptions with a kind")
    return own
