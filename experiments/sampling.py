"""What `experiments/sample.py` does: scenes slot by slot, sampled and reconstructed, and sweeps of temperature."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyro
import torch
import tyro
from torch import Tensor

from experiments import cli
from experiments.config import Bound, Count, Positive, check_bounds
from experiments.held_out import SEED, HeldOut, Values
from experiments.loading import check_runs
from experiments.measures import frechet_distances, pixel_pca
from experiments.reading import sample_scenes
from experiments.tables import Row, by_configuration, grid, spread
from pyro_lom import figures
from pyro_lom.data.minibatches import float_images
from pyro_lom.metrics.features import EfficientNetLite0
from pyro_lom.types import Rendering

DESCRIPTION = """Draw unconditional scenes and reconstructions of runs, slot by slot: sample.py RUN... [options].
Pictures go to RUN/figures."""

_TAUS = (0.6, 0.7, 0.8, 0.9, 1.0)  # of Figure 7
_MEAN_OF = 128


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders."""
    num_scenes: Annotated[int, Bound("from 1 to 100", lambda number: 1 <= number <= 100)] = 12
    """Scenes in a picture, a column each."""
    temperature: Positive = 0.8
    """tau, of samples (Sec. 4.1)."""
    sweep: bool = False
    """Measure the Frechet distance at tau 0.6 to 1.0 instead, and draw it over runs with error bars (Fig. 7)."""
    features: Literal["efficientnet", "pca64"] = "efficientnet"
    """Frechet distance of a sweep."""
    num_images: Count = 10_000
    """Held-out images of a sweep, or all there are, and as many samples."""
    output: Path = Path("temperature-sweep.png")
    """Picture of a sweep."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="sample.py", description=DESCRIPTION)
    check_bounds(options)
    check_runs(options.runs, "sample.py")
    if options.sweep:
        cli.check_output(options.output)
    pyro.enable_validation(False)
    if options.sweep:
        _sweep(options)
        return
    for folder in options.runs:
        held_out = HeldOut(folder, num_images=options.num_scenes)
        for path in (*_samples(held_out, options), _reconstructions(held_out)):
            print(path)


def _samples(held_out: HeldOut, options: Arguments) -> list[Path]:
    paths = []
    for name, pair in reversed(held_out.pairs.items()):
        tau, num = options.temperature, options.num_scenes
        torch.manual_seed(SEED)
        samples = sample_scenes(pair, max(_MEAN_OF, num), tau)
        paths.append(held_out.run.figures / f"samples-{name}-slots.png")
        means = [samples.image.mean(0), torch.ones_like(samples.image[0]), *figures.single_slots(samples).mean(0)]
        rows = _rows(Rendering(*(part[:num] for part in samples)))
        rows = [(label, torch.cat([mean[None], row])) for mean, (label, row) in zip(means, rows, strict=True)]
        title = f"Samples of the {name} model, tau = {tau:g}; first column: mean of {len(samples.image)}"
        figures.save_grid(paths[-1], rows, title)
    return paths


def _reconstructions(held_out: HeldOut) -> Path:
    scenes = held_out.scenes
    torch.manual_seed(SEED)
    images = float_images(scenes.images)
    orderless = held_out.reader.infer(images)
    rows = [("input", images)]
    if scenes.labels is not None:
        rows.append(("labels", figures.colour_labels(torch.as_tensor(np.array(scenes.labels)).long())))
    if orderless.log_masks is not None:
        rows.append(("encoder's masks", figures.colour_masks(orderless.log_masks)))
    for name, pair in held_out.pairs.items():
        image, masks, *slots = _rows(held_out.reader.reconstruct(pair, images, orderless))
        rows += [(f"{name} VAE", image[1]), masks, *slots]
    path = held_out.run.figures / "reconstructions-slots.png"
    figures.save_grid(path, rows, "Held-out scenes, segmented and reconstructed slot by slot")
    return path


def _rows(rendering: Rendering) -> list[tuple[str, Tensor]]:
    """Images, masks, and each slot by itself."""
    slots = figures.single_slots(rendering).unbind(1)
    masks = figures.colour_masks(rendering.log_masks)
    return [("image", rendering.image), ("masks", masks), *((f"slot {k}", slot) for k, slot in enumerate(slots))]


def _sweep(options: Arguments) -> None:
    rows = [_swept(folder, options) for folder in options.runs]
    lines, table = {}, [["model", "runs", "images", *(f"tau = {tau:g}" for tau in _TAUS)]]
    for label, group in by_configuration(rows).items():
        distances = [[row.values[f"{tau:g}"] for row in group] for tau in _TAUS]
        deviations = [np.std(of_runs, ddof=1).item() if len(group) > 1 else 0.0 for of_runs in distances]
        lines[label] = (_TAUS, [np.mean(of_runs).item() for of_runs in distances], deviations)
        table.append([label, str(len(group)), str(group[0].num_images), *(spread(of_runs, 1) for of_runs in distances)])
    name = {"efficientnet": "FD-EfficientNet", "pca64": "FD-PCA64"}[options.features]
    figures.save_error_bars(options.output, lines, x="temperature", y=name)
    print(f"**{name} of samples by temperature**\n\n{grid(table)}\n")
    print(options.output)


def _swept(folder: Path, options: Arguments) -> Row:
    held_out = HeldOut(folder, num_images=options.num_images)

    def distances() -> Values:
        print(f"{folder}: sweeping ...", file=sys.stderr)
        extractor = pixel_pca(held_out) if options.features == "pca64" else EfficientNetLite0(held_out.device)
        found = frechet_distances(held_out, extractor, _TAUS)
        return {f"{tau:g}": distance for tau, distance in zip(_TAUS, found, strict=True)}

    values = held_out.remember(f"sweep-{options.features}", {}, distances)
    return Row(folder, held_out.config, held_out.source["checkpoint"], len(held_out), values)
