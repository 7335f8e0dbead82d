"""Adaptation of a preset to a person's own images: a look at some images, and values for options with reasons."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from experiments.config import Config
from experiments.systems.options import check_image_size
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError
from pyro_lom.metrics.binding import SMALLEST, explained_variance, region_segments, smooth_error
from pyro_lom.networks.pixel_encoders import PartsEncoder, RegionEncoder
from pyro_lom.networks.regions import edges

ADAPTED = (
    "model.num-slots",
    "model.slot-dim",
    "model.geco.target-rmse",
    "train.steps",
    "train.preview-every",
    "model.geco.relax-at",
    "model.schedule.ordered-batch-size",
)
"""The options that `adapt` may set."""

_LOOKED_AT = 64  # images
_MANY, _USUAL = 12, 7  # slots of the look, and of a usual model
_SLOT_DIM = 16  # with 12, the outlines of flat shapes were lost
_K = (4, _MANY + 1)  # least and largest number of slots; with 10, many objects on striped grounds had no slot
_STEPS, _MINUTES = (6_000, 10_000), 18  # least and largest number of steps; minutes of the latter with 7 slots at 64x64
_FIXED = 9  # time of a step that does not depend on the number of slots, as a number of slots
_TO_VERDICT = 4  # minutes to the first preview, which has the verdict
_SECOND_DIFFERENCES = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6  # 0 on planes
_MEDIAN = 0.6745  # median of the absolute value of a standard normal variable
_BLUR, _BLUR_OF_CONTRAST = 0.01, 0.08  # at a contrast of 0.04, 0.01 would be a quarter of it
_RELAX_AT = 0.7  # share of the orderless pair's steps


class Look(NamedTuple):
    """What `look` finds in images, without labels and without training."""

    num_images: int
    noise: float
    """Standard deviation of the noise of pixels and channels: by second differences (Immerkaer, 1996), of which the
    median is taken, so that outlines do not count. It is too small where noise is cut off at black or white."""
    edges: float
    """Share of the pairs of neighbouring pixels whose colours have an edge between them, as `PartsEncoder` finds it."""
    num_segments: int
    """Number of segments, above 0.5 % of the image, that 90 % of the images do not exceed."""
    explained: float
    """Share of the variance of colours that smooth colours in segments explain (`explained_variance`)."""
    rmse: float
    """RMSE of smooth colours in segments, per pixel and channel."""
    contrast: float
    """RMSE of smooth colours in whole images: large if colours differ much within an image."""


def look(images: np.ndarray, encoder: type[RegionEncoder] = PartsEncoder) -> Look:
    """Cluster some of the images (N, H, W, C), uint8, with an encoder before any training."""
    chosen = np.random.default_rng(0).choice(len(images), min(_LOOKED_AT, len(images)), replace=False)
    images = float_images(images[np.sort(chosen)])
    segments = region_segments(images, _MANY, encoder=encoder)
    sizes = F.one_hot(segments.flatten(1)).float().mean(1)
    return Look(
        num_images=len(images),
        noise=_noise(images),
        edges=edges(images).item(),
        num_segments=round((sizes > SMALLEST).sum(1).float().quantile(0.9, interpolation="higher").item()),
        explained=explained_variance(images, segments),
        rmse=smooth_error(images, segments).mean().sqrt().item(),
        contrast=smooth_error(images, torch.zeros_like(segments)).mean().sqrt().item(),
    )


def adapt(config: Config, images: np.ndarray, options: Collection[str] = ADAPTED) -> tuple[Config, list[str]]:
    """Look at the images (N, H, W, C), uint8, and set those of `ADAPTED` that are in `options`.

    Returns:
        The configuration, and lines for a person: what was seen, and each value with its reason. Without images, the
        configuration does not change.

    Raises:
        UserError: one of `options` is not in `ADAPTED`, or models do not support the size of the images.
    """
    if unknown := sorted(set(options) - set(ADAPTED)):
        raise UserError(f"{unknown[0]} is not adapted to images: choose among {', '.join(ADAPTED)}")
    check_image_size((images.shape[3], *images.shape[1:3]))
    if len(images) == 0:
        return config, []
    seen = look(images, PartsEncoder if config.model.orderless.encoder == "parts" else RegionEncoder)
    lines = [
        f"looked at {seen.num_images} images: noise of {seen.noise:.4f}; 90% have at most {seen.num_segments} "
        f"segments; {seen.edges:.0%} of neighbouring pixels have an edge between them; smooth colours in segments "
        f"explain {seen.explained:.0%} of the variance, with an RMSE of {seen.rmse:.4f}"
    ]

    def propose(option: str, value: float, reason: str) -> None:
        nonlocal config
        if option in options:
            config = _with(config, option.replace("-", "_").split("."), value)
            lines.append(f"--{option} {value}: {reason}")

    num_slots = min(max(seen.num_segments + 1, _K[0]), _K[1])
    propose("model.num-slots", num_slots, f"the segments and one more, from {_K[0]} to {_K[1]}")
    propose("model.slot-dim", _SLOT_DIM, "for place, size, outline and colours of a segment")
    blur = min(_BLUR, _BLUR_OF_CONTRAST * seen.contrast)
    other = blur + 0.5 * math.sqrt(max(seen.rmse**2 - seen.noise**2, 0.0))
    target = max(round(math.hypot(seen.noise, other), 4), 0.001)  # images of one colour; 8 bits have an error of 0.0011
    propose(
        "model.geco.target-rmse",
        target,
        f"{seen.noise:.4f} of noise and {other:.4f} of other errors, added as squares; the latter is half of the RMSE "
        f"of smooth colours without noise, and {blur:.4f}",
    )
    size = (config.model.num_slots + _FIXED) / (_USUAL + _FIXED) * images.shape[1] * images.shape[2] / 64**2
    steps = int(min(max(_STEPS[1] / size, _STEPS[0]), _STEPS[1])) // 1000 * 1000
    minutes = _MINUTES * size / _STEPS[1]  # of a step
    propose("train.steps", steps, f"about {minutes * steps:.0f} minutes on two cores")
    to_verdict = int(_TO_VERDICT / minutes) // 100 * 100
    if to_verdict < config.train.preview_every:
        propose("train.preview-every", to_verdict, f"the verdict on binding after about {_TO_VERDICT} minutes")
    relax_at = round(_RELAX_AT * config.model.source_steps(config.train))
    propose("model.geco.relax-at", relax_at, "if the target is not reached then, it becomes 5% more than the error")
    if len(images) < (config.model.schedule.ordered_batch_size or 0):
        propose("model.schedule.ordered-batch-size", len(images), "all images")
    return config, lines


def _noise(images: torch.Tensor) -> float:
    """Return the `noise` of `Look`: the root mean square over images of their standard deviations."""
    channels = images.flatten(0, 1).unsqueeze(1)
    differences = F.conv2d(channels, _SECOND_DIFFERENCES[None, None]).abs().reshape(len(images), -1)
    return (differences.median(1).values / _MEDIAN).square().mean().sqrt().item()


def _with(options: Any, path: list[str], value: float) -> Any:
    """Return nested dataclasses with another value at a path of names."""
    name, *rest = path
    return replace(options, **{name: _with(getattr(options, name), rest, value) if rest else value})
