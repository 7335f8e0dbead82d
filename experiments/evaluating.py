"""What `experiments/evaluate.py` does: measure runs, remember what was measured, and write tables over seeds."""

import csv
import shlex
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyro
import torch
import tyro
from tqdm import tqdm

from experiments import cli
from experiments.config import Count, Natural, Positive, check_bounds
from experiments.held_out import HeldOut, Values, segment
from experiments.loading import check_runs
from experiments.measures import MEASURES, measure
from experiments.tables import Row, markdown
from pyro_lom.errors import UserError
from pyro_lom.figures import save_sheet
from pyro_lom.metrics.stacks import stacks_stand
from pyro_lom.runs import replacing

DESCRIPTION = """Evaluate runs on their held-out scenes, as the paper does: evaluate.py RUN... [options]. Numbers go to
RUN/evaluation.json and are not computed twice; tables over all runs, in Markdown, go to the terminal."""

Metric = Literal[*MEASURES]
_COUNTS = "structure.csv"


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders. Those that differ in nothing but their seed share a row."""
    metrics: tuple[Metric, ...] = tuple(name for name in MEASURES if name != "fid")
    """Which to compute; fid needs --inception-weights."""
    num_images: Count = 10_000
    """Held-out images, or all there are, and as many samples."""
    temperature: Positive = 0.8
    """tau, of samples (Sec. 4.1)."""
    likelihood_images: Count = 100
    """Images whose log p(x) is estimated."""
    likelihood_samples: Count = 64
    """Importance samples for each of them."""
    inception_weights: Path | None = None
    """pt_inception-2015-12-05-6726825d.pth, for fid."""
    output: Path | None = None
    """A Markdown file that the tables are also written to."""
    sheet: Natural = 0
    """Write this many samples as a numbered contact sheet and a CSV, to count structure by hand."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="evaluate.py", description=DESCRIPTION)
    check_bounds(options)
    check_runs(options.runs, "evaluate.py")  # before hours are spent on the first
    if not options.metrics:
        raise UserError(f"--metrics needs one or more of: {', '.join(MEASURES)}")
    cli.check_output(options.output)
    if options.sheet:
        for folder in options.runs:
            _refuse_to_lose_counts(folder)
    pyro.enable_validation(False)
    rows = [_evaluate(folder, options) for folder in options.runs]
    tables = markdown(rows, command=lambda folders: _command(folders, options))
    print(tables)
    if options.output is not None:
        with replacing(options.output) as temporary:
            temporary.write_text(tables + "\n", encoding="utf-8")


def _evaluate(folder: Path, options: Arguments) -> Row:
    held_out = HeldOut(folder, num_images=options.num_images)
    held_out.check_memory()
    settings = asdict(options) | {"likelihood_images": min(options.likelihood_images, len(held_out))}
    values: Values = {}
    with tqdm(options.metrics, dynamic_ncols=True, unit="metric") as bar:
        for name in bar:
            bar.set_description(f"{folder.resolve().name}: {name}")
            try:
                values |= measure(name, held_out, settings)
            except UserError as reason:
                if options.metrics != Arguments.metrics:  # asked for by name
                    raise UserError(f"{folder}: {name}: {reason}") from reason
                bar.write(f"{folder}: {name} not computed: {reason}", file=sys.stderr)
    if options.sheet:
        _write_sheet(held_out, options.sheet, options.temperature)
    return Row(folder, held_out.config, held_out.source["checkpoint"], len(held_out), values)


def _refuse_to_lose_counts(folder: Path) -> None:
    if (folder / _COUNTS).exists():
        raise UserError(f"{folder / _COUNTS} is there and may hold your counts: rename or remove it first")


def _write_sheet(held_out: HeldOut, num_samples: int, tau: float) -> None:
    """Write `figures/structure.png` and `structure.csv`, whose column `stands_by_hand` is to be filled in."""
    images, stand = [], []
    for sample in held_out.samples(held_out.system.final, num_samples, tau, "sampling for the sheet"):
        images.append(sample.image.cpu())
        stand.append(stacks_stand(segment(sample.log_masks)))
    picture, counts = held_out.run.figures / "structure.png", held_out.run.folder / _COUNTS
    save_sheet(picture, torch.cat(images), f"Samples at tau = {tau:g}, numbered as in {_COUNTS}")
    with replacing(counts) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "stands_by_rule", "stands_by_hand"])
        writer.writerows([number, int(stands), ""] for number, stands in enumerate(np.concatenate(stand)))
    for path in (picture, counts):
        print(path, file=sys.stderr)


def _command(folders: list[Path], options: Arguments) -> str:
    """The line that makes a row of numbers."""
    words = ["python", "experiments/evaluate.py", *map(str, folders)]
    for field in fields(Arguments):
        value = getattr(options, field.name)
        if field.name not in ("runs", "output", "sheet") and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)
