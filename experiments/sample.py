"""Draw scenes of runs slot by slot: `python experiments/sample.py RUN... [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyro
import torch
import tyro

from experiments import cli
from experiments.config import Bound, Count, Natural, Positive, check_bounds
from experiments.evaluation.drawing import Rows
from experiments.evaluation.held_out import SEED, HeldOut, Values
from experiments.evaluation.metrics import frechet_distances, pixel_pca
from experiments.evaluation.reading import infer_batches, readjusted, reconstruct, sample_scenes
from experiments.evaluation.tables import Row, by_configuration, grid, spread
from experiments.evaluation.words import QUANTITIES
from experiments.loading import check_runs
from experiments.systems import own_systems
from pyro_lom import figures
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError, printable
from pyro_lom.metrics.features import EfficientNetLite0
from pyro_lom.types import Rendering

DESCRIPTION = """Draw unconditional samples and reconstructions of runs, slot by slot: sample.py RUN... [options].
Pictures are written to RUN/figures."""

_TAUS = (0.6, 0.7, 0.8, 0.9, 1.0)  # of Figure 7
_MEAN_OF = 128


@dataclass(frozen=True)
class Arguments:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders."""
    num_scenes: Annotated[int, Bound("from 1 to 100", lambda number: 1 <= number <= 100)] = 12
    """Scenes in a picture, one per column."""
    temperature: Positive = 0.8
    """Temperature tau of the samples (Sec. 4.1)."""
    modes: bool = True
    """Let latents take the modes of their distributions where this is published for the system, as in tables. With
    --no-modes, all latents are drawn."""
    readjust: Natural = 0
    """Batches of samples with which batch normalisation re-adjusts its statistics before sampling, for temperatures
    below 1; NVAE was published with 500. With 0, the statistics are those of the training."""
    sweep: bool = False
    """Instead of scenes, draw the Frechet distance at tau 0.6 to 1.0, with error bars over runs (Fig. 7)."""
    features: Literal["efficientnet", "pca64"] = "efficientnet"
    """Features of the Frechet distance of a sweep."""
    num_images: Count = 10_000
    """Largest number of held-out images of a sweep; equally many scenes are sampled."""
    output: Path = Path("temperature-sweep.png")
    """PNG file of a sweep."""
    systems: str | None = None
    """Your own Python module that defines the systems of the runs."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="sample.py", description=DESCRIPTION)
    check_bounds(options)
    systems = own_systems(options.systems)
    check_runs(options.runs, "sample.py", systems)
    if options.sweep:
        if not options.modes:
            raise UserError("--no-modes has no effect on --sweep, whose samples are those of tables: leave it out")
        cli.check_output(options.output, suffix=".png")
    pyro.enable_validation(False)
    if options.sweep:
        _sweep(options, systems)
        return
    for folder in options.runs:
        held_out = HeldOut.open(folder, num_images=options.num_scenes, systems=systems, readjust=options.readjust)
        if not (options.modes or held_out.final.model.mode_sites):
            raise UserError(
                f"{folder}: --no-modes has no effect, since this system draws all latents anyway: leave it out"
            )
        for name, rows, title in [*_samples(held_out, options), _reconstructions(held_out)]:  # after checks of images
            path = held_out.run.figures / f"{name}.png"
            figures.save_grid(path, rows, title)
            print(printable(str(path)))


def _samples(held_out: HeldOut, options: Arguments) -> Iterator[tuple[str, Rows, str]]:
    """Yield the name, rows and title of a picture of each pair, with the mean of many samples in the first column."""
    for name, pair in reversed(held_out.system.items()):
        tau, num = options.temperature, options.num_scenes
        torch.manual_seed(SEED)
        if options.readjust:
            pair = readjusted(pair, tau, options.readjust)
        samples = sample_scenes(pair, max(_MEAN_OF, num), tau, by_modes=options.modes)
        rows = []
        for label, images in _rows("image", samples):
            mean = torch.ones_like(images[0]) if label == "masks" else images.mean(0)
            rows.append((label, torch.cat([mean[None], images[:num]])))
        title = f"Samples of the {name} pair, tau = {tau:g}; first column: mean of {len(samples.image)}"
        yield f"samples-{name}-slots", rows, title


@torch.no_grad()
def _reconstructions(held_out: HeldOut) -> tuple[str, Rows, str]:
    scenes, (source, pair) = held_out.scenes, held_out.source
    torch.manual_seed(SEED)
    ((images, received),) = infer_batches(held_out.system, float_images(scenes.images))
    rows = [("input", images)]
    if scenes.labels is not None:
        rows.append(("labels", figures.colour_labels(torch.as_tensor(np.array(scenes.labels)).long())))
    if (log_masks := pair.guide.log_masks(received[source])) is not None:
        rows.append(("encoder's masks", figures.colour_masks(log_masks)))
    for name, one in held_out.system.items():
        rows += _rows(f"{name} VAE", reconstruct(one, images, received[name]))
    how = "segmented and reconstructed slot by slot" if pair.model.slot_sites else "reconstructed"
    return "reconstructions-slots", rows, f"Held-out scenes, {how}"


def _rows(label: str, rendering: Rendering) -> Rows:
    """Return rows of images, masks and single slots; images alone if the model has no masks."""
    if rendering.log_masks is None:
        return [(label, rendering.image)]
    slots = figures.single_slots(rendering).unbind(1)
    masks = figures.colour_masks(rendering.log_masks)
    return [(label, rendering.image), ("masks", masks), *((f"slot {k}", slot) for k, slot in enumerate(slots))]


def _sweep(options: Arguments, systems: tuple[type, ...]) -> None:
    rows = [_swept(folder, options, systems) for folder in options.runs]
    lines, table = {}, [["model", "runs", "images", *(f"tau = {tau:g}" for tau in _TAUS)]]
    for label, group in by_configuration(rows).items():
        distances = [[row.values[f"{tau:g}"] for row in group] for tau in _TAUS]
        deviations = [np.std(of_runs, ddof=1).item() if len(group) > 1 else 0.0 for of_runs in distances]
        lines[label] = (_TAUS, [np.mean(of_runs).item() for of_runs in distances], deviations)
        table.append([label, str(len(group)), str(group[0].num_images), *(spread(of_runs, 1) for of_runs in distances)])
    name = QUANTITIES[f"fd_{options.features}"].title
    figures.save_error_bars(options.output, lines, x="temperature", y=name)
    cli.sign(options.output)
    print(f"**{name} of samples by temperature**\n\n{grid(table)}\n")
    print(printable(str(options.output)))


def _swept(folder: Path, options: Arguments, systems: tuple[type, ...]) -> Row:
    held_out = HeldOut.open(folder, num_images=options.num_images, systems=systems, readjust=options.readjust)

    def distances() -> Values:
        print(printable(f"{folder}: sweeping ..."), file=sys.stderr)
        extractor = pixel_pca(held_out) if options.features == "pca64" else EfficientNetLite0(held_out.device)
        found = frechet_distances(held_out, extractor, _TAUS)
        return {f"{tau:g}": distance for tau, distance in zip(_TAUS, found, strict=True)}

    name = f"sweep-{options.features}"
    values = held_out.remember(name, {}, distances)
    if not all(isinstance(values.get(f"{tau:g}"), float) for tau in _TAUS):
        raise UserError(f"{folder}/evaluation.json: {name} lacks a number; remove the file to compute it again")
    checkpoint = held_out.provenance["checkpoint"]
    return Row(folder, held_out.config, checkpoint, len(held_out), values, held_out.orderless)


if __name__ == "__main__":
    cli.run(main, saves_memory="--num-scenes or --num-images")
