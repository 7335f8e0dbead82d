"""Measure training steps: `python experiments/benchmark.py [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import itertools
import json
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch
from tqdm import tqdm

from experiments import cli
from experiments.benchmarks.step_timing import NUM_IMAGES, Settings, measure
from experiments.config import Count, ImageSize, NumSlots, check_bounds
from experiments.systems import PRESETS, build, check, preset
from experiments.training.devices import check_batches, check_cuda_graph, with_global_batch_size
from pyro_lom.errors import UserError
from pyro_lom.files import read_own, replacing
from pyro_lom.workers import Workers

DESCRIPTION = """Measure training steps: benchmark.py [options]. Each row is measured on random images in its own
process after a warm-up: median, minimum and spread of the time of a step, the time of its parts, and its rate as a
share of the device's fastest matrix product."""

_DATA = "objects-room"
SYSTEMS = tuple(name.removesuffix(f"-{_DATA}") for name in PRESETS if name.endswith(f"-{_DATA}"))
Row = dict[str, Any]
_LARGEST = 1 << 24  # bytes of a file of rows


class Identity(TypedDict):
    """Keys by which `--compare` identifies a row."""

    system: str
    data: str
    pairs: str
    resolution: int
    slots: int | None
    batch: int
    precision: str
    device: str
    compiled: bool
    cuda_graph: bool
    accumulate: int


class Measured(Identity):
    """What `--compare` reads of a row."""

    median_s: Annotated[float, msgspec.Meta(gt=0)]
    peak_memory_mb: Annotated[float, msgspec.Meta(gt=0)]


IDENTITY = tuple(Identity.__annotations__)


