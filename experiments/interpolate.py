"""Draw paths through the scene latents of a run (A.7): `python experiments/interpolate.py RUN [options]`."""

if __name__ == "__main__":
    import installed  # noqa: F401

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyro
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from experiments import cli
from experiments.config import Share, check_bounds, within
from experiments.evaluation.drawing import interpolation_rows, interpolation_title
from experiments.evaluation.held_out import SEED, HeldOut
from experiments.evaluation.reading import posterior_scenes, prior_scenes, render_scenes
from experiments.systems import own_systems
from pyro_lom import figures
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.pictures import fit, read_rgb
from pyro_lom.errors import UserError, printable
from pyro_lom.interpolation import random_walk, slerp
from pyro_lom.system import Pair

DESCRIPTION = """Interpolate between scenes of a model with a scene latent along great circles, and draw random walks:
interpolate.py RUN [options]. Writes a PNG and GIFs to RUN/figures."""


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    between: tuple[str, str] | None = None
    """Two images, each the number of a held-out scene or a PNG or JPEG file; by default samples of the prior."""
    num_paths: Annotated[int, within(1, 100)] = 4
    """Number of paths between samples of the prior, and of random walks."""
    steps: Annotated[int, within(1, 200)] = 12
    """Scenes in a row of the PNG."""
    frames: Annotated[int, within(1, 1000)] = 48
    """Scenes of a path in a GIF, which shows the path forwards and backwards; a walk has twice as many."""
    stride: Share = 0.2
    """Step of a random walk, as a share of the prior's standard deviation."""
    systems: str | None = None
    """Your own Python module that defines the run's system."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="interpolate.py", description=DESCRIPTION)
    check_bounds(options)
    pyro.enable_validation(False)
    held_out = HeldOut.open(options.run, systems=own_systems(options.systems))
    if not held_out.final.model.scene_sites:
        raise UserError(f"{options.run} has no scene latent to interpolate: name a run of a LOM")
    torch.manual_seed(SEED)
    paths = _between_samples(held_out, options) if options.between is None else _between_images(held_out, options)
    for path in paths:
        print(printable(str(path)))


def _between_samples(held_out: HeldOut, options: Arguments) -> list[Path]:
    pair = held_out.final
    start, end = prior_scenes(pair, 2 * options.num_paths).chunk(2)
    rows = interpolation_rows(pair, start, end, options.steps)
    between = _there_and_back(pair, start, end, options.frames)
    walk = _film(pair, random_walk(start, 2 * options.frames, options.stride))
    folder = held_out.run.figures  # only now, after all checks of images, is anything written
    figures.save_grid(folder / "interpolation.png", rows, interpolation_title(pair))
    figures.save_gif(folder / "interpolation.gif", between)
    figures.save_gif(folder / "random-walk.gif", walk)
    return [folder / name for name in ("interpolation.png", "interpolation.gif", "random-walk.gif")]


def _between_images(held_out: HeldOut, options: Arguments) -> list[Path]:
    pair = held_out.final
    images = _images(options.between, held_out)
    start, end = posterior_scenes(pair, images).split(1)
    ends = torch.ones(options.steps, *images.shape[1:])
    ends[0], ends[-1] = images.cpu()
    rows = [("given", ends), *interpolation_rows(pair, start, end, options.steps)]
    between = _there_and_back(pair, start, end, options.frames)
    folder = held_out.run.figures
    figures.save_grid(folder / "between.png", rows, interpolation_title(pair))
    figures.save_gif(folder / "between.gif", between)
    return [folder / name for name in ("between.png", "between.gif")]


def _there_and_back(
    pair: Pair, start: Float[Tensor, "P Ds"], end: Float[Tensor, "P Ds"], num: int
) -> Float[Tensor, "T _ H W"]:
    there = _film(pair, slerp(start, end, num))
    return torch.cat([there, there.flip(0)])


def _film(pair: Pair, scenes: Float[Tensor, "T P Ds"]) -> Float[Tensor, "T _ H W"]:
    """Render frames with all paths side by side, and with masks below if the model has masks."""
    rendering = render_scenes(pair, scenes.flatten(0, 1))
    rows = [rendering.image.expand(-1, 3, -1, -1)]
    if rendering.log_masks is not None:
        rows.append(figures.colour_masks(rendering.log_masks))
    return torch.cat(torch.cat(rows, dim=-2).unflatten(0, scenes.shape[:2]).unbind(1), dim=-1)


def _images(names: tuple[str, str], held_out: HeldOut) -> Float[Tensor, "2 C H W"]:
    """Read images: held-out scenes by number, files by name."""
    channels, *size = held_out.scenes.image_shape
    images = []
    for name in names:
        if name.isascii() and name.isdecimal():
            if len(name) > 9 or int(name) >= len(held_out):
                raise UserError(f"--between {name}: held-out scenes go from 0 to {len(held_out) - 1}")
            image = held_out.scenes.images[int(name)]
        else:
            picture, _ = read_rgb(Path(name))
            is_padded = held_out.config.data.fit == "pad"
            image = np.asarray(fit(picture, tuple(size), Image.Resampling.BILINEAR, pad=is_padded))
            image = image if channels == 3 else image.mean(-1, keepdims=True).astype(image.dtype)
        images.append(float_images(image[None]))
    return torch.cat(images).to(held_out.device)


if __name__ == "__main__":
    cli.run(main, saves_memory="--frames, --steps or --num-paths")
