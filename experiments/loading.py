"""From names on disk to objects: the scenes of a configuration, and the system of a run."""

from pathlib import Path

from experiments.config import Config, Data, from_dict
from experiments.systems import System, build_objective, build_system
from pyro_lom.data.hdf5 import Scenes, read_scenes
from pyro_lom.data.towers import ensure_towers
from pyro_lom.errors import UserError
from pyro_lom.runs import Run, load_weights

_LAYOUT = "Put it there as HDF5 with images, uint8 (N, H, W, C), or name your own file or folder with --data.path"
_HOW_TO_GET = {
    "data/objects-room.h5": f"Objects Room is published at github.com/deepmind/multi_object_datasets. {_LAYOUT}",
    "data/clevr6.h5": f"CLEVR is published at github.com/deepmind/multi_object_datasets. {_LAYOUT}",
    "data/shapestacks.h5": f"ShapeStacks is published at ogroth.github.io/shapestacks. {_LAYOUT}",
}


def read_data(data: Data) -> Scenes:
    """The scenes of a configuration; the embedded data set is made when it is not there.

    Raises:
        UserError: they are missing, damaged, or not of the size asked for.
    """
    if data == Data():
        return ensure_towers(data.path)
    if data.path in _HOW_TO_GET and not Path(data.path).exists():
        raise UserError(f"the data set is missing: {data.path}. {_HOW_TO_GET[data.path]}")
    if Path(data.path).is_dir():
        return read_scenes(data.path, (data.image_size, data.image_size))
    scenes, size = read_scenes(data.path), data.image_size
    _, height, width = scenes.image_shape
    if (height, width) != (size, size):
        way_out = f"pass --data.image-size {height}" if height == width else "crop and resize them to squares"
        raise UserError(f"images in {data.path} are {height}x{width}, but --data.image-size is {size}: {way_out}")
    return scenes


def load_run(folder: str | Path) -> tuple[Config, System, Scenes]:
    """The configuration, the trained system (on the CPU, in evaluation mode) and the scenes of a run.

    Raises:
        UserError: the folder is no run, its last checkpoint is damaged, or its data are gone.
    """
    run = Run.open(Path(folder))
    config = from_dict(run.read_json("config.json"), place=f"{folder}/config.json")
    scenes = read_data(config.data)
    system = build_system(config, scenes.image_shape)
    objective = build_objective(config, system, scenes.image_shape)
    load_weights(objective, run.load_checkpoint()[0], run.folder)
    objective.eval()
    return config, system, scenes