@dataclass(frozen=True)
class Arguments:
    systems: tuple[Literal[*SYSTEMS], ...] = SYSTEMS
    """Systems to measure."""
    data: str = _DATA
    """Data set of the presets <system>-<data>. They define the sizes of networks and all other options."""
    resolutions: tuple[ImageSize, ...] = ()
    """Height and width of the images in pixels; by default the preset's."""
    slots: tuple[NumSlots, ...] = ()
    """K; by default the preset's. Systems without slots have one row for all of them."""
    batch_sizes: tuple[Count, ...] = (8,)
    """Scenes per step; the preset's if the list is empty."""
    precisions: tuple[Literal["32-true", "bf16-mixed"], ...] = ("32-true",)
    """Precisions, as in `fit.py --train.precision`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; auto selects a GPU if there is one."""
    modes: tuple[Literal["eager", "compiled", "cuda-graph", "compiled-cuda-graph"], ...] = ("eager",)
    """How steps run: without options, with compiled networks (`fit.py --compile`), as a CUDA graph (`--cuda-graph`)."""
    accumulate: Count = 1
    """Number of parts of a batch (`fit.py --accumulate`)."""
    steps: Count = 15
    """Timed steps per row (on a GPU, blocks of ten steps), after eight steps of warm-up."""
    limit: Count = 3600
    """Seconds after which a row is given up."""
    json: Path | None = None
    """JSON file for the rows. Each row is written as soon as it is measured."""
    compare: Path | None = None
    """File of an earlier --json; the ratios of time and memory, new over old, are printed."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="benchmark.py", description=DESCRIPTION)
    check_bounds(options)
    for name in ("systems", "precisions", "modes"):
        if not getattr(options, name):
            raise UserError(f"--{name} needs one or more")
    cli.check_output(options.json, "--json", suffix=".json", mark='"peak_memory_mb"')
    if options.json is not None and options.compare is not None and options.json.resolve() == options.compare.resolve():
        raise UserError(f"--json {options.json} is the file of --compare: name another, to keep the earlier rows")
    old = None if options.compare is None else read_rows(options.compare)
    rows: list[Row] = []
    failures: list[UserError] = []
    with tqdm(_settings(options), dynamic_ncols=True, unit="row") as bar:
        for settings in bar:
            bar.set_description(str(settings))
            try:
                rows.append(_in_a_process_of_its_own(settings, options.limit))
            except UserError as error:
                failures.append(error)
                bar.write(f"{settings}: {error}", file=sys.stderr)
            else:
                _write(rows, options.json)
    if not rows:
        raise failures[0]
    print(table(rows) if old is None else f"{table(rows)}\n\n{comparison(rows, old)}")
    if failures:
        raise UserError(f"{len(failures)} of {len(rows) + len(failures)} rows could not be measured, see above")


def _settings(options: Arguments) -> list[Settings]:
    """Return the settings of each row; raises UserError for options that cannot be measured."""
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
            options.slots if options.slots and hasattr(base.model, "num_slots") else (None,),
            options.batch_sizes or (None,),
            options.precisions,
            options.modes,
        )
        for image_size, num_slots, batch_size, precision, mode in itertools.product(*choices):
            model = base.model if num_slots is None else replace(base.model, num_slots=num_slots)
            config = replace(
                base,
                data=replace(base.data, image_size=image_size),
                model=model,
                train=replace(base.train, precision=precision),
            )
            config = with_global_batch_size(config, batch_size, world_size=1, accumulate=1)
            compiled, cuda_graph = "compiled" in mode, "cuda-graph" in mode
            check(config, accumulate=options.accumulate, cuda_graph=cuda_graph)
            if cuda_graph:
                check_cuda_graph(on_gpu=device == "cuda")
            phases = config.model.phases(build(config, (3, image_size, image_size)), config.train)
            check_batches(phases, NUM_IMAGES, world_size=1, accumulate=options.accumulate)
            of_device = (device, compiled, cuda_graph, options.accumulate)
            found += [
                Settings(config, system, options.data, *of_device, options.steps, phase) for phase in range(len(phases))
            ]
    return found


def _write(rows: list[Row], path: Path | None) -> None:
    if path is not None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")


def _in_a_process_of_its_own(settings: Settings, limit: float) -> Row:
    """Measure a row in a new process, so that earlier rows affect neither its peak memory nor its time."""
    try:
        with Workers(1) as workers:
            return workers.submit(measure, settings).result(timeout=limit)
    except TimeoutError:
        raise UserError(f"not measured within {limit} s (--limit)") from None
    except BrokenProcessPool:
        raise UserError(
            f"the process of {settings.config.preset} was killed, perhaps because memory ran out: take smaller "
            "--batch-sizes or --resolutions"
        ) from None
    except RuntimeError as error:  # CUDA's and the compiler's errors
        raise UserError(f"failed: {str(error).strip().splitlines()[0]}") from error


def read_rows(path: Path) -> list[Row]:
    """Read the rows that `--json` wrote; raises UserError if the file cannot be read or has other content."""
    try:
        rows = msgspec.json.decode(read_own(Path(os.path.realpath(path)), _LARGEST), type=list[dict[str, Any]])
        rows = [{"cuda_graph": False} | row for row in rows]  # older files do not have it
        msgspec.convert(rows, list[Measured])
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}; name a file of benchmark.py --json") from error
    return rows


def table(rows: list[Row]) -> str:
    """Format three tables for a terminal: steps, the parts of their time, and the rates of other work."""
    steps = {
        "median": ("median_s", ".4f"),
        "min": ("min_s", ".4f"),
        "spread": ("spread_s", ".4f"),
        "img/s": ("images_per_second", ".0f"),
        "MB": ("peak_memory_mb", ".0f"),
        "GFLOP/s": ("peak_gflops", ".0f"),
        "of peak": ("share_of_peak", ".1%"),
        "loss": ("loss", ".1f"),
    }
    parts = {part: (part, ".1f") for row in rows for part in row["parts"]}
    in_parts = [row | {part: 1e3 * row["parts"].get(part, 0) for part in parts} for row in rows if row["parts"]]
    rates = {name: (f"{name}_images_per_second", ".0f") for name in ("loading", "sampling", "evaluation")}
    if any(row["read_ahead_images_per_second"] is not None for row in rows):  # on a GPU
        rates["read ahead"] = ("read_ahead_images_per_second", ".0f")
    return "\n\n".join(
        (
            _titled(
                "A training step, seconds; spread: 10th to 90th percentile; loss: of the eighth step",
                rows,
                steps,
            ),
            _titled("Parts of a step, milliseconds, forward and backward", in_parts, parts),
            _titled("Images per second", rows, rates),
        )
    )


def comparison(rows: list[Row], old: list[Row]) -> str:
    """Format a table of the ratios of time and memory, new over old."""
    before = {tuple(row[key] for key in IDENTITY): row for row in old}
    keys, ratios = ("median_s", "peak_memory_mb"), []
    for row in rows:
        found = before.get(tuple(row[key] for key in IDENTITY))
        ratios.append(row | {key: f"{row[key] / found[key]:.2f}" if found else "not there" for key in keys})
    return _titled("New over old", ratios, {"time": ("median_s", ""), "memory": ("peak_memory_mb", "")})


def _titled(title: str, rows: list[Row], columns: dict[str, tuple[str, str]]) -> str:
    """Format a title and aligned columns; `columns` maps a heading to the key of a row and a format."""
    lines = [["system", "pixels", "K", "batch", "precision", "on", *columns]]
    for row in rows:
        values = ((row[key], spec) for key, spec in columns.values())
        shown = ("" if value is None else format(value, spec).replace("%", " %") for value, spec in values)
        lines.append([*_names(row), *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = (
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
    return "\n".join([title, *aligned])


def _names(row: Row) -> list[str]:
    alone = "" if row["pairs"] == "all" else f", {row['pairs']}"
    place = row["device"] + ", compiled" * row["compiled"] + ", graph" * row["cuda_graph"]
    place += f", in {row['accumulate']} parts" if row["accumulate"] > 1 else ""
    slots = "-" if row["slots"] is None else str(row["slots"])
    return [row["system"] + alone, str(row["resolution"]), slots, str(row["batch"]), row["precision"], place]


if __name__ == "__main__":
    cli.run(main, saves_memory="--batch-sizes, --resolutions or --slots")
