"""Weights in and out: `python experiments/weights.py import PRESET FILE [options]` and `... export RUN FILE`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic

import torch
import tyro
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments import cli
from experiments.config import Config, Model, to_dict
from experiments.loading import read_config, read_origin
from experiments.options import refuse_foreign_options
from experiments.published import check_kept, from_published, read_published, to_published
from experiments.systems import build, check, preset
from experiments.systems.options import SystemOptions
from experiments.training.opening import anchored
from pyro_lom.errors import UserError, printable
from pyro_lom.files import replacing
from pyro_lom.objective import Objective
from pyro_lom.training.checkpoints import Progress
from pyro_lom.training.runs import Run, load_weights

DESCRIPTION = """Weights of published programs: weights.py import PRESET FILE [options] makes a run folder from a
published checkpoint; weights.py export RUN FILE writes the weights of a run under the published names."""
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
    elif action in ("-h", "--help"):
        print(f"{DESCRIPTION}\n\nThe options of import are --runs-dir and those of fit.py PRESET --help.")
    else:
        raise UserError("weights.py needs: import PRESET FILE [options], or export RUN FILE (see weights.py --help)")


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
    run = Run.open(folder)
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
