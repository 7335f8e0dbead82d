"""Loading of the scenes of a configuration, and of the system of a run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments.config import Config, Data, from_dict
from experiments.systems import SYSTEMS, build
from experiments.systems.options import SystemOptions
from pyro_lom.data.hdf5 import Scenes, read_scenes
from pyro_lom.data.towers import ensure_towers
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.system import System
from pyro_lom.training.runs import Run, load_weights

EMBEDDED = {"data/towers.h5": 32, "data/towers-64.h5": 64}
"""Files of the embedded data set, which are rendered if missing, and the size of their images."""

_OBJECTS = "github.com/google-deepmind/multi_object_datasets"
_PUBLISHED = {
    "data/objects-room.h5": ("objects-room", _OBJECTS, "objects_room_train.tfrecords", ""),
    "data/objects-room-48.h5": ("objects-room", _OBJECTS, "objects_room_train.tfrecords", " --size 48"),
    "data/clevr6.h5": ("clevr6", _OBJECTS, "clevr_with_masks_train.tfrecords", ""),
    "data/shapestacks.h5": ("shapestacks", "ogroth.github.io/shapestacks", "shapestacks", ""),
}
"""Data files of the presets: name for `data.py`, place of publication, file or folder there, options of `data.py`."""


def read_data(data: Data) -> Scenes:
    """Return the scenes of a configuration. The embedded data set is rendered if it is missing or damaged.

    Raises:
        UserError: the scenes are missing or damaged, or do not have the size `data.image_size`.
    """
    if EMBEDDED.get(data.path) == data.image_size:
        return ensure_towers(data.path, data.image_size)
    if data.path in _PUBLISHED and not Path(data.path).exists():
        raise UserError(f"the data set is missing: {data.path}. {_how_to_get(data.path)}")
    if Path(data.path).is_dir():
        return read_scenes(data.path, (data.image_size, data.image_size))
    scenes, size = read_scenes(data.path), data.image_size
    _, height, width = scenes.image_shape
    if (height, width) != (size, size):
        way_out = f"pass --data.image-size {height}" if height == width else "crop and resize them to squares"
        raise UserError(f"images in {data.path} are {height}x{width}, but --data.image-size is {size}: {way_out}")
    return scenes


def _how_to_get(path: str) -> str:
    name, place, source, options = _PUBLISHED[path]
    return (
        f"Render a stand-in: python experiments/data.py render {name} {path}{options} | or import what {place} "
        f"publishes: python experiments/data.py import {name} {source} {path}{options} | "
        f"or name your own with --data.path"
    )


def read_config(run: Run, systems: Iterable[type[SystemOptions]] = ()) -> Config:
    """Read the configuration of a run of a built-in system or of one of your own `systems`.

    Raises:
        UserError: it is damaged, or was written by an older version or by another system.
    """
    return from_dict(run.read_json("config.json"), (*SYSTEMS, *systems), place=f"{run.folder}/config.json")


def check_runs(folders: Sequence[Path], command: str, systems: Iterable[type[SystemOptions]] = ()) -> None:
    """Check run folders before hours of computation on the first of them. Data are not checked.

    Raises:
        UserError: there is no folder, or one is given twice, is not a run, or has no readable checkpoint.
    """
    if not folders:
        raise UserError(f"name one or more run folders: {command} runs/00000-...")
    for number, folder in enumerate(folders):
        run = Run.open(folder)
        read_config(run, systems)
        run.load_checkpoint()
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise UserError(f"{folder} is named twice: name each run once")


def load_run(
    folder: str | Path, *, systems: Iterable[type[SystemOptions]] = (), **parts: Any
) -> tuple[Config, System, Scenes]:
    """Return the configuration, the trained system (on the CPU, in evaluation mode) and the scenes of a run.

    Args:
        systems: classes of your own systems.
        parts: parts that the run was trained with, such as `scene_prior`; their weights are loaded.

    Raises:
        UserError: the folder is not a run, or its last checkpoint or its data are missing or damaged.
    """
    run = Run.open(Path(folder))
    config = read_config(run, systems)
    scenes = read_data(config.data)
    system = build(config, scenes.image_shape, **parts)
    objective = Objective(system)
    progress, weights, _ = run.load_checkpoint()
    load_weights(objective, weights, run.folder)
    objective.at_step(progress.step)
    objective.eval()
    return config, system, scenes
