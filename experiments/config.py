"""What a run is made of, as frozen dataclasses. Only `experiments/systems.py` turns them into objects.

Units: RMSE per pixel and channel for images in [0, 1]; everything else about losses in nats per scene. Section numbers
are the paper's.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import tyro

from pyro_lom.errors import UserError


class Bound(NamedTuple):
    """What a number must be; `check` refuses others."""

    words: str
    holds: Callable[[float], bool]


Count = Annotated[int, Bound("1 or more", lambda number: number >= 1)]
Slots = Annotated[int, Bound("from 2 to 64", lambda number: 2 <= number <= 64)]
Natural = Annotated[int, Bound("0 or more", lambda number: number >= 0)]
Seed = Annotated[int, Bound("from 0 to 4294967295", lambda number: 0 <= number < 2**32)]
Width = Annotated[int, Bound("a multiple of 8, as channels are normalised in 8 groups", lambda n: n > 0 and n % 8 == 0)]
Real = Annotated[float, Bound("a finite number", math.isfinite)]
Positive = Annotated[float, Bound("a finite number above 0", lambda number: 0 < number < math.inf)]
NotNegative = Annotated[float, Bound("a finite number, 0 or more", lambda number: 0 <= number < math.inf)]
Share = Annotated[float, Bound("0 or more and below 1", lambda number: 0 <= number < 1)]


@dataclass(frozen=True)
class Data:
    path: str = "data/towers.h5"
    """HDF5 file, or folder of images; data/towers.h5 and data/towers-64.h5 are made when missing or damaged."""
    image_size: Count = 32
    """Height and width in pixels. A folder's images are cropped and resized to it; a file's must have it."""


@dataclass(frozen=True)
class ScenePrior:
    kind: Literal["normal", "mixture", "flow"] = "normal"
    """p(s): standard normal (3.1), mixture of normals (5), or flow of affine couplings."""
    num_components: Count = 8
    """Normals in a mixture."""
    num_couplings: Count = 4
    """Affine couplings in a flow."""


@dataclass(frozen=True)
class Model:
    system: Literal[
        "lom-genesis-v2", "genesis-v2", "lom-emorl", "emorl", "autoregressive-emorl", "scene-autoregressive-emorl"
    ] = "lom-genesis-v2"
    """A LOM with its orderless model; an orderless model alone; or one with an autoregressive slot prior, without or
    with a scene latent (A.5, Models 7 and 8)."""
    num_slots: Slots = 7
    """K: objects and pieces of background that a scene can hold (A.4.1)."""
    slot_dim: Count = 64
    """Dz (A.4.1)."""
    likelihood: Literal["gaussian", "mixture"] = "gaussian"
    """p(x | z): normal around the sum of the slots (Eq. 3), or at each pixel and channel a mixture over them."""
    image_scale: Positive = 0.7
    """sigma, the standard deviation of the likelihood, for images in [0, 1] (A.4.1)."""

    encoder: Literal["published", "compact"] = "published"
    """The orderless model's own networks, or small ones with short cuts for small images and short trainings
    (departure)."""
    encoder_width: Width = 64
    """Channels of the encoder at its full resolution."""
    num_refinements: Count = 2
    """Steps of EMORL's iterative refinement (A.4.1)."""
    decoder: Literal["deconvolution", "broadcast", "separable"] = "deconvolution"
    """GENESIS-v2's deconvolutions, EMORL's broadcast decoder, or a small decoder for small images (departure)."""
    decoder_width: Width = 64
    """Channels, or units, of a decoder's layers."""

    scene_dim: Count = 128
    """Ds (A.4.1)."""
    scene_prior: ScenePrior = ScenePrior()
    slot_prior: Literal["ordered", "bag-of-words"] = "ordered"
    """p(z_k | h_k), with h_k from a causal Transformer f, or with every h_k = s (3.1)."""
    scene_pooling: Literal["sum", "token"] = "sum"
    """What g reads off its K+1 outputs: their sum, or the last, that of its own token (Fig. 5b)."""
    num_encoder_blocks: Natural = 3
    """Self-attention blocks of the scene encoder g (A.1)."""
    num_order_blocks: Natural = 2
    """Self-attention blocks of f and of f' (A.5, Model 0)."""
    order_aware_scales: bool = True
    """Ordered slots have scales of their own, from f', or else those of the orderless posterior (3.2; A.5, Model 5)."""
    shared_order_nets: bool = False
    """f' has the weights of f (A.5, Model 6)."""
    transformer_width: Count = 64
    """Features of a token in g, f and f'; the slot dimension in the paper (A.1)."""
    transformer_mlp_ratio: Count = 1
    """Hidden units of their perceptrons for each feature of a token; 1 in the paper (A.1)."""
    matching: Literal["greedy", "hungarian"] = "greedy"
    """How orderless slots are matched to the prior's order (Algorithm 1, A.2)."""


@dataclass(frozen=True)
class Geco:
    rule: Literal["multiplicative", "additive"] = "multiplicative"
    """GENESIS's, whose multiplier is on the KL, or EMORL's, where softplus of the parameter is on the error (A.4.2)."""
    target: Real = -0.353
    """Error to reach, nats per pixel and channel without (1/2) log 2 pi (A.4.2); see target_rmse."""
    target_rmse: Positive | None = None
    """The same as a root mean squared error, used instead when given."""
    step_size: NotNegative = 1e-6
    """Of the parameter's update (A.4.2); GENESIS's is at 64x64, and times 64^2 / image_size^2, unless goal_relative."""
    speedup: Positive = 10.0
    """Factor on the step once the target is reached."""
    initial: Positive = 1.0
    """First parameter: the multiplier, or what softplus makes one of."""
    minimum: Positive = 1e-10
    """Lower bound of the parameter."""
    maximum: Positive = 1e10
    """Upper bound of the parameter."""
    warm_start: Natural = 0
    """Steps before the rule sets in, with a plain ELBO under the additive rule."""
    goal_relative: bool = False
    """Constraint relative to the target and clamped to [-1, 1] (departure for short trainings)."""


