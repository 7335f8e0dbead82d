"""The pictures that a run draws, from its held-out scenes."""

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.reading import (
    TEMPERATURE,
    Reader,
    prior_scenes,
    render_scenes,
    sample_scenes,
    shuffled_posterior,
)
from experiments.systems import Pair, System
from pyro_lom import figures
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.minibatches import float_images
from pyro_lom.interpolation import slerp
from pyro_lom.runs import Run

INTERPOLATION = "From one scene to another along a great circle of s, slots at their prior means"


@torch.no_grad()
def draw(system: System, scenes: Scenes, device: torch.device, run: Run, *, seed: int, step: int | None = None) -> list:
    """Write the pictures of a run, and return their paths; `step` goes into the titles."""
    torch.manual_seed(seed)
    num = 12
    images = float_images(scenes.images[:num])
    reader = Reader(system, device)
    orderless = reader.infer(images)
    when = "" if step is None else f", after step {step}"
    paths = []

    def save(name: str, rows: list, title: str) -> None:
        paths.append(run.figures / f"{name}.png")
        figures.save_grid(paths[-1], rows, title + when)

    rows = [("input", images)]
    if orderless.log_masks is not None:
        rows.append(("encoder's masks", figures.colour_masks(orderless.log_masks)))
    by_orderless = reader.reconstruct(system.orderless, images, orderless)
    rows += [("orderless VAE", by_orderless.image), ("its masks", figures.colour_masks(by_orderless.log_masks))]
    if system.ordered:
        by_ordered = reader.reconstruct(system.ordered, images, orderless)
        rows += [("ordered VAE", by_ordered.image), ("its masks", figures.colour_masks(by_ordered.log_masks))]
    save("reconstructions", rows, "Held-out scenes: reconstructions and masks, a colour for each slot")

    rows = []
    if system.ordered:
        for tau in (TEMPERATURE, 1.0):
            for _ in range(2):
                sample = sample_scenes(system.ordered, num, tau)
                rows += [
                    (f"sample, tau = {tau:g}", sample.image),
                    ("its masks", figures.colour_masks(sample.log_masks)),
                ]
    baseline = sample_scenes(system.orderless, num, TEMPERATURE)
    rows += [
        (f"independent slots, tau = {TEMPERATURE:g}", baseline.image),
        ("its masks", figures.colour_masks(baseline.log_masks)),
        ("shuffled posterior", shuffled_posterior(system, orderless).image),
    ]
    save("samples", rows, "Unconditional samples, and those of the orderless model")

    if system.lom:
        start, end = prior_scenes(system.lom, 8).chunk(2)
        save("interpolation", interpolation_rows(system.lom, start, end, num), INTERPOLATION)

    paths.append(run.figures / "curves.png")
    figures.save_curves(paths[-1], run.metrics())
    return paths


def interpolation_rows(
    pair: Pair, start: Float[Tensor, "P Ds"], end: Float[Tensor, "P Ds"], num: int
) -> list[tuple[str, Float[Tensor, "num _ H W"]]]:
    """Images and masks along each of P great circles, in `num` steps."""
    rows = []
    for path in slerp(start, end, num).unbind(1):
        rendering = render_scenes(pair, path)
        rows += [("SLERP", rendering.image), ("masks", figures.colour_masks(rendering.log_masks))]
    return rows
