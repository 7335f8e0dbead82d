"""What `experiments/interpolate.py` does: paths through the scene latents of a LOM, as strips and GIFs (A.7)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pyro
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from experiments import cli
from experiments.config import Count, Share, check_bounds
from experiments.drawing import INTERPOLATION, interpolation_rows
from experiments.held_out import SEED, HeldOut
from experiments.reading import prior_scenes, render_scenes
from experiments.systems import Pair
from pyro_lom import figures
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.pictures import read_rgb
from pyro_lom.errors import UserError
from pyro_lom.interpolation import random_walk, slerp

DESCRIPTION = """Interpolate between scenes of a LOM along great circles, and walk at random: interpolate.py RUN
[options]. A strip and GIFs go to RUN/figures."""


@dataclass(frozen=True)
class Arguments:
    run: Annotated[Path, tyro.conf.Positional]
    """Run folder."""
    between: tuple[str, str] | None = None
    """Two images, each a number of a held-out scene or a PNG or JPEG file; samples of the prior when not given."""
    num_paths: Count = 4
    """Paths between samples of the prior, and random walks from samples."""
    steps: Count = 12
    """Scenes in a row of the strip."""
    frames: Count = 48
    """Scenes in a GIF, one way."""
    stride: Share = 0.2
    """Step of a walk, a share of the prior's standard deviation."""


def main(arguments: list[str]) -> None:
    options = cli.parse(Arguments, arguments, prog="interpolate.py", description=DESCRIPTION)
    check_bounds(options)
    pyro.enable_validation(False)
    held_out = HeldOut(options.run)
    if held_out.system.lom is None:
        raise UserError(f"{options.run} has no scene latent to interpolate: name a run of a LOM")
    torch.manual_seed(SEED)
    paths = _between_samples(held_out, options) if options.between is None else _between_images(held_out, options)
    for path in paths:
        print(path)


def _between_samples(held_out: HeldOut, options: Arguments) -> list[Path]:
    pair, folder = held_out.system.lom, held_out.run.figures
    start, end = prior_scenes(pair, 2 * options.num_paths).chunk(2)
    figures.save_grid(folder / "interpolation.png", interpolation_rows(pair, start, end, options.steps), INTERPOLATION)
    figures.save_gif(folder / "interpolation.gif", _there_and_back(pair, start, end, options.frames))
    figures.save_gif(folder / "random-walk.gif", _film(pair, random_walk(start, 2 * options.frames, options.stride)))
    return [folder / name for name in ("interpolation.png", "interpolation.gif", "random-walk.gif")]


def _between_images(held_out: HeldOut, options: Arguments) -> list[Path]:
    pair, folder = held_out.system.lom, held_out.run.figures
    images = _images(options.between, held_out)
    start, end = posterior_scenes(pair, images).split(1)
    ends = torch.ones(options.steps, *images.shape[1:])
    ends[0], ends[-1] = images.cpu()
    rows = [("given", ends), *interpolation_rows(pair, start, end, options.steps)]
    figures.save_grid(folder / "between.png", rows, INTERPOLATION)
    figures.save_gif(folder / "between.gif", _there_and_back(pair, start, end, options.frames))
    return [folder / name for name in ("between.png", "between.gif")]


@torch.no_grad()
def posterior_scenes(pair: Pair, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B Ds"]:
    """Samples of q(s | x), about as far from the origin as those of p(s), which is where `slerp` puts its ends.

    Posterior means lie closer: the numbers of s that a LOM leaves idle have mean zero.
    """
    return pair.guide(images).scene.squeeze(-2)


def _there_and_back(
    pair: Pair, start: Float[Tensor, "P Ds"], end: Float[Tensor, "P Ds"], num: int
) -> Float[Tensor, "T _ H W"]:
    there = _film(pair, slerp(start, end, num))
    return torch.cat([there, there.flip(0)])


def _film(pair: Pair, scenes: Float[Tensor, "T P Ds"]) -> Float[Tensor, "T _ H W"]:
    """Frames with every path side by side, masks below."""
    rendering = render_scenes(pair, scenes.flatten(0, 1))
    images = rendering.image.expand(-1, 3, -1, -1)
    both = torch.cat([images, figures.colour_masks(rendering.log_masks)], dim=-2).unflatten(0, scenes.shape[:2])
    return torch.cat(both.unbind(1), dim=-1)


def _images(names: tuple[str, str], held_out: HeldOut) -> Float[Tensor, "2 C H W"]:
    """Held-out scenes by number, files by name."""
    channels, *size = held_out.scenes.image_shape
    images = []
    for name in names:
        if name.isdigit():
            if int(name) >= len(held_out):
                raise UserError(f"--between {name}: held-out scenes go from 0 to {len(held_out) - 1}")
            image = held_out.scenes.images[int(name)]
        else:
            image = read_rgb(Path(name), tuple(size))
            image = image if channels == 3 else image.mean(-1, keepdims=True).astype(image.dtype)
        images.append(float_images(image[None]))
    return torch.cat(images).to(held_out.device)
