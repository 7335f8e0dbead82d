"""What `experiments/ablate.py` does: train models over seeds, and compare them as the paper's Figure 6 does."""

import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyro
import torch
import tyro
from tqdm import tqdm

from experiments import cli, fitting
from experiments.config import Config, Count, check, check_bounds, overrides
from experiments.evaluating import Arguments as Evaluation
from experiments.held_out import SEED, HeldOut, Values
from experiments.launching import Job, train
from experiments.loading import read_data
from experiments.measures import measure
from experiments.presets import preset
from experiments.reading import TEMPERATURE, sample_scenes
from experiments.systems import build_objective, build_phases, build_system
from experiments.tables import grid
from pyro_lom import figures
from pyro_lom.errors import UserError
from pyro_lom.runs import replacing

DESCRIPTION = """Repeat the ablation study of the paper's A.5: ablate.py [PRESET...] [options] [-- options of fit.py].
Trains every preset with every seed, some at a time, and draws Figure 6. Repeated, the command goes on where it was
stopped, skips what is done, and writes table and pictures anew."""

_MODELS = tuple(f"ablation-{number}" for number in range(9))
_NUM_SAMPLES = 12
_COLUMNS = {  # of values: title and digits
    "kl": ("Test KL, nats per scene ↓", 1),
    "fd_pca64": ("FD-PCA64 of samples ↓", 1),
    "fd_efficientnet": ("FD-EfficientNet of samples ↓", 1),
    "structure_samples": ("Structure of samples ↑", 3),
    "ari_fg_orderless": ("ARI-FG of the orderless decoder ↑", 3),
}
_DRAWN = ("kl", "fd_pca64", "fd_efficientnet")


@dataclass(frozen=True)
class Arguments:
    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = _MODELS
    """Models to compare: ablation-0 to ablation-8 unless named. In small they are ablation-{0..8}-towers."""
    seeds: Count = 5
    """Runs of each, with seeds 0, 1, ..."""
    processes: Count = 1
    """Runs at a time: with one thread each on a CPU, on the GPUs in turn where there are any."""
    distance: Literal["pca64", "efficientnet"] = "pca64"
    """Features of the Frechet distance."""
    study: Path = Path("runs/ablation")
    """Folder of the runs, of what they say, and of ablation.md, ablation.png and ablation-samples.png."""


def main(arguments: list[str]) -> None:
    own, fit_options = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        own, fit_options = arguments[:place], arguments[place + 1 :]
    options = cli.parse(Arguments, own, prog="ablate.py", description=DESCRIPTION)
    check_bounds(options)
    if len(set(options.presets)) < len(options.presets):
        raise UserError(f"a preset is named twice: {' '.join(options.presets)}")
    jobs = []
    for name in options.presets:
        config = _configuration(name, fit_options)
        jobs += [Job(replace(config, seed=seed), options.study) for seed in range(options.seeds)]
    try:
        failed = train(jobs, processes=options.processes)
    except (KeyboardInterrupt, SystemExit):
        print("runs saved themselves: repeat the command to go on", file=sys.stderr)
        raise
    pyro.enable_validation(False)
    _report(jobs, failed, options, fit_options)
    if failed:
        print(f"error: {len(failed)} of {len(jobs)} runs failed; the others are in the table", file=sys.stderr)
        sys.exit(1)


def _configuration(name: str, fit_options: list[str]) -> Config:
    """A preset with options of `fit.py`, refused here where `fit.py` would refuse them, before any run begins."""
    default = fitting.Arguments(preset(name))
    parsed = cli.parse(fitting.Arguments, fit_options, default=default, prog="fit.py", description=fitting.DESCRIPTION)
    config = parsed.config
    if parsed != replace(default, config=config) or config.seed != default.config.seed:
        raise UserError("of the options of fit.py, none but --model.*, --data.* and --train.* can follow the --")
    check(config)
    fitting.check_target(config, default.config)
    image_shape = read_data(config.data).image_shape
    system = build_system(config, image_shape)
    build_objective(config, system, image_shape)
    build_phases(config, system)
    return fitting.anchored(config)


def _report(jobs: list[Job], failed: dict[Job, str], options: Arguments, fit_options: list[str]) -> None:
    """Write the table and the pictures of all runs that came to their end, and print the table."""
    found: dict[Job, Values] = {}
    samples: dict[str, torch.Tensor] = {}  # of the first run of each model
    for job in tqdm([job for job in jobs if job not in failed], desc="measuring", unit="run", dynamic_ncols=True):
        held_out = HeldOut(job.finished().folder, num_images=Evaluation.num_images)
        found[job] = _values(held_out, options.distance)
        if job.config.preset not in samples:
            torch.manual_seed(SEED)
            samples[job.config.preset] = sample_scenes(held_out.system.final, _NUM_SAMPLES, TEMPERATURE).image

    columns: dict[str, dict[str, list[float | None]]] = {}  # by key and model, a value for each seed
    for key in _COLUMNS:
        if any(values.get(key) is not None for values in found.values()):
            columns[key] = {name: [] for name in options.presets}
            for job in jobs:
                columns[key][job.config.preset].append(found.get(job, {}).get(key))
    parts = [f"**{_COLUMNS[key][0]}**\n\n{_table(values, _COLUMNS[key][1])}" for key, values in columns.items()]
    parts += [f"{job.name} failed: {complaint}" for job, complaint in failed.items()]
    parts.append(f"`{_command(options, fit_options)}`")
    print("\n\n".join(parts))
    with replacing(options.study / "ablation.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if found:
        boxes = {_COLUMNS[key][0]: columns[key] for key in _DRAWN if key in columns}
        figures.save_box_plots(options.study / "ablation.png", boxes)
        title = f"Unconditional samples, tau = {TEMPERATURE:g}, of each model's first run"
        figures.save_grid(options.study / "ablation-samples.png", list(samples.items()), title)
    for path in sorted(options.study.glob("ablation*.*")):
        print(path, file=sys.stderr)


def _command(options: Arguments, fit_options: list[str]) -> str:
    """The line that makes the table."""
    words = [*options.presets, *overrides(replace(options, presets=_MODELS), Arguments())]
    return shlex.join(["python", "experiments/ablate.py", *words, *(["--", *fit_options] if fit_options else [])])


def _values(held_out: HeldOut, distance: str) -> Values:
    """A run's numbers. The test KL is of the last pair's ELBO, of scene and slots, as training ended."""
    summary = held_out.run.read_json("summary.json")
    kls = (summary["kl_scene"], summary["kl_slots"]) if held_out.system.ordered else (summary["kl_orderless"],)
    values = {"kl": None if None in kls else sum(kls)}
    values |= {key: summary.get(key) for key in ("structure_samples", "ari_fg_orderless")}
    try:
        values |= measure(f"fd-{distance}", held_out, asdict(Evaluation()))
    except UserError as reason:
        tqdm.write(f"{held_out.run.folder}: {reason}", file=sys.stderr)
    return values


def _table(by_model: dict[str, list[float | None]], digits: int) -> str:
    """Median and every seed; of a seed that failed a dash, and then the median says of how many it is."""
    seeds = range(max(map(len, by_model.values())))
    lines = [["model", "median", *(f"seed {seed}" for seed in seeds)]]
    for name, values in by_model.items():
        known = [value for value in values if value is not None]
        median = f"{np.median(known):.{digits}f}" if known else "-"
        if 0 < len(known) < len(values):
            median += f" (of {len(known)})"
        lines.append([name, median, *("-" if value is None else f"{value:.{digits}f}" for value in values)])
    return grid(lines)
