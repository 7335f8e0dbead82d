"""What `experiments/benchmark.py` does: time training steps of named systems, tell where the time goes, and compare."""

import itertools
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import torch
from tqdm import tqdm

from experiments import cli
from experiments.config import Config, Count, Model, Slots, check_bounds
from experiments.devices import check_cuda_graph, shared_out
from experiments.presets import PRESETS, preset
from experiments.step_timing import Settings, measure
from experiments.systems import build_phases, build_system
from pyro_lom.errors import UserError
from pyro_lom.runs import replacing

DESCRIPTION = """Time training steps: benchmark.py [options]. Each row is measured in a process of its own, after a
warm-up, on random images: median, minimum and spread of a step, where its time goes, and how close it comes to the
device's fastest matrix product in the same process."""

SYSTEMS = tuple(name for name in get_args(get_type_hints(Model)["system"]) if f"{name}-objects-room" in PRESETS)
Precision = Literal["32-true", "bf16-mixed"]
Mode = Literal["eager", "compiled", "cuda-graph", "compiled-cuda-graph"]
Row = dict[str, Any]
IDENTITY = (
    "system",
    "data",
    "pairs",
    "resolution",
    "slots",
    "batch",
    "precision",
    "device",
    "compiled",
    "cuda_graph",
    "accumulate",
)


@dataclass(frozen=True)
class Arguments:
    systems: tuple[Literal[*SYSTEMS], ...] = SYSTEMS
    """Which to measure."""
    data: str = "objects-room"
    """The data set whose presets, <system>-<data>, give the sizes of networks, and what the options below leave out."""
    resolutions: tuple[Count, ...] = ()
    """Sides of the images, in pixels; the preset's when none is given."""
    slots: tuple[Slots, ...] = ()
    """K; the preset's when none is given."""
    batch_sizes: tuple[Count, ...] = (8,)
    """Scenes a step; the preset's when none is given."""
    precisions: tuple[Precision, ...] = ("32-true",)
    """Of arithmetic."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is a GPU where there is one."""
    modes: tuple[Mode, ...] = ("eager",)
    """How steps run: as they are, with compiled networks (`fit.py --compile`), as a CUDA graph (`--cuda-graph`)."""
    accumulate: Count = 1
    """Parts that a batch is taken in, as `fit.py --accumulate` does."""
    steps: Count = 15
    """Timed steps of each row, after three to warm up."""
    json: Path | None = None
    """A file that the rows are also written to."""
    compare: Path | None = None
    """A file that --json wrote before: prints how many times as long, and as much memory, its rows take now."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="benchmark.py", description=DESCRIPTION)
    check_bounds(options)
    for name in ("systems", "precisions", "modes"):
        if not getattr(options, name):
            raise UserError(f"--{name} needs one or more")
    cli.check_output(options.json, "--json")
    old = None if options.compare is None else read_rows(options.compare)
    rows: list[Row] = []
    failures: list[UserError] = []
    with tqdm(_settings(options), dynamic_ncols=True, unit="row") as bar:
        for settings in bar:
            bar.set_description(f"{settings.config.preset} at {settings.resolution}")
            try:
                rows.append(_in_a_process_of_its_own(settings))
            except UserError as error:
                failures.append(error)
                bar.write(f"{bar.desc.rstrip(': ')}: {error}", file=sys.stderr)
    if not rows:
        raise failures[0]
    print(table(rows))
    if old is not None:
        print()
        print(comparison(rows, old))
    if options.json is not None:
        with replacing(options.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")
    if failures:
        raise UserError(f"{len(failures)} of {len(rows) + len(failures)} rows could not be measured, see above")


def _settings(options: Arguments) -> list[Settings]:
    """One for each row; whatever can be refused is refused here, before anything is measured."""
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here; choose cpu")
    found = []
    for system in options.systems:
        base = preset(f"{system}-{options.data}")
        choices = (
            options.resolutions or (base.data.image_size,),
            options.slots or (base.model.num_slots,),
            options.batch_sizes or (None,),
            options.precisions,
            options.modes,
        )
        for resolution, num_slots, batch_size, precision, mode in itertools.product(*choices):
            config = _changed(base, num_slots, batch_size, precision)
            phases = build_phases(config, build_system(config, (3, resolution, resolution)))
            config = shared_out(config, None, 1, options.accumulate)
            compiled, cuda_graph = "compiled" in mode, "cuda-graph" in mode
            if cuda_graph:
                check_cuda_graph(config, on_gpu=device == "cuda")
            of_device = (device, compiled, cuda_graph, options.accumulate)
            settings = Settings(config, options.data, resolution, *of_device, options.steps)
            found += [replace(settings, phase=number) for number in range(len(phases))]
    return found


def _changed(config: Config, num_slots: int, batch_size: int | None, precision: str) -> Config:
    train = replace(config.train, precision=precision)
    if batch_size is not None:
        train = replace(train, batch_size=batch_size, ordered_batch_size=None, ordered_rendered=None)
    return replace(config, model=replace(config.model, num_slots=num_slots), train=train)


def _in_a_process_of_its_own(settings: Settings) -> Row:
    """So that its peak memory is its own, and nothing that was compiled or allocated before helps it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        try:
            return executor.submit(measure, settings).result()
        except BrokenProcessPool:
            raise UserError(
                f"the process of {settings.config.preset} was killed, for want of memory perhaps: take smaller "
                "--batch-sizes or --resolutions"
            ) from None


