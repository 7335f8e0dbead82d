"""Import, export and pack weights: `python experiments/weights.py import PRESET FILE [options]`, `... export RUN FILE`
and `... pack RUN FOLDER`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic

import msgspec
import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments import cli
from experiments.config import Config, Model, to_dict
from experiments.evaluation.held_out import Values
from experiments.loading import KEPT_SCENES, find_run, load_run, read_config, read_origin
from experiments.options import refuse_foreign_options
from experiments.published import check_kept, from_published, read_published, to_published
from experiments.systems import PRESETS, build, check, preset
from experiments.systems.options import SystemOptions
from experiments.training.opening import anchored
from pyro_lom.data.hdf5 import write_scenes
from pyro_lom.errors import UserError, printable
from pyro_lom.files import replacing
from pyro_lom.objective import Objective
from pyro_lom.training.checkpoints import Progress
from pyro_lom.training.runs import Run, load_weights

DESCRIPTION = """Import, export and pack weights: weights.py import PRESET FILE [options] makes a run folder from a
published checkpoint; weights.py export RUN FILE writes the weights of a run under the published names; weights.py pack
RUN FOLDER makes a small copy of a run, which needs no data set."""
_NUM_PACKED = 64
_KEPT = "published.safetensors"


@dataclass(frozen=True)
class Import(Generic[Model]):
    """Make a run folder from a published checkpoint. No code in it runs. The options are those of fit.py."""

    config: Annotated[Config[Model], tyro.conf.arg(name="")]
    runs_dir: Path = Path("runs")
    """Folder in which the run folder is created."""


@dataclass(frozen=True)
class Export:
    """Write the weights of a run to a new file, under the published names and in the published format."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]


