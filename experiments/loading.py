"""From names on disk to objects: the scenes of a configuration, and the system of a run."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from experiments.config import Config, Data, from_dict
from experiments.systems import System, build_objective, build_system
from pyro_lom.data.hdf5 import Scenes, read_scenes
from pyro_lom.data.towers import ensure_towers
from pyro_lom.errors import UserError
from pyro_lom.runs import Run, load_weights

EMBEDDED = {"data/towers.h5": 32, "data/towers-64.h5": 64}
"""Files of the embedded data set, and the size of their images: made when they are missing."""

_OBJECTS = "github.com/google-deepmind/multi_object_datasets"
_PUBLISHED = {
    "data/objects-room.h5": ("objects-room", _OBJECTS, "objects_room_train.tfrecords", ""),
    "data/objects-room-48.h5": ("objects-room", _OBJECTS, "objects_room_train.tfrecords", " --size 48"),
    "data/clevr6.h5": ("clevr6", _OBJECTS, "clevr_with_masks_train.tfrecords", ""),
    "data/shapestacks.h5": ("shapestacks", "ogroth.github.io/shapestacks", "shapestacks", ""),
}
"""What `data.py` calls the data sets of the presets, where they are published, what the file or folder is called there,
and options of `data.py`."""


def read_data(data: Data) -> Scenes:
    """The scenes of a configuration; the embedded data set is made when it is not there.

    Raises:
        UserError: they are missing, damaged, or not of the size asked for.
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


def check_runs(folders: Sequence[Path], command: str) -> None:
    """Refuse what `load_run` would, but for their data, before time is spent on the first of many.

    Raises:
        UserError: there are none, one is given twice, is no run, or has no checkpoint that can be read.
    """
    if not folders:
        raise UserError(f"name one or more run folders: {command} runs/00000-...")
    for number, folder in enumerate(folders):
        run = Run.open(folder)
        from_dict(run.read_json("config.json"), place=f"{folder}/config.json")
        run.load_checkpoint()
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise UserError(f"{folder} is named twice: name each run once")


def load_run(folder: str | Path, *, scene_prior: nn.Module | None = None) -> tuple[Config, System, Scenes]:
    """The configuration, the trained system (on the CPU, in evaluation mode) and the scenes of a run.

    A run that was trained with a `scene_prior` of one's own needs one of the same kind, whose weights it loads.

    Raises:
        UserError: the folder is no run, its last checkpoint is damaged, or its data are gone.
    """
    run = Run.open(Path(folder))
    config = from_dict(run.read_json("config.json"), place=f"{folder}/config.json")
    scenes = read_data(config.data)
    system = build_system(config, scenes.image_shape, scene_prior=scene_prior)
    objective = build_objective(config, system, scenes.image_shape)
    load_weights(objective, run.load_checkpoint()[1], run.folder)
    objective.eval()
    return config, system, scenes
