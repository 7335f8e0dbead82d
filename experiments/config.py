"""What a run is made of, as frozen dataclasses. Only `experiments/systems.py` turns them into objects.

Units: RMSE per pixel and channel for images in [0, 1]; everything else about losses in nats per scene. Section numbers
are the paper's.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from pyro_lom.errors import UserError


@dataclass(frozen=True)
class Data:
    path: str = "data/towers.h5"
    """HDF5 file, or folder of images; data/towers.h5 is made when it is missing or damaged."""
    image_size: int = 32
    """Height and width in pixels. A folder's images are cropped and resized to it; a file's must have it."""


@dataclass(frozen=True)
class ScenePrior:
    kind: Literal["normal"] = "normal"
    """p(s): standard normal (3.1)."""


@dataclass(frozen=True)
class Model:
    system: Literal["lom-genesis-v2", "genesis-v2"] = "lom-genesis-v2"
    """A LOM with its orderless model, or an orderless model alone."""
    num_slots: int = 7
    """K: objects and pieces of background that a scene can hold (A.4.1)."""
    slot_dim: int = 64
    """Dz (A.4.1)."""
    image_scale: float = 0.7
    """sigma, the standard deviation of the likelihood, for images in [0, 1] (A.4.1)."""

    encoder: Literal["published", "compact"] = "published"
    """GENESIS-v2's networks, or small ones with short cuts for small images and short trainings (departure)."""
    encoder_width: int = 64
    """Channels of the encoder's UNet at its full resolution."""
    decoder: Literal["deconvolution", "separable"] = "deconvolution"
    """GENESIS-v2's deconvolutions, or a small decoder for small images (departure)."""
    decoder_width: int = 64
    """Channels, or units, of a decoder's layers."""

    scene_dim: int = 128
    """Ds (A.4.1)."""
    scene_prior: ScenePrior = ScenePrior()
    num_encoder_blocks: int = 3
    """Self-attention blocks of the scene encoder g (A.1)."""
    num_order_blocks: int = 2
    """Self-attention blocks of f and of f' (A.5, Model 0)."""
    transformer_width: int = 64
    """Features of a token in g, f and f'; the slot dimension in the paper (A.1)."""
    matching: Literal["greedy", "hungarian"] = "greedy"
    """How orderless slots are matched to the prior's order (Algorithm 1, A.2)."""


@dataclass(frozen=True)
class Geco:
    target: float = -0.353
    """Error to reach, nats per pixel and channel without (1/2) log 2 pi (A.4.2); see target_rmse."""
    target_rmse: float | None = None
    """The same as a root mean squared error, used instead when given."""
    step_size: float = 1e-6
    """Of the multiplier's update at 64x64; scaled by 64^2 / image_size^2 as GENESIS does unless goal_relative (A.4.2)."""
    speedup: float = 10.0
    """Factor on the step once the target is reached."""
    initial: float = 1.0
    """First multiplier of the KL."""
    minimum: float = 1e-10
    maximum: float = 1e10
    """Bounds of the multiplier."""
    goal_relative: bool = False
    """Constraint relative to the target and clamped to [-1, 1] (departure for short trainings)."""


@dataclass(frozen=True)
class Train:
    steps: int = 500_000
    """Optimiser steps (A.4.3)."""
    batch_size: int = 32
    """Scenes a step on each device (A.4.3)."""
    learning_rate: float = 1e-4
    """Of Adam (A.4.1)."""
    warmup_steps: int = 0
    """Steps over which the learning rate grows from 0."""
    decay: Literal["none", "linear", "halving"] = "none"
    """Of the learning rate: none, to a fiftieth over the second half, or by a half every 100,000 steps."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all parameters together."""
    orderless_first: float = 0.0
    """Share of the steps that trains the orderless pair alone, after which it stands still; 0 trains both at once, as in
    the paper. The stop-gradient makes this another schedule, not another objective."""
    ordered_batch_size: int | None = None
    """Scenes a step after the orderless pair was trained first; batch_size when not given."""
    ordered_learning_rate: float | None = None
    """Learning rate after the orderless pair was trained first; learning_rate when not given."""
    free_nats: float = 32.0
    """Floor of the scene KL per scene, 0.25 Ds (Eq. 26, A.4.2)."""
    final_free_nats: float = 21.4
    """The floor in the last steps, 0.167 Ds (A.4.2)."""
    final_steps: int = 25_000
    """How many last steps use it (A.4.2)."""
    geco: Geco = Geco()
    log_every: int = 100
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 5000
    """Steps between two checkpoints."""
    preview_every: int = 10_000
    """Steps between two sets of pictures."""


@dataclass(frozen=True)
class Config:
    preset: str
    """Name of the preset that the other values were taken from."""
    seed: int = 0
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, as `config.json` keeps them."""
    return dataclasses.asdict(config)


def from_dict(values: dict[str, Any], kind: type = Config, place: str = "config.json") -> Any:
    """The dataclass that `to_dict` made `values` from.

    Raises:
        UserError: a field is missing, unknown or of another type; names it.
    """
    hints, given = get_type_hints(kind), {}
    if not isinstance(values, dict) or set(values) != set(hints):
        found = ", ".join(sorted(set(values) ^ set(hints))) if isinstance(values, dict) else repr(values)
        raise UserError(f"{place} was not written by this version: it differs in {found}")
    for name, hint in hints.items():
        value = values[name]
        if dataclasses.is_dataclass(hint):
            given[name] = from_dict(value, hint, f"{place}: {name}")
        else:
            given[name] = value
    return kind(**given)