@dataclass(frozen=True)
class Pack:
    """Copy the weights, the configuration and the summary of a run, and 64 of its held-out scenes, to a new folder."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


def main(arguments: list[str]) -> None:
    action, *rest = arguments or ["--help"]
    if action == "import" and len(rest) >= 2 and not any(word.startswith("-") for word in rest[:2]):
        name, file, *rest = rest
        default = Import(preset(name))
        refuse_foreign_options(rest, default.config)
        kind = Import[type(default.config.model)]
        options = cli.parse(kind, rest, default=default, prog="weights.py import", description=DESCRIPTION)
        run = import_weights(options.config, Path(file), runs_dir=options.runs_dir)
        print(printable(str(run.folder)))
    elif action == "export":
        options = cli.parse(Export, rest, prog="weights.py export", description=DESCRIPTION)
        export_weights(options.run, options.file)
        print(printable(str(options.file)))
    elif action == "pack":
        options = cli.parse(Pack, rest, prog="weights.py pack", description=DESCRIPTION)
        pack(options.run, options.folder)
        print(printable(str(options.folder)))
    elif action in ("-h", "--help"):
        print(f"{DESCRIPTION}\n\nThe options of import are --runs-dir and those of fit.py PRESET --help.")
    else:
        raise UserError(
            "weights.py needs: import PRESET FILE [options], export RUN FILE or pack RUN FOLDER (see weights.py --help)"
        )


def import_weights(config: Config, file: Path, *, runs_dir: Path = Path("runs")) -> Run:
    """Make a run of `config` at its last step, with the weights in the published checkpoint `file`.

    The run has no fingerprint of the data on which the weights were trained, and no state of an optimiser.

    Raises:
        UserError: the file is not a published checkpoint of this configuration, or the run cannot be written.
    """
    check(config)
    objective = _objective(config)
    to_published(config.model, objective)  # refuses other systems before the file is read
    tensors = read_published(file, config.model)
    objective.load_state_dict(from_published(config.model, objective, tensors, file))
    objective.at_step(config.train.steps)
    written = to_published(config.model, objective)
    kept = {name: tensor for name, tensor in tensors.items() if not _equal(tensor, written[name])}

    def fill(run: Run) -> None:
        if kept:
            with replacing(run.folder / _KEPT) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in kept.items()}, temporary)
        run.save_checkpoint(Progress(config.train.steps, 0.0, 0, data=""), objective.state_dict(), {})
        run.log(f"weights of {file}")

    return Run.create(runs_dir, f"{config.preset}-seed{config.seed}", to_dict(anchored(config)), fill=fill)


def export_weights(folder: Path, file: Path) -> None:
    """Write the weights of the run in `folder` to the new file `file`, as the published program stores them.

    Raises:
        UserError: `file` exists, the folder is not a run with a checkpoint, or its system was not published.
    """
    if os.path.lexists(file) or not file.parent.is_dir():
        raise UserError(f"{file}: name a new file in a folder that exists")
    run = find_run(folder)
    config = read_config(run)
    if parts := read_origin(run).parts:
        raise UserError(f"{folder} has parts that the published program lacks: {', '.join(parts)}")
    objective = _objective(config)
    progress, weights, _ = run.load_checkpoint(objective)
    load_weights(objective, weights, run.folder)
    tensors = to_published(config.model, objective)
    if (run.folder / _KEPT).exists():
        tensors |= _read_kept(run.folder / _KEPT, config.model, objective)
    key = config.model.published_key
    with replacing(file) as temporary:
        torch.save(tensors if key is None else {key: tensors}, temporary)


def pack(folder: Path, target: Path) -> None:
    """Make a small copy of a finished run: weights without the state of an optimiser, and 64 held-out scenes.

    The weights are rounded to 16 bits. The copy requires no data set, and contains no path of this machine. Its
    configuration names the data set of the preset, or the file of other data without its folder.

    Raises:
        UserError: `target` exists; `folder` is not a finished run with its data; or the run has exchanged parts, a
            system of your own, scenes that were passed to `fit`, or no test split.
    """
    if os.path.lexists(target) or not target.parent.is_dir():
        raise UserError(f"{target}: name a new folder in a folder that exists")
    run = find_run(folder)
    config, system, scenes = load_run(folder)
    progress = run.progress()
    if not (run.folder / "summary.json").exists():
        raise UserError(f"{folder} is at step {progress.step} and not evaluated: finish it first with --resume")
    run.read_json("summary.json", Values)  # refuses one that is damaged
    if not scenes.splits.get("test"):
        raise UserError(f"the data of {folder} have no scenes in a split test, and a packed run consists of such")
    held_out, objective = scenes.split("test", _NUM_PACKED), Objective(system)
    weights = {
        name: tensor.half() if tensor.dtype == torch.float32 else tensor
        for name, tensor in objective.state_dict().items()
    }
    if (run.folder / _KEPT).exists():
        _read_kept(run.folder / _KEPT, config.model, objective)  # refuses a damaged file

    def fill(packed: Run) -> None:
        source = f"held-out scenes of {held_out.name}"
        write_scenes(packed.folder / KEPT_SCENES, held_out, source=source, seed=0, compression="gzip")
        packed.save_checkpoint(msgspec.structs.replace(progress, data=""), weights, {})
        packed.write_json("summary.json", run.read_json("summary.json"))
        if (run.folder / _KEPT).exists():
            shutil.copyfile(run.folder / _KEPT, packed.folder / _KEPT)

    run.derive(target, _without_places(run.read_json("config.json"), config), fill=fill)


def _without_places(values: dict[str, Any], config: Config) -> dict[str, Any]:
    """Return the content of `config.json` without paths of this machine."""
    path = Path(config.data.path)
    usual = Path(PRESETS[config.preset].data.path) if config.preset in PRESETS else path
    values["data"]["path"] = str(usual) if path.parts[-2:] == usual.parts else path.name
    for name, value in values.items():
        if isinstance(value, str) and os.path.isabs(value):
            values[name] = Path(value).name
    return values


def _objective(config: Config) -> Objective:
    size = config.data.image_size
    return Objective(build(config, (3, size, size)))


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


def _read_kept(path: Path, options: SystemOptions, objective: Objective) -> dict[str, Tensor]:
    """Read the imported tensors that the checkpoint of the run contains rounded or not at all."""
    largest = 2**20 + 16 * sum(tensor.nbytes for tensor in objective.state_dict().values())
    try:
        if path.stat().st_size > largest:
            raise OSError
        kept = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: import the weights again") from error
    check_kept(options, objective, kept, path)
    return kept


if __name__ == "__main__":
    cli.run(main, saves_memory="the size of the file")
