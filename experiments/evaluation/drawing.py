"""The pictures of a run: reconstructions, samples, interpolations and curves."""

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.evaluation.reading import (
    TEMPERATURE,
    guide_trace,
    infer_batches,
    latents,
    prior_scenes,
    reconstruct,
    render_scenes,
    sample_scenes,
    shuffled_batches,
    source_pair,
)
from pyro_lom import figures
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.minibatches import float_images
from pyro_lom.interpolation import slerp
from pyro_lom.system import Pair, System, result
from pyro_lom.training.runs import Run
from pyro_lom.types import Rendering

_NUM = 12

Rows = list[tuple[str, Float[Tensor, "_ _ H W"]]]


@torch.no_grad()
def draw(system: System, scenes: Scenes, run: Run, *, seed: int, step: int | None = None) -> list:
    """Write the pictures of a run, and return their paths; titles contain `step` if it is given."""
    torch.manual_seed(seed)
    final, (source, pair) = result(system), source_pair(system)
    ((images, received),) = infer_batches(system, float_images(scenes.images[:_NUM]))
    when = "" if step is None else f", after step {step}"
    paths = []

    def save(name: str, rows: Rows, title: str) -> None:
        paths.append(run.figures / f"{name}.png")
        figures.save_grid(paths[-1], rows, title + when)

    rows = [("input", images)]
    if (log_masks := pair.guide.log_masks(received[source])) is not None:
        rows.append(("encoder's masks", figures.colour_masks(log_masks)))
    for name, one in system.items():
        rows += with_masks(f"{name} VAE" if len(system) > 1 else "VAE", reconstruct(one, images, received[name]))
    masks = " and masks, a colour for each slot" if pair.model.slot_sites else ""
    save("reconstructions", rows, f"Held-out scenes: reconstructions{masks}")

    rows = []
    for tau in (TEMPERATURE, 1.0):
        for _ in range(2):
            rows += with_masks(f"sample, tau = {tau:g}", sample_scenes(final, _NUM, tau))
    if pair is not final:
        rows += with_masks(f"{source} model, tau = {TEMPERATURE:g}", sample_scenes(pair, _NUM, TEMPERATURE))
    if pair.model.slot_sites:
        slots = latents(pair.model, guide_trace(pair, images, received[source]))
        rows.append(("shuffled posterior", next(shuffled_batches(pair, slots)).image))
    save("samples", rows, "Unconditional samples")

    if final.model.scene_sites:
        start, end = prior_scenes(final, 8).chunk(2)
        save("interpolation", interpolation_rows(final, start, end, _NUM), interpolation_title(final))

    paths.append(run.figures / "curves.png")
    figures.save_curves(paths[-1], run.metrics())
    return paths


def interpolation_title(pair: Pair) -> str:
    """Return the title of a picture of interpolations."""
    slots = ", slots at their prior means" if pair.model.slot_sites else ""
    return f"From one scene to another along a great circle of s{slots}"


def interpolation_rows(pair: Pair, start: Float[Tensor, "P Ds"], end: Float[Tensor, "P Ds"], num: int) -> Rows:
    """Return rows of images and masks along each of P great circles, `num` scenes per row."""
    rows = []
    for path in slerp(start, end, num).unbind(1):
        rows += with_masks("SLERP", render_scenes(pair, path))
    return rows


def with_masks(label: str, rendering: Rendering) -> Rows:
    """Return a row of images and, if the model has masks, a row of masks."""
    masks = [] if rendering.log_masks is None else [("its masks", figures.colour_masks(rendering.log_masks))]
    return [(label, rendering.image), *masks]
