"""Compare presets, by default those of A.5 (Fig. 6): `python experiments/ablate.py [PRESET...] [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

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

from experiments import cli
from experiments.config import Config, Processes, check_bounds, overrides, within
from experiments.evaluate import Arguments as Evaluation
from experiments.evaluation.held_out import SEED, HeldOut, Values
from experiments.evaluation.metrics import measure
from experiments.evaluation.reading import TEMPERATURE, sample_scenes
from experiments.evaluation.tables import grid
from experiments.evaluation.words import number, title
from experiments.fit import Arguments as Fit
from experiments.fit import parse as parse_fit
from experiments.loading import read_data
from experiments.systems import build, check, preset
from experiments.training.devices import check_number
from experiments.training.launching import Job, train
from experiments.training.opening import anchored
from pyro_lom import figures
from pyro_lom.errors import UserError, printable

DESCRIPTION = """Compare presets, by default the models of the paper's ablation study (A.5): ablate.py [PRESET...]
[options] [-- options of fit.py]. Trains every preset with every seed, several runs at a time, and draws Figure 6. If
the command is repeated, it resumes unfinished runs, skips finished runs, and writes table and pictures again."""

_MODELS = tuple(f"ablation-{number}" for number in range(9))
_NUM_SAMPLES = 12
_COLUMNS = ("kl", "fd_pca64_samples", "fd_efficientnet_samples", "structure_samples", "ari_fg")
"""Keys of the table. `kl` belongs to the result, `ari_fg` to `HeldOut.source`."""
_OUTPUTS = ("ablation.md", "ablation.png", "ablation-samples.png")
"""Files in the folder of the study."""
_DRAWN = ("kl", "fd_pca64_samples", "fd_efficientnet_samples")


@dataclass(frozen=True)
class Arguments:
    presets: Annotated[tuple[str, ...], tyro.conf.Positional] = _MODELS
    """Presets to compare. Small variants are ablation-0-towers to ablation-8-towers."""
    seeds: Annotated[int, within(1, 1000)] = 5
    """Number of runs of each preset, with seeds 0, 1, ..."""
    processes: Processes = 1
    """Number of runs at a time. Each has one CPU thread, or one GPU if there are GPUs."""
    distance: Literal["pca64", "efficientnet"] = "pca64"
    """Features of the Frechet distance."""
    study: Path = Path("runs/ablation")
    """Folder of the runs, their output, ablation.md, ablation.png and ablation-samples.png."""


def main(arguments: list[str]) -> None:
    own, fit_options = arguments, []
    if "--" in arguments:
        place = arguments.index("--")
        own, fit_options = arguments[:place], arguments[place + 1 :]
    options = cli.parse(Arguments, own, prog="ablate.py", description=DESCRIPTION)
    check_bounds(options)
    check_number("--processes", options.processes)
    options = replace(options, presets=tuple(preset(name).preset for name in options.presets))  # "demo" is a short name
    if len(set(options.presets)) < len(options.presets):
        raise UserError(f"a preset is named twice: {' '.join(options.presets)}")
    for name in _OUTPUTS:
        if options.study.is_dir():
            cli.check_output(options.study / name, "--study")
    jobs = []
    for name in options.presets:
        config = _configuration(name, fit_options)
        jobs += [Job(replace(config, seed=seed), options.study) for seed in range(options.seeds)]
    try:
        failed = train(jobs, processes=options.processes)
    except (KeyboardInterrupt, SystemExit):
        print("all runs are saved: repeat the command to resume them", file=sys.stderr)
        raise
    pyro.enable_validation(False)
    _report(jobs, failed, options, fit_options)
    if failed:
        print(f"error: {len(failed)} of {len(jobs)} runs failed; the others are in the table", file=sys.stderr)
        sys.exit(1)


def _configuration(name: str, fit_options: list[str]) -> Config:
    """Return the configuration of a preset with options of `fit.py`; raises UserError if `fit.py` would."""
    default = Fit(preset(name))
    parsed = parse_fit([name, *fit_options])
    config = parsed.config
    if parsed != replace(default, config=config) or config.seed != default.config.seed:
        raise UserError("only the options --model.*, --data.* and --train.* of fit.py can follow the --")
    check(config)  # before data are made
    config.model.phases(build(config, read_data(config.data).image_shape), config.train)
    return anchored(config)


def _report(jobs: list[Job], failed: dict[Job, str], options: Arguments, fit_options: list[str]) -> None:
    """Write the table and the pictures of all finished runs, and print the table."""
    found: dict[Job, Values] = {}
    samples: dict[str, torch.Tensor] = {}  # of the first run of each model
    for job in tqdm([job for job in jobs if job not in failed], desc="measuring", unit="run", dynamic_ncols=True):
        held_out = HeldOut.open(job.finished().folder, num_images=Evaluation.num_images)
        found[job] = _values(held_out, options.distance)
        if job.config.preset not in samples:
            torch.manual_seed(SEED)
            samples[job.config.preset] = sample_scenes(held_out.final, _NUM_SAMPLES, TEMPERATURE).image

    columns: dict[str, dict[str, list[float | None]]] = {}  # by key and model, a value for each seed
    for key in _COLUMNS:
        if any(values.get(key) is not None for values in found.values()):
            columns[key] = {name: [] for name in options.presets}
            for job in jobs:
                columns[key][job.config.preset].append(found.get(job, {}).get(key))
    parts = [f"**{title(key)}**\n\n{_table(key, values)}" for key, values in columns.items()]
    parts += [f"{job.name} failed: {complaint}" for job, complaint in failed.items()]
    parts.append(f"`{_command(options, fit_options)}`")
    print("\n\n".join(parts))
    cli.write_signed(options.study / "ablation.md", "\n\n".join(parts) + "\n")
    if found:
        boxes = {title(key): columns[key] for key in _DRAWN if key in columns}
        figures.save_box_plots(options.study / "ablation.png", boxes)
        head = f"Unconditional samples, tau = {TEMPERATURE:g}, of each model's first run"
        figures.save_grid(options.study / "ablation-samples.png", list(samples.items()), head)
        for name in _OUTPUTS[1:]:
            cli.sign(options.study / name)
    for path in sorted(options.study.glob("ablation*.*")):
        print(printable(str(path)), file=sys.stderr)


def _command(options: Arguments, fit_options: list[str]) -> str:
    words = [*options.presets, *overrides(replace(options, presets=_MODELS), Arguments())]
    return shlex.join(["python", "experiments/ablate.py", *words, *(["--", *fit_options] if fit_options else [])])


def _values(held_out: HeldOut, distance: str) -> Values:
    """Return a run's values. The test KL is the KL in the result's ELBO at the end of training."""
    run, (source, _), last = held_out.run, held_out.source, list(held_out.system)[-1]
    summary = run.read_json("summary.json", dict[str, float | None])
    values = {"kl": summary.get(f"kl_{last}"), "ari_fg": summary.get(f"ari_fg_{source}")}
    values["structure_samples"] = summary.get("structure_samples")
    try:
        values |= measure(f"fd-{distance}", held_out, asdict(Evaluation()), remember=True)
    except UserError as reason:
        tqdm.write(printable(f"{held_out.run.folder}: {reason}"), file=sys.stderr)
    return values


def _table(key: str, by_model: dict[str, list[float | None]]) -> str:
    """Format the median and each seed's value. A failed seed is a dash; the median then contains its number of runs."""
    seeds = range(max(map(len, by_model.values())))
    lines = [["model", "median", *(f"seed {seed}" for seed in seeds)]]
    for name, values in by_model.items():
        known = [value for value in values if value is not None]
        median = number(key, np.median(known)) if known else "-"
        if 0 < len(known) < len(values):
            median += f" (of {len(known)})"
        lines.append([name, median, *("-" if value is None else number(key, value) for value in values)])
    return grid(lines)


if __name__ == "__main__":
    cli.run(main, saves_memory="--processes, or after -- the --train.batch-size or --data.image-size")
