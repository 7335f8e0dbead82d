"""Checks of the arguments of queries: a wrong image, latent, program or mode raises an error of one line.

Queries such as `infer` and `explain` call these checks before they compute. Training steps do not call them, because
the check of images reads values back from the device.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from pyro_lom.errors import UserError
from pyro_lom.program import Model, Program

_ROUNDING = 1e-3  # by which values may leave [0, 1]


def check_images(images: Any, *programs: Any) -> None:
    """Check that images are right for models and guides, and that these are in evaluation mode.

    Right images are floats (B, C, H, W) in [0, 1] with the shape, dtype and device of an image that the model samples.
    The model is the first `Model` among the programs and the guides' models. Without one, images are not checked.

    Raises:
        UserError: images are wrong, or a program is in training mode. The message contains what was given, what is
            needed, and the remedy.
    """
    check_evaluation(*programs)
    model = next((program for program in _with_models(programs) if isinstance(program, Model)), None)
    if model is None:
        return
    sampled = _sample(model)["x"].flatten(0, -4)
    if remedy := _remedy(images, sampled):
        needed = _form(sampled.dtype, ("B", *sampled.shape[1:]), sampled.device)
        raise UserError(
            f"images are {_describe(images)}, but {type(model).__name__} takes {needed} from 0 to 1: {remedy}"
        )


def check_evaluation(*programs: Any) -> None:
    """Check that models and guides are in evaluation mode; raises UserError if one is in training mode."""
    for program in _with_models(programs):
        if program.training:
            raise UserError(f"{type(program).__name__} is in training mode: call .eval() on the model and on the guide")


def check_lom(model: Any, guide: Any) -> None:
    """Check that the arguments are a LOM and its guide, in this order; raises UserError if not."""
    if "z" not in getattr(model, "slot_sites", ()) or not hasattr(guide, "infer_scene"):
        given = f"{type(model).__name__} as the model and {type(guide).__name__} as the guide"
        raise UserError(f"{given} are not a LOM: pass the model and the guide of a LOM, in this order")


def check_latents(model: Any, slots: Any, *, scene: Any = None, mask: Any = None) -> None:
    """Check slots (B, K, Dz), and a scene (B, Ds) or a boolean mask (B, K) if given, against a sample of a LOM.

    Raises:
        UserError: a shape, dtype or device is wrong. The message contains what was given and what is needed.
    """
    sampled = _sample(model, with_image=False)
    likes = {"slots are": sampled["z"], "scene is": sampled["s"].squeeze(-2), "mask is": sampled["z"][..., 0].bool()}
    num_scenes = slots.shape[:1] if isinstance(slots, Tensor) else ("B",)
    for (name, like), given in zip(likes.items(), (slots, scene, mask), strict=True):
        needed = _form(like.dtype, (*num_scenes, *like.shape[1:]), like.device)
        is_right = isinstance(given, Tensor) and _form(given.dtype, given.shape, given.device) == needed
        if given is not None and not is_right:
            raise UserError(f"{name} {_describe(given)}, but the LOM takes {needed}")


def _with_models(programs: tuple) -> list[Program]:
    """Return the models and guides among `programs`, and the guides' models."""
    found = [*programs, *(getattr(program, "model", None) for program in programs)]
    return [program for program in found if isinstance(program, Program)]


@torch.no_grad()
def _sample(model: Any, **options: Any) -> dict[str, Tensor]:
    """Return the values of one sampled scene by site, without effect on random states and other handlers."""
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with torch.random.fork_rng(gpus), poutine.block(), poutine.trace() as tracer:
        model(num_scenes=1, **options)
    return {name: node["value"] for name, node in tracer.trace.nodes.items()}


def _remedy(images: Any, sampled: Float[Tensor, "1 C H W"]) -> str | None:
    """Return how to correct images, or None if they have the form of `sampled` and are in [0, 1]."""
    _, channels, height, width = sampled.shape
    if not isinstance(images, Tensor):
        is_stored = getattr(images, "dtype", None) == np.uint8
        return "pass float_images(images)" if is_stored else "pass torch.as_tensor(images)"
    if images.ndim != 4 or not images.numel():
        return {3: "pass images[None]", 5: "pass images.flatten(0, 1)"}.get(images.ndim, "pass one image or more")
    is_bytes, is_last = images.dtype == torch.uint8, images.shape[-1] == channels != images.shape[1]
    if is_bytes or is_last:
        return "pass images" + ".movedim(-1, 1)" * is_last + " / 255" * is_bytes
    if images.shape[2:] != sampled.shape[2:]:
        return f"crop or resize them to {height} x {width}"
    if images.shape[1] != channels:
        return f"convert their colours to {channels} channels"
    if images.dtype != sampled.dtype:
        return f"pass images.to({sampled.dtype})"
    if images.device != sampled.device:
        return f"pass images.to({str(sampled.device)!r})"
    return _rescaling(*map(float, images.aminmax()))


def _rescaling(low: float, high: float) -> str | None:
    """Return how to bring values to [0, 1], judging by the lowest and the highest, or None if they are there."""
    if -_ROUNDING <= low and high <= 1 + _ROUNDING:
        return None
    if low >= 0 and 16 < high <= 255:
        return "pass images / 255"
    if -1 - _ROUNDING <= low < -0.5 and high <= 1 + _ROUNDING:
        return "pass (images + 1) / 2"
    return "rescale or clamp them to [0, 1]"


def _describe(value: Any) -> str:
    if not isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__}"
    values = f" from {float(value.min()):.3g} to {float(value.max()):.3g}" if 0 not in value.shape else ""
    if isinstance(value, np.ndarray):
        return f"a NumPy array {value.dtype} {value.shape}{values}"
    return _form(value.dtype, value.shape, value.device) + values


def _form(dtype: torch.dtype, shape: Iterable[int | str], device: torch.device) -> str:
    """Return the form of a tensor in words, such as "float32 (B, 3, 64, 64) on cpu"."""
    return f"{str(dtype).removeprefix('torch.')} ({', '.join(map(str, shape))}) on {device}"
