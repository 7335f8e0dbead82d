"""PNG and GIF figures of scenes, masks and curves. Slot k has the same colour in all figures."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from PIL import Image
from torch import Tensor

from pyro_lom.files import replacing
from pyro_lom.types import Rendering

_SLOT_COLOURS = torch.tensor(matplotlib.colormaps["tab20"](np.r_[0:20:2, 1:20:2])[:, :3], dtype=torch.float32)
_CELL = 0.62  # width and height of a scene in inches
_NUMBER = dict(boxstyle="square,pad=0.15", facecolor="white", edgecolor="none", alpha=0.8)


def colour_labels(labels: Int[Tensor, "*batch H W"]) -> Float[Tensor, "*batch 3 H W"]:
    """Return images in which the pixels of label k have the k-th slot colour."""
    colours = _SLOT_COLOURS.to(labels.device)
    return colours[labels % len(colours)].movedim(-1, -3)


def colour_masks(log_masks: Float[Tensor, "*batch K 1 H W"]) -> Float[Tensor, "*batch 3 H W"]:
    """Return the slot colours averaged with the masks as weights, so that ambiguous pixels have mixed colours."""
    colours = _SLOT_COLOURS.to(log_masks)[torch.arange(log_masks.shape[-4]) % len(_SLOT_COLOURS)]
    return torch.einsum("...khw,kc->...chw", log_masks.exp().squeeze(-3), colours)


def single_slots(rendering: Rendering) -> Float[Tensor, "*batch K C H W"]:
    """Return one image per slot: the slot's component inside its mask, light grey outside."""
    masks = rendering.log_masks.exp()
    return masks * rendering.components + (1 - masks) * 0.94


def boxed(images: Float[Tensor, "B _ H W"], regions: Bool[Tensor, "B H W"]) -> Float[Tensor, "B 3 H W"]:
    """Return images with a black box around each region. An image with an empty region has no box."""
    images = images.expand(-1, 3, -1, -1).clone()
    *_, height, width = images.shape
    line = max(1, height // 32)
    for image, region in zip(images, regions, strict=True):
        rows, columns = region.any(1).nonzero().flatten(), region.any(0).nonzero().flatten()
        if len(rows):
            top, left = max(rows[0] - line, 0), max(columns[0] - line, 0)
            bottom, right = min(rows[-1] + 1 + line, height), min(columns[-1] + 1 + line, width)
            inside = image[:, top + line : bottom - line, left + line : right - line].clone()
            image[:, top:bottom, left:right] = 0
            image[:, top + line : bottom - line, left + line : right - line] = inside
    return images


def draw_grid(rows: Sequence[tuple[str, Float[Tensor, "_ _ H W"]]], title: str) -> Figure:
    """Draw labelled rows of images in [0, 1], one scene per column. Notebooks display it after `%matplotlib inline`."""
    columns = max(len(images) for _, images in rows)
    *_, height, width = rows[0][1].shape
    gap = max(1, height // 24)
    # All images are drawn on one axis, since hundreds of axes take matplotlib seconds.
    cells = torch.ones(len(rows), columns, 3, height + gap, width + gap)
    for row, (_, images) in zip(cells, rows, strict=True):
        row[: len(images), :, :height, :width] = images.clamp(0, 1)
    canvas = cells.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (H, W, 3)
    longest = max(len(line) for label, _ in rows for line in label.splitlines())
    figure = Figure(figsize=(_CELL * columns + max(1.7, 0.06 * longest + 0.15), _CELL * len(rows) + 0.4), dpi=150)
    figure.suptitle(_literal(title), x=0.01, ha="left", fontsize=9)
    share_x, share_y = _CELL * columns / figure.get_figwidth(), _CELL * len(rows) / figure.get_figheight()
    axis = figure.add_axes((1 - share_x, 0, share_x, share_y))
    axis.imshow(canvas.numpy(), interpolation="nearest", aspect="auto")
    axis.set_frame_on(False)
    axis.set_xticks([])
    centres = [(row + 0.5) * (height + gap) - gap / 2 for row in range(len(rows))]
    axis.set_yticks(centres, [_literal(label) for label, _ in rows], fontsize=7)
    axis.tick_params(length=0)
    return figure


def save_grid(path: Path, rows: Sequence[tuple[str, Float[Tensor, "_ _ H W"]]], title: str) -> None:
    """Write the figure of `draw_grid` as a PNG file."""
    _save(draw_grid(rows, title), path, title)


def save_curves(path: Path, metrics: list[dict]) -> None:
    """Plot the logged metrics of a run: errors with their targets, KLs and multipliers; one colour per pair."""
    series = list(dict.fromkeys(key for row in metrics for key in row if "/" in key))
    colours = {pair: f"C{n}" for n, pair in enumerate(dict.fromkeys(key.split("/")[0] for key in series))}
    reports = ("rmse", "rmse_target", "multiplier")
    errors = [key for key in series if key.endswith("/x") and f"{key[:-2]}/rmse" not in series]
    panels = {
        "RMSE (dashed: target)": [key for key in series if key.endswith(("/rmse", "/rmse_target"))],
        "negative log-likelihood, nats per scene": errors,
        "KL, nats per scene": sorted(key for key in series if key.split("/")[1] not in ("x", *reports)),
        "multiplier": [key for key in series if key.endswith("/multiplier")],
    }
    panels = {title: keys for title, keys in panels.items() if keys or not series}
    figure = Figure(figsize=(3.7 * len(panels), 3.2), dpi=120, layout="constrained")
    for number, (title, keys) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(1, len(panels), number)
        for key in keys:
            points = [(row["step"], row[key]) for row in metrics if key in row]
            dashed = key.endswith("target")
            axis.plot(
                *zip(*points, strict=True),
                label=None if dashed else _literal(key),
                linestyle="--" if dashed else "-",
                linewidth=1,
                marker=None if len(points) >= 5 else "_" if dashed else ".",  # short lines may be a single point
                color=None if "KL" in title else colours[key.split("/")[0]],
            )
        axis.set(title=title, xlabel="step", yscale="symlog" if "log-likelihood" in title else "log")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
        if keys:
            axis.legend(fontsize=7)
    _save(figure, path, "Curves of training")


def save_error_bars(
    path: Path, lines: dict[str, tuple[Sequence[float], Sequence[float], Sequence[float]]], *, x: str, y: str
) -> None:
    """Plot means with error bars; `lines` maps a label to x values, means and standard deviations. No bars if all 0."""
    figure = Figure(figsize=(5, 3.4), dpi=150, layout="constrained")
    axis = figure.subplots()
    for style, (label, (places, means, deviations)) in zip(cycle(("-", "--", ":", "-.")), lines.items()):
        bars = deviations if any(deviations) else None
        axis.errorbar(
            places, means, yerr=bars, label=_literal(label), linestyle=style, marker="o", markersize=3, capsize=3
        )
    axis.set(xlabel=x, ylabel=y, xticks=sorted({place for places, _, _ in lines.values() for place in places}))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    _save(figure, path, f"{y} by {x}")


def save_box_plots(path: Path, panels: dict[str, dict[str, Sequence[float | None]]]) -> None:
    """Plot quartiles, median and single values; `panels` maps a title to boxes, a dict from label to values.

    Values of None are skipped. An axis is logarithmic if its values are positive and differ by more than factor 5.
    """
    num_boxes = max(map(len, panels.values()))
    figure = Figure(figsize=(len(panels) * (0.45 * num_boxes + 1.2), 3.6), dpi=150, layout="constrained")
    for axis, (title, boxes) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        known = [[value for value in values if value is not None] for values in boxes.values()]
        axis.boxplot(known, widths=0.6, whis=(0, 100), medianprops={"color": "C1"})
        for place, values in enumerate(known, start=1):
            axis.plot([place] * len(values), values, "o", color="C0", markersize=3, alpha=0.7)
        axis.set_xticks(range(1, len(boxes) + 1), map(_literal, boxes), rotation=45, ha="right", fontsize=7)
        axis.set_title(_literal(title), fontsize=9)
        every = [value for values in known for value in values] or [1.0]
        if max(every) > 5 * min(every) > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ScalarFormatter())
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="y", labelsize=7)
        axis.grid(axis="y", alpha=0.3)
    _save(figure, path, f"Box plots of {'; '.join(panels)}")


