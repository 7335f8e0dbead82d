"""Evaluate runs on their held-out scenes: `python experiments/evaluate.py RUN... [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import csv
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
import tyro
from tqdm import tqdm

from experiments import cli
from experiments.config import Count, Natural, Positive, check_bounds, overrides, within
from experiments.evaluation.held_out import HeldOut, Values, segment
from experiments.evaluation.metrics import METRICS, measure
from experiments.evaluation.tables import Row, markdown
from experiments.loading import check_runs, find_run
from experiments.systems import own_systems
from experiments.systems.options import SystemOptions
from pyro_lom.errors import UserError, printable
from pyro_lom.figures import save_sheet
from pyro_lom.files import replacing
from pyro_lom.metrics.stacks import stacks_stand

DESCRIPTION = """Evaluate runs on their held-out scenes, as in the paper: evaluate.py RUN... [options]. Numbers are
stored in RUN/evaluation.json and computed once. Markdown tables over all runs are printed."""

Metric = Literal[*METRICS]
_COUNTS = "stacks.csv"


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders. Runs that differ only in their seed share a row."""
    metrics: tuple[Metric, ...] = tuple(name for name in METRICS if name != "fid")
    """Metrics to compute. fid requires --inception-weights."""
    num_images: Count = 10_000
    """Largest number of held-out images; equally many scenes are sampled."""
    temperature: Positive = 0.8
    """Temperature tau of the samples (Sec. 4.1)."""
    readjust: Natural = 0
    """Batches of samples with which batch normalisation re-adjusts its statistics before sampling, for temperatures
    below 1; NVAE was published with 500. With 0, the statistics are those of the training."""
    likelihood_images: Count = 100
    """Number of images whose log p(x) is estimated."""
    likelihood_samples: Annotated[int, within(1, 100_000)] = 64
    """Importance samples per image for log p(x)."""
    inception_weights: Path | None = None
    """File pt_inception-2015-12-05-6726825d.pth, for fid."""
    output: Path | None = None
    """Markdown file for the tables, which are also printed."""
    sheet: Annotated[int, within(0, 1000)] = 0
    """Number of samples on a numbered contact sheet and in a CSV file, to count standing stacks by hand."""
    systems: str | None = None
    """Your own Python module that defines the systems of the runs."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="evaluate.py", description=DESCRIPTION)
    check_bounds(options)
    systems = own_systems(options.systems)
    check_runs(options.runs, "evaluate.py", systems)  # before hours of computation
    if not options.metrics:
        raise UserError(f"--metrics needs one or more of: {', '.join(METRICS)}")
    cli.check_output(options.output, suffix=".md")
    if options.sheet:
        for folder in options.runs:
            _refuse_to_lose_counts(find_run(folder).folder)
    rows = []
    for folder in options.runs:
        held_out = HeldOut.open(folder, num_images=options.num_images, systems=systems, readjust=options.readjust)
        if options.sheet:
            _write_sheet(held_out, options.sheet, options.temperature)
        values = _values(held_out, options)
        checkpoint = held_out.provenance["checkpoint"]
        scenes, model = held_out.all_scenes, held_out.source[1].model
        data = f"{scenes.name}, version {scenes.version}" if scenes.version else scenes.name
        num_slots = model.num_slots if model.slot_sites else None
        rows.append(
            Row(folder, held_out.config, checkpoint, len(held_out), values, data, num_slots, held_out.orderless)
        )
    tables = markdown(rows, command=lambda folders: _command(folders, options))
    print(tables)
    if options.output is not None:
        cli.write_signed(options.output, tables + "\n")


def evaluate(
    folder: str | Path,
    *,
    metrics: Sequence[Metric] = Arguments.metrics,
    systems: Iterable[type[SystemOptions]] = (),
    scenes: Any = None,
    parts: dict[str, Any] | None = None,
    **options,
) -> Values:
    """Compute and store a run's metrics as the command does, and return their values by key.

    Args:
        scenes: the scenes that were passed to `fit`, if the run was trained on such.
        parts: the parts that the run was trained with, by name, as for `load_run`.
        options: options of the command by name, such as `num_images=2048`.

    Raises:
        UserError: the folder is not a run, its data are missing, or the data do not support one of `metrics`.
    """
    arguments = replace(Arguments(), runs=(Path(folder),), metrics=tuple(metrics), **options)
    check_bounds(arguments)
    sizes = dict(num_images=arguments.num_images, readjust=arguments.readjust)
    held_out = HeldOut.open(Path(folder), **sizes, systems=systems, scenes=scenes, parts=parts)
    return _values(held_out, arguments)


@pyro.validation_enabled(False)
def _values(held_out: HeldOut, options: Arguments) -> Values:
    held_out.memory()  # a damaged file is refused before hours of computation
    settings = asdict(options) | {"likelihood_images": min(options.likelihood_images, len(held_out))}
    values: Values = {}
    folder = held_out.run.folder
    with tqdm(options.metrics, dynamic_ncols=True, unit="metric") as bar:
        for name in bar:
            bar.set_description(printable(f"{folder.resolve().name}: {name}"))
            try:
                values |= measure(name, held_out, settings, remember=True)
            except UserError as reason:
                if options.metrics != Arguments.metrics:  # selected by the user
                    raise UserError(f"{folder}: {name}: {reason}") from reason
                bar.write(printable(f"{folder}: {name} not computed: {reason}"), file=sys.stderr)
    return values


def _refuse_to_lose_counts(folder: Path) -> None:
    if os.path.lexists(folder / _COUNTS):
        raise UserError(f"{folder / _COUNTS} exists and may hold your counts: rename or remove it first")


def _write_sheet(held_out: HeldOut, num_samples: int, tau: float) -> None:
    """Write `figures/stacks.png` and `stacks.csv`, whose column `stands_by_hand` the user fills in."""
    images, stand = [], []
    for sample in held_out.samples(held_out.final, tau, "sampling for the sheet", num_scenes=num_samples):
        if sample.log_masks is None:
            raise UserError(f"{held_out.run.folder}: --sheet needs masks, and this system has none")
        images.append(sample.image.cpu())
        stand.append(stacks_stand(segment(sample.log_masks)))
    picture, counts = held_out.run.figures / "stacks.png", held_out.run.folder / _COUNTS
    save_sheet(picture, torch.cat(images), f"Samples at tau = {tau:g}, numbered as in {_COUNTS}")
    with replacing(counts) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "stands_by_rule", "stands_by_hand"])
        writer.writerows([number, int(stands), ""] for number, stands in enumerate(np.concatenate(stand)))
    for path in (picture, counts):
        print(printable(str(path)), file=sys.stderr)


def _command(folders: list[Path], options: Arguments) -> str:
    words = overrides(replace(options, runs=(), output=None, sheet=0), Arguments())
    return shlex.join(["python", "experiments/evaluate.py", *map(str, folders), *words])


if __name__ == "__main__":
    cli.run(main, saves_memory="--num-images or --likelihood-samples")