@dataclass(frozen=True)
class Train:
    steps: Count = 500_000
    """Optimiser steps (A.4.3)."""
    batch_size: Count = 32
    """Scenes a step on each device (A.4.3)."""
    learning_rate: Positive = 1e-4
    """Of Adam (A.4.1)."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate grows from 0."""
    decay: Literal["none", "linear", "halving"] = "none"
    """Of the learning rate: none, to a fiftieth over the second half, or by a half every 100,000 steps."""
    clip_norm: Positive | None = None
    """Largest norm of the gradient of all parameters together."""
    orderless_first: Share = 0.0
    """Share of the steps that trains the orderless pair alone, after which it stands still; 0 trains both at once, as
    in the paper. The stop-gradient makes this another schedule, not another objective (departure)."""
    ordered_batch_size: Count | None = None
    """Scenes a step after the orderless pair was trained first; batch_size when not given."""
    ordered_learning_rate: Positive | None = None
    """Of Adam after the orderless pair was trained first; learning_rate when not given."""
    ordered_rendered: Count | None = None
    """Scenes of an ordered batch whose images are decoded and scored; all when not given. KLs use every scene."""
    orderless_free_nats_per_dim: NotNegative = 0.0
    """lambda / Dz: floor of each KL of the orderless model's; EMORL's is 0.75 (A.4.2)."""
    free_nats_per_dim: NotNegative = 0.25
    """lambda / Ds: floor of the KL of each scene, in nats per dimension of s (Eq. 26, A.4.2)."""
    final_free_nats_per_dim: NotNegative = 0.167
    """The floor in the last steps (A.4.2)."""
    final_steps: Natural = 25_000
    """How many last steps use it (A.4.2)."""
    geco: Geco = Geco()
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Of arithmetic: float32, or bfloat16 where it is safe; a CPU without bfloat16 is a hundred times slower at it."""
    log_every: Count = 100
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: Count = 5000
    """Steps between two checkpoints."""
    preview_every: Natural = 10_000
    """Steps between two sets of pictures; 0 for none before the end."""


@dataclass(frozen=True)
class Config:
    preset: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress]
    """Name of the preset that the other values were taken from."""
    seed: Seed = 0
    """Of initialisation, minibatches and noise."""
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values, as `config.json` keeps them."""
    return dataclasses.asdict(config)


def from_dict(values: Any, kind: type = Config, place: str = "config.json") -> Any:
    """The dataclass that `to_dict` made `values` from.

    A field that an older version did not have takes its default, which has to be what that version did.

    Raises:
        UserError: a field is unknown, of another type, or missing and without a default; names it.
    """
    hints, given = get_type_hints(kind), {}
    required = {field.name for field in dataclasses.fields(kind) if _is_required(field)}
    if not isinstance(values, dict) or not required <= set(values) <= set(hints):
        found = repr(values)
        if isinstance(values, dict):
            found = ", ".join(sorted(set(values) - set(hints) | required - set(values)))
        raise UserError(f"{place} was not written by this version: it differs in {found}")
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = from_dict(value, hint, f"{place}: {name}")
        elif not _fits(value, hint):
            raise UserError(f"{place}: {name} is {value!r}, not of its type; restore what the run wrote there")
        given[name] = value
    return kind(**given)


def check(config: Config) -> None:
    """Refuse numbers that make no sense, whatever the data.

    Raises:
        UserError: names the option, its value and what it must be.
    """
    check_bounds(config)
    model, geco = config.model, config.train.geco
    if model.shared_order_nets and model.slot_prior != "ordered":
        raise UserError(
            f"--model.shared-order-nets shares f, and --model.slot-prior {model.slot_prior} has none: drop one"
        )
    if model.shared_order_nets and not model.order_aware_scales:
        raise UserError("--model.shared-order-nets shares f', and --model.no-order-aware-scales has none: drop one")
    if not geco.minimum <= geco.initial <= geco.maximum:
        raise UserError(
            f"--train.geco.initial is {geco.initial}: it must lie between --train.geco.minimum, which is "
            f"{geco.minimum}, and --train.geco.maximum, which is {geco.maximum}"
        )


def check_bounds(options: Any) -> None:
    """Refuse values outside of the bounds that a dataclass of options declares.

    Raises:
        UserError: names the option, its value and what it must be.
    """
    for name, value, hint in _fields(options):
        for bound, one in product(_bounds(hint), value if isinstance(value, tuple) else (value,)):
            if one is not None and not bound.holds(one):
                raise UserError(f"--{name} is {one}: it must be {bound.words}")


def overrides(config: Any, default: Any) -> list[str]:
    """The options that make one configuration of another."""
    words = []
    for (name, value, _), (_, base, _) in zip(_fields(config), _fields(default), strict=True):
        section, _, field = f"--{name}".rpartition(".")
        if value is False and base is True:
            words += [f"{section}.no-{field}" if section else f"--no-{name}"]
        elif value != base:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Option name, value and annotation of every field, nested ones included."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        option, value = prefix + name.replace("_", "-"), getattr(config, name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{option}.")
        else:
            yield option, value, hint


def _bounds(hint: Any) -> list[Bound]:
    """Those of an annotation, of either side of `X | None`, or of what a tuple holds."""
    parts = (hint, *get_args(hint))
    return [item for part in parts for item in getattr(part, "__metadata__", ()) if isinstance(item, Bound)]


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):  # X | None
        return any(_fits(value, part) for part in get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)