def save_sheet(path: Path, images: Float[Tensor, "N _ H W"], title: str, columns: int = 10) -> None:
    """Plot images in [0, 1] row by row and print each image's number, from 0, on the image."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(columns * _CELL * 1.4, rows * _CELL * 1.4 + 0.4), dpi=150)
    figure.suptitle(_literal(title), x=0.01, ha="left", fontsize=9)
    top = 1 - 0.4 / figure.get_figheight()
    for number, image in enumerate(images.cpu()):
        row, column = divmod(number, columns)
        axis = figure.add_axes((column / columns, top * (1 - (row + 1) / rows), 0.96 / columns, 0.96 * top / rows))
        axis.imshow(image.expand(3, -1, -1).movedim(0, -1).clamp(0, 1).numpy(), interpolation="nearest")
        axis.text(0, 0, str(number), fontsize=6, va="top", transform=axis.transData, bbox=_NUMBER)
        axis.set_axis_off()
    _save(figure, path, title)


def save_gif(path: Path, frames: Float[Tensor, "T _ H W"], *, side: int = 256, milliseconds: int = 80) -> None:
    """Write images in [0, 1] as a looping GIF, enlarged without smoothing to a height of about `side` pixels."""
    factor = max(1, round(side / frames.shape[-2]))
    pixels = (255 * frames.cpu().clamp(0, 1).expand(-1, 3, -1, -1)).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(factor, -1).repeat_interleave(factor, -2).movedim(1, -1).numpy()
    first, *rest = [Image.fromarray(frame) for frame in pixels]
    with replacing(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)


def _literal(text: str) -> str:
    """Return text that matplotlib draws as it is: $ begins a formula, and legends omit labels that begin with _."""
    return (" " + text if text.startswith("_") else text).replace("$", r"\$")


def _save(figure: Figure, path: Path, title: str) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Title": title})
