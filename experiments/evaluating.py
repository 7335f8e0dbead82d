"""What `experiments/evaluate.py` does: measure runs, remember what was measured, and print tables over seeds."""

import shlex
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pyro
import tyro

from experiments import cli
from experiments.config import Count, Natural, Positive, check_bounds, from_dict
from experiments.held_out import HeldOut
from experiments.measures import MEASURES, Settings, Values, measure
from experiments.sheet import write_sheet
from experiments.tables import Row, markdown
from pyro_lom.errors import UserError
from pyro_lom.runs import Run

DESCRIPTION = """Evaluate runs on their held-out scenes, as the paper does: evaluate.py RUN... [options]. Numbers go to
RUN/evaluation.json and are not computed twice; tables over all runs, in Markdown, go to the terminal."""

Metric = Literal[
    "ari", "covering", "fd-pca64", "fd-efficientnet", "fid", "structure", "dci", "likelihood", "slot-order"
]
_FILE = "evaluation.json"


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
    sheet: Natural = 0
    """Write this many samples as a numbered contact sheet and a CSV, to count structure by hand."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="evaluate.py", description=DESCRIPTION)
    check_bounds(options)
    if not options.runs:
        raise UserError("name one or more run folders: evaluate.py runs/00000-...")
    for folder in options.runs:  # before hours are spent on the first
        from_dict(Run.open(folder).read_json("config.json"), place=f"{folder}/config.json")
    pyro.enable_validation(False)
    rows = [_evaluate(folder, options) for folder in options.runs]
    print(markdown(rows, command=lambda folders: _command(folders, options)))


def _evaluate(folder: Path, options: Arguments) -> Row:
    started = time.monotonic()
    print(f"{folder}: loading ...", file=sys.stderr)
    held_out = HeldOut(folder, num_images=options.num_images)
    settings = Settings(
        len(held_out),
        options.temperature,
        min(options.likelihood_images, len(held_out)),
        options.likelihood_samples,
        options.inception_weights,
    )
    protocol = _protocol(held_out, settings)
    remembered = _remembered(held_out.run)
    values: Values = {}
    for name in options.metrics:
        known = remembered.get(name, {})
        if known.get("protocol") != protocol:
            try:
                known = {"protocol": protocol, "values": measure(name, held_out, settings)}
            except UserError as reason:
                if name == "fid" or len(options.metrics) == 1:  # asked for by name
                    raise
                print(f"  {name}: not computed: {reason}", file=sys.stderr)
                continue
            remembered[name] = known
            held_out.run.write_json(_FILE, remembered)
        values |= known["values"]
    if options.sheet:
        for path in write_sheet(held_out, options.sheet, options.temperature):
            print(f"  {path}", file=sys.stderr)
    print(f"{folder}: {len(held_out)} images, {time.monotonic() - started:.0f} s", file=sys.stderr)
    return Row(folder, held_out.config, len(held_out), values)


def _protocol(held_out: HeldOut, settings: Settings) -> dict:
    """What a remembered number was computed with."""
    weights = settings.inception_weights
    return {
        **settings._asdict(),
        "inception_weights": weights and str(weights),
        "seed": held_out.seed,
        "checkpoint": held_out.run.checkpoints()[-1].name,
        "data": f"{held_out.scenes.name}, version {held_out.scenes.version}",
    }


def _remembered(run: Run) -> dict:
    return run.read_json(_FILE) if (run.folder / _FILE).exists() else {}


def _command(folders: list[Path], options: Arguments) -> str:
    """The line that makes a row."""
    words = ["python", "experiments/evaluate.py", *map(str, folders)]
    for field in fields(Arguments):
        value = getattr(options, field.name)
        if field.name not in ("runs", "sheet") and value != field.default:
            words += [f"--{field.name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)
