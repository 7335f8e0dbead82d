"""Markdown tables over runs. Runs that differ only in their seed share a row."""

import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config import Config, overrides, to_dict
from experiments.evaluation.held_out import Values
from experiments.evaluation.words import OF_MASKS, QUANTITIES, split, title
from experiments.systems import PRESETS
from pyro_lom.errors import printable


class Row(NamedTuple):
    """One run's values."""

    folder: Path
    config: Config
    checkpoint: str
    num_images: int
    values: Values
    data: str = "?"
    """Name and version of the data set."""
    num_slots: int | None = None
    """K; None if the system has no slots."""
    orderless: str | None = None  # the run from which it took its orderless pair


TABLES = {
    "Samples and segmentation, in the shape of the paper's Table 2": r"(fid|fd_.*|stacks)_samples|ari_fg_.*",
    "Reconstruction": r"(rmse|explained_variance)_.*",
    "Slots as a representation, in the shape of Table 3": r"dci_.*|slot_order.*",
    "Structure: towers that stand, by a rule on pixels": r"structure_.*",
    "Stacks: scenes of one stack, by a rule on masks, and the errors of the rule": r"stacks_.*",
    "Frechet distances of generated scenes": r"fd_pca64_.*",
    "Likelihood": r"(log_likelihood|elbo)_.*",
    "KL": r"kl_.*",
    "Binding of slots, without labels": r"binding_.*",
    "Segmentation": r"(ari_all|mean_iou|sc|msc)_.*",
}
"""Titles, and patterns of the keys that are columns."""
_SETTING = ("runs", "data", "size", "K", "images (N)")
_SOURCES = (
    "True masks are the labels of the data set. The masks of a column are those that the guide "
    "infers (encoder) or those that the decoder of the named pair renders; each pixel counts for its largest mask."
)


def markdown(rows: list[Row], *, command: Callable[[list[Path]], str]) -> str:
    """Return, in Markdown, all tables with at least one value, and the commands that compute each row.

    Standard deviations have the divisor n - 1 for n runs; a single run has none.
    """
    groups = by_configuration(rows)
    keys = list(dict.fromkeys(key for row in rows for key, value in row.values.items() if value is not None))
    parts = []
    for head, pattern in TABLES.items():
        columns = [key for key in keys if re.fullmatch(pattern, key) and split(key)[0] in QUANTITIES]
        if columns:
            units = {QUANTITIES[split(key)[0]].unit for key in columns}
            head += f", {units.pop()}" if len(units) == 1 and units != {""} else ""
            names = ["model", *_SETTING, *(title(key, unit=len(units) > 1) for key in columns)]
            lines = [
                [label, *_setting(group), *(_cell(group, key) for key in columns)] for label, group in groups.items()
            ]
            parts.append(f"**{head}**\n\n{grid([names, *lines])}")
            parts += _notes(columns)
    made_by = []
    for label, group in groups.items():
        made_by += [f"# {label}", *(_training(row) for row in group), command([row.folder for row in group])]
    return "\n\n".join([*parts, "**Made by**", "\n".join(["```", *map(printable, made_by), "```"])])


def by_configuration(rows: list[Row]) -> dict[str, list[Row]]:
    """Group rows that differ only in their seed; return the groups by label."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(
            f"{row.checkpoint} {to_dict(row.config) | {'seed': None}} {row.orderless} {row.data}", []
        ).append(row)
    presets = [group[0].config.preset for group in alike.values()]
    groups = {}
    for group in alike.values():
        label = group[0].config.preset
        if presets.count(label) > 1:  # groups of one preset are distinguished by the numbers or names of their runs
            label += f" ({', '.join(_number(row.folder.resolve().name) for row in group)})"
        groups[label] = group
    return groups


def _number(name: str) -> str:
    """Return the number of a run, or its name if it has none, as a packed run."""
    number, _, _ = name.partition("-")
    return number if number.isdecimal() else name


def spread(numbers: list[float], digits: int) -> str:
    """Format the mean and standard deviation over runs, or the number of a single run."""
    mean = f"{np.mean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {np.std(numbers, ddof=1):.{digits}f}"


def grid(lines: list[list[str]]) -> str:
    """Format a Markdown table with padded and escaped cells, which is also readable as plain text."""
    lines = [[re.sub(r"[\\`*\[\]<>|&$]", r"\\\g<0>", printable(cell)) for cell in line] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def _setting(group: list[Row]) -> list[str]:
    """Return the cells of `_SETTING`; N is the number of held-out images."""
    row = group[0]
    size = row.config.data.image_size
    num_slots = "-" if row.num_slots is None else str(row.num_slots)
    return [str(len(group)), row.data, f"{size}x{size}", num_slots, _range(one.num_images for one in group)]


def _notes(columns: list[str]) -> list[str]:
    """Return remarks about columns as one paragraph, or nothing."""
    quantities = dict.fromkeys(split(key)[0] for key in columns)
    notes = [QUANTITIES[name].note for name in quantities if QUANTITIES[name].note]
    if OF_MASKS.intersection(quantities):
        notes.insert(0, _SOURCES)
    return [" ".join(notes)] if notes else []


def _training(row: Row) -> str:
    """Return the command that trains a run with the current presets."""
    config = row.config
    if config.preset not in PRESETS:
        return f"# trained by a preset that does not exist here: {config.preset}, seed {config.seed}"
    options = overrides(config, replace(PRESETS[config.preset], seed=config.seed))
    options += ["--orderless", row.orderless] if row.orderless else []
    return shlex.join(["python", "experiments/fit.py", config.preset, "--seed", str(config.seed), *options])


def _range(numbers: Iterable[int]) -> str:
    low, *_, high = sorted([*numbers] * 2)
    return str(low) if low == high else f"{low} to {high}"


def _cell(group: list[Row], key: str) -> str:
    """Format the spread of a value over runs, or the reason why there is no number."""
    quantity = QUANTITIES[split(key)[0]]
    values = [row.values.get(key) for row in group]
    numbers = [quantity.factor * value for value in values if isinstance(value, float | int)]
    if numbers:
        return spread(numbers, quantity.digits)
    return next((value for value in values if isinstance(value, str)), "-")
