"""Loading of the scenes of a configuration, and of the system of a run."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from experiments.config import Config, Data, from_dict
from experiments.parts import PARTS, check_names, check_records, records
from experiments.systems import SYSTEMS, build
from experiments.systems.options import SystemOptions
from pyro_lom.data.arrays import scenes_of
from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.data.scenes import Scenes, fit_scenes, why_no_objects
from pyro_lom.data.towers import ensure_towers
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.system import System, result
from pyro_lom.training.checkpoints import check_data
from pyro_lom.training.runs import Run, load_weights

EMBEDDED = {"data/towers.h5": 32, "data/towers-64.h5": 64}
"""Files of the embedded data set, which are rendered if missing, and the size of their images."""

PRETRAINED = Path(__file__).parent / "pretrained"
"""Folder of the runs that are part of the project. Commands and functions find them under the name pretrained/NAME."""
KEPT_SCENES = "scenes.h5"
"""File of a packed run that contains its held-out scenes."""

_FEW = 1000  # training scenes, below which a warning is printed
_OBJECTS = "github.com/google-deepmind/multi_object_datasets"
_IN_AN_HOUR = " --num 12000 --workers 2"  # what two cores render of CLEVR6 at 64x64
_DATA_SETS = {
    "data/objects-room.h5": ("objects-room", _OBJECTS, "objects_room_train.tfrecords", "", ""),
    "data/objects-room-48.h5": ("objects-room", _OBJECTS, "objects_room_train.tfrecords", " --size 48", ""),
    "data/clevr6.h5": ("clevr6", _OBJECTS, "clevr_with_masks_train.tfrecords", "", ""),
    "data/clevr6-64.h5": ("clevr6", _OBJECTS, "clevr_with_masks_train.tfrecords", " --size 64", _IN_AN_HOUR),
    "data/clevr6-128.h5": ("clevr6", _OBJECTS, "clevr_with_masks_train.tfrecords", " --size 128", ""),
    "data/shapestacks.h5": ("shapestacks", "ogroth.github.io/shapestacks", "shapestacks", "", ""),
    "data/shapestacks-near.h5": ("shapestacks-near", "", "", "", ""),
}
"""Data files of the presets: name for `data.py`, place of publication or "", file or folder there, options of
`data.py`, and further ones of `data.py render`."""


def read_data(data: Data, scenes: Any = None) -> Scenes:
    """Return the scenes of a configuration, or those that are given as Scenes or as images, at its size.

    The embedded data set is rendered if it is missing.

    Raises:
        UserError: the scenes are missing or damaged.
    """
    size, pad = (data.image_size, data.image_size), data.fit == "pad"
    if scenes is not None:
        return fit_scenes(scenes_of(scenes), size, pad=pad, place="scenes")
    if EMBEDDED.get(data.path) == data.image_size:
        return ensure_towers(data.path, data.image_size)
    if data.path in _DATA_SETS and not os.path.exists(data.path):
        raise UserError(f"the data set is missing: {data.path}. {_how_to_get(data.path)}")
    return read_scenes(data.path, size, pad=pad)


def remarks(scenes: Scenes) -> list[str]:
    """Return what a person should know about scenes before they train on them, one line each."""
    lines, num_train = list(scenes.notes), len(scenes.splits["train"])
    if num_train < _FEW:
        lines.append(
            f"warning: {num_train} scenes to train on are few: below {_FEW:,}, a model may learn them by heart; see "
            "the gap between the ELBOs of training and held-out scenes at the end, or add images"
        )
    if complaint := why_no_objects(scenes.split("test" if scenes.splits.get("test") else "train")):
        lines.append(f"warning: {complaint}")
    return lines


def _how_to_get(path: str) -> str:
    name, place, source, options, of_render = _DATA_SETS[path]
    stand_in, published = "it", ""
    if place:
        command = f"python experiments/data.py import {name} {source} {path}{options}"
        stand_in, published = "a stand-in", f" | or import what {place} publishes: {command}"
    return (
        f"Render {stand_in}: python experiments/data.py render {name} {path}{options}{of_render}{published} | "
        "or name your own with --data.path"
    )


Record = TypedDict("Record", {"class": str, "tensors": str})
"""What a run keeps of an exchanged part (`parts.py: records`)."""


class Origin(NamedTuple):
    """What `config.json` contains beside the configuration: how a run differs from a run of its configuration."""

    parts: dict[str, Record] = {}  # of exchanged parts, by name
    orderless: str | None = None  # the run from which the orderless pair was taken
    scenes: str | None = None  # what was passed to `fit` instead of the data of the configuration

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in self._asdict().items() if value}


class _Origin(TypedDict, total=False):
    parts: dict[Literal[*PARTS], Record]
    orderless: str
    scenes: str


def find_run(folder: str | Path) -> Run:
    """Open the run in `folder`. If there is no such folder, pretrained/NAME is a run of the project.

    Raises:
        UserError: there is neither, or the folder is not a run.
    """
    folder = Path(folder)
    if folder.parts[:1] == (PRETRAINED.name,) and not os.path.lexists(folder):
        own = PRETRAINED.joinpath(*folder.parts[1:])
        if ".." in folder.parts or not os.path.isfile(own / "config.json"):
            names = ", ".join(
                f"{PRETRAINED.name}/{path.parent.name}" for path in sorted(PRETRAINED.glob("*/config.json"))
            )
            raise UserError(f"there is no run {folder}; name a run folder" + (names and f", or one of: {names}"))
        folder = own
    return Run.open(folder)


def read_config(run: Run, systems: Iterable[type[SystemOptions]] = ()) -> Config:
    """Read the configuration of a run of a built-in system or of one of your own `systems`.

    Raises:
        UserError: it is damaged, or was written by an older version or by another system.
    """
    values = {name: value for name, value in run.read_json("config.json").items() if name not in Origin._fields}
    return from_dict(values, (*SYSTEMS, *systems), place=f"{run.folder}/config.json")


def read_origin(run: Run) -> Origin:
    """Read how a run differs from a run of its configuration; raises UserError if `config.json` is damaged."""
    return Origin(**run.read_json("config.json", _Origin))


def check_scenes(origin: Origin, scenes: Any, folder: Path) -> None:
    """Raise UserError if scenes are missing that a run was trained on, or are given to a run with data of its own."""
    if origin.scenes is not None and scenes is None:
        raise UserError(
            f"{folder} was trained on scenes that were passed to fit and are not stored ({origin.scenes}): pass them "
            "again in Python, such as load_run(folder, scenes=images) or evaluate(folder, scenes=images)"
        )
    if origin.scenes is None and scenes is not None:
        raise UserError(f"{folder} was trained on data of its own configuration: leave scenes out")


def check_runs(folders: Sequence[Path], command: str, systems: Iterable[type[SystemOptions]] = ()) -> None:
    """Check run folders before hours of computation on the first of them. Data are not checked.

    Raises:
        UserError: there is no folder, or one is given twice, is not a run, or has no readable checkpoint.
    """
    if not folders:
        raise UserError(f"name one or more run folders: {command} runs/00000-...")
    named = set()
    for folder in folders:
        run = find_run(folder)
        read_config(run, systems)
        origin = read_origin(run)
        check_names(origin.parts, {}, folder)
        check_scenes(origin, None, folder)
        run.progress()
        if (place := run.folder.resolve()) in named:
            raise UserError(f"{folder} is named twice: name each run once")
        named.add(place)


def start_from(system: System, config: Config, folder: str | Path, systems: Iterable[type[SystemOptions]] = ()) -> None:
    """Load the pair that other pairs read, such as the orderless pair of a LOM, from a run of a system with this pair.

    Raises:
        UserError: one of them has no such pair, or its training did not end, or its options differ.
    """
    run, name = find_run(folder), result(system).reads
    if name is None:
        raise UserError(f"--orderless {folder}: {config.model.kind} has no pair that another one reads")
    there = read_config(run, systems)
    given, own = there.model.source_options(), config.model.source_options()
    if differ := [option for option in own if given.get(option) != own[option]]:
        raise UserError(f"--orderless {folder}: its pair differs in the option {differ[0].replace('_', '-')}")
    objective = Objective(system)
    progress, weights, _ = run.load_checkpoint(objective)
    needed = there.model.source_steps(there.train)
    if progress.step < needed and not (needed < there.train.steps and read_origin(run).orderless):
        raise UserError(f"--orderless {folder} is at step {progress.step} of {needed}: finish it first with --resume")
    pair = objective.pairs[name]
    prefixes = {key.split(".")[1] for key in weights}
    prefix = f"pairs.{name if name in prefixes else min(prefixes)}."
    weights = {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}
    load_weights(pair, weights, run.folder)


def load_run(
    folder: str | Path, *, systems: Iterable[type[SystemOptions]] = (), scenes: Any = None, **parts: Any
) -> tuple[Config, System, Scenes]:
    """Return the configuration, the trained system (on the CPU, in evaluation mode) and the scenes of a run.

    `folder` may be pretrained/NAME (`find_run`). The scenes of a packed run are its held-out scenes only.

    Args:
        systems: classes of your own systems.
        scenes: the scenes that were passed to `fit`, if the run was trained on such.
        parts: the parts that the run was trained with, such as `scene_prior`; the run's weights are loaded into copies.

    Raises:
        UserError: the folder is not a run, its last checkpoint or its data are missing or damaged, or a part is missing
            or is not the one that the run was trained with.
    """
    run = find_run(folder)
    config, origin = read_config(run, systems), read_origin(run)
    kept = origin.parts
    check_names(kept, parts, run.folder)
    check_scenes(origin, scenes, run.folder)
    scenes = _scenes_of(run, config, scenes)
    system = build(config, scenes.image_shape, **parts)
    check_records(kept, records(system, parts), run.folder)
    objective = Objective(system)
    progress, weights, _ = run.load_checkpoint(objective)
    if progress.data:  # otherwise the run may have no training scenes
        check_data(progress, scenes.split("train").images, run.folder)
    load_weights(objective, weights, run.folder)
    objective.at_step(progress.step)
    objective.eval()
    return config, system, scenes


def _scenes_of(run: Run, config: Config, scenes: Any) -> Scenes:
    """Return the held-out scenes that a packed run contains, or those of the configuration of any other run."""
    kept, size = run.folder / KEPT_SCENES, config.data.image_size
    return read_scenes(kept, (size, size)) if kept.exists() else read_data(config.data, scenes)
