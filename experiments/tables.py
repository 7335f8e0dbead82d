"""Tables over runs in Markdown, where runs that differ in nothing but their seed share a row."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.config import Config, overrides, to_dict
from experiments.held_out import Values
from experiments.presets import PRESETS


class Row(NamedTuple):
    """One run's numbers."""

    folder: Path
    config: Config
    checkpoint: str
    num_images: int
    values: Values


class Column(NamedTuple):
    title: str
    key: str
    digits: int = 2
    factor: float = 1.0


_SOURCES = ("encoder", "orderless", "ordered")
_TABLES = {
    "Samples and segmentation, in the shape of the paper's Table 2": (
        Column("FID ↓", "fid", 1),
        Column("FD-EfficientNet ↓", "fd_efficientnet", 1),
        Column("FD-PCA64 ↓", "fd_pca64", 1),
        Column("ARI-FG of encoder ↑", "ari_fg_encoder"),
        Column("of orderless decoder ↑", "ari_fg_orderless"),
        Column("of ordered decoder ↑", "ari_fg_ordered"),
        Column("S-Acc (%) ↑", "structure", 1, 100),
    ),
    "Slots as a representation, in the shape of Table 3": (
        Column("Disentanglement ↑", "dci_disentanglement"),
        Column("Completeness ↑", "dci_completeness"),
        Column("Informativeness ↑", "dci_informativeness"),
        Column("Slot order ↑", "slot_order"),
        Column("by chance", "slot_order_chance"),
    ),
    "Structure accuracy, and how far to trust it: what the rule accepts (%)": (
        Column("samples", "structure", 1, 100),
        Column("by pixels", "structure_pixels", 1, 100),
        Column("labels intact", "structure_labels_intact", 1, 100),
        Column("broken", "structure_labels_broken", 1, 100),
        Column("reconstructions intact", "structure_masks_intact", 1, 100),
        Column("broken", "structure_masks_broken", 1, 100),
    ),
    "Likelihood, nats per scene": tuple(
        Column(f"{title}, {pair}", f"{key}_{pair}", 1)
        for pair in ("orderless", "ordered")
        for title, key in (
            ("log p(x) ↑", "log_likelihood"),
            ("ELBO ↑", "elbo"),
            ("KL of s", "kl_scene"),
            ("KL of slots", "kl_slots"),
        )
        if (key, pair) != ("kl_scene", "orderless")
    ),
} | {
    f"Segmentation by the masks of the {name}": (
        Column("ARI-FG ↑", f"ari_fg_{source}"),
        Column("ARI ↑", f"ari_all_{source}"),
        Column("mean IoU ↑", f"mean_iou_{source}"),
        Column("SC ↑", f"sc_{source}"),
        Column("mSC ↑", f"msc_{source}"),
    )
    for source, name in zip(_SOURCES, ("encoder", "orderless decoder", "ordered decoder"), strict=True)
}


def markdown(rows: list[Row], *, command: Callable[[list[Path]], str]) -> str:
    """All tables of which some number is known, and the commands that make each row, in Markdown.

    Standard deviations are those of a sample (divided by the number of runs less one); a run alone has none.
    """
    groups = by_configuration(rows)
    parts = []
    for title, columns in _TABLES.items():
        known = [column for column in columns if any(row.values.get(column.key) is not None for row in rows)]
        if known:
            head = ["model", "runs", "images", *(column.title for column in known)]
            lines = [
                [label, str(len(group)), _images(group), *(_cell(group, column) for column in known)]
                for label, group in groups.items()
            ]
            parts.append(f"**{title}**\n\n{grid([head, *lines])}")
    made_by = []
    for label, group in groups.items():
        made_by += [f"# {label}", *(_training(row.config) for row in group), command([row.folder for row in group])]
    return "\n\n".join([*parts, "**Made by**", "\n".join(["```", *made_by, "```"])])


def by_configuration(rows: list[Row]) -> dict[str, list[Row]]:
    """Rows under a label, those together that differ in nothing but their seed."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        alike.setdefault(f"{row.checkpoint} {to_dict(row.config) | {'seed': None}}", []).append(row)
    presets = [group[0].config.preset for group in alike.values()]
    groups = {}
    for group in alike.values():
        label = group[0].config.preset
        if presets.count(label) > 1:  # of other options: told apart by the numbers of the runs
            label += f" ({', '.join(row.folder.resolve().name.partition('-')[0] for row in group)})"
        groups[label] = group
    return groups


def spread(numbers: list[float], digits: int) -> str:
    """Mean and standard deviation of runs, of one run its number."""
    mean = f"{np.mean(numbers):.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {np.std(numbers, ddof=1):.{digits}f}"


def grid(lines: list[list[str]]) -> str:
    """Cells padded so that the table reads well as plain text, too."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([padded[0], rule, *padded[1:]])


def _training(config: Config) -> str:
    """The command that trains a run, by the presets of today."""
    if config.preset not in PRESETS:
        return f"# trained by a preset that is no more: {config.preset}, seed {config.seed}"
    options = overrides(config, replace(PRESETS[config.preset](), seed=config.seed))
    return shlex.join(["python", "experiments/fit.py", config.preset, "--seed", str(config.seed), *options])


def _images(group: list[Row]) -> str:
    return " to ".join(
        str(number) for number in sorted({min(r.num_images for r in group), max(r.num_images for r in group)})
    )


def _cell(group: list[Row], column: Column) -> str:
    numbers = [column.factor * row.values[column.key] for row in group if row.values.get(column.key) is not None]
    return spread(numbers, column.digits) if numbers else "-"