def read_rows(path: Path) -> list[Row]:
    """Rows that `--json` wrote.

    Raises:
        UserError: they cannot be read, or are something else.
    """
    try:
        rows = [{"cuda_graph": False} | row for row in json.loads(path.read_text())]  # older files do not say
        missing = {key for row in rows for key in (*IDENTITY, "median_s", "peak_memory_mb") if key not in row}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"--compare {path} cannot be read: {error}") from error
    if missing:
        raise UserError(f"--compare {path} was not written by this benchmark: it has no {', '.join(sorted(missing))}")
    return rows


def table(rows: list[Row]) -> str:
    """For a terminal: the steps, then where their time goes, then what surrounds training."""
    parts = list(dict.fromkeys(part for row in rows for part in row["parts"]))
    steps = [
        [
            *_names(row),
            f"{row['median_s']:.4f}",
            f"{row['min_s']:.4f}",
            f"{row['spread_s']:.4f}",
            f"{row['images_per_second']:.0f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['peak_gflops']:.0f}",
            _percent(row["share_of_peak"]),
            _percent(row["pyro_share"]),
        ]
        for row in rows
    ]
    times = [
        [*_names(row), *(f"{1e3 * row['parts'].get(part, 0):.1f}" for part in parts)] for row in rows if row["parts"]
    ]
    others = {name: f"{name}_images_per_second" for name in ("loading", "sampling", "evaluation")}
    if any(row["read_ahead_images_per_second"] is not None for row in rows):  # steps, of data not kept on a GPU
        others["read ahead"] = "read_ahead_images_per_second"
    rates = [
        [*_names(row), *("" if row[key] is None else f"{row[key]:.0f}" for key in others.values())] for row in rows
    ]
    heads = ["system", "pixels", "K", "batch", "precision", "on"]
    return "\n\n".join(
        (
            "A training step, seconds; spread is between its 10th and 90th percentile\n"
            + _aligned([[*heads, "median", "min", "spread", "img/s", "MB", "GFLOP/s", "of peak", "Pyro"], *steps]),
            "Where the time goes, milliseconds of one step, forward and backward\n"
            + _aligned([[*heads, *parts], *times]),
            "Images a second\n" + _aligned([[*heads, *others], *rates]),
        )
    )


def comparison(rows: list[Row], old: list[Row]) -> str:
    """New over old, of those rows that are in both."""
    before = {tuple(row[key] for key in IDENTITY): row for row in old}
    lines = [["system", "pixels", "K", "batch", "precision", "on", "time", "memory"]]
    for row in rows:
        found = before.get(tuple(row[key] for key in IDENTITY))
        ratios = [f"{row[key] / found[key]:.2f}" if found else "not there" for key in ("median_s", "peak_memory_mb")]
        lines.append([*_names(row), *ratios])
    return "New over old\n" + _aligned(lines)


def _names(row: Row) -> list[str]:
    alone = "" if row["pairs"] == "all" else f", {row['pairs']}"
    place = row["device"] + ", compiled" * row["compiled"] + ", graph" * row["cuda_graph"]
    place += f", in {row['accumulate']} parts" if row["accumulate"] > 1 else ""
    return [row["system"] + alone, *(str(row[key]) for key in ("resolution", "slots", "batch", "precision")), place]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
