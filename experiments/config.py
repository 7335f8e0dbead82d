"""The configuration of a run: frozen dataclasses of plain values, their bounds, and their JSON.

The options of a system are dataclasses of `experiments/systems/`. Units: RMSE per pixel and channel for images in
[0, 1]; other losses in nats per scene. Section numbers refer to the paper.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

from pyro_lom.errors import UserError


class Bound(NamedTuple):
    """The values that a number may have. `check_bounds` raises an error for others."""

    words: str
    holds: Callable[[float], bool]


Count = Annotated[int, Bound("1 or more", lambda number: number >= 1)]
NumSlots = Annotated[int, Bound("from 2 to 64", lambda number: 2 <= number <= 64)]
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
    """HDF5 file or folder of images. data/towers.h5 and data/towers-64.h5 are rendered if missing or damaged."""
    image_size: Count = 32
    """Height and width in pixels. Images of a folder are cropped and resized to it; images of a file must have it."""


@dataclass(frozen=True)
class Train:
    steps: Count = 500_000
    """Optimiser steps (A.4.3)."""
    batch_size: Count = 32
    """Scenes per step on each device (A.4.3)."""
    learning_rate: Positive = 1e-4
    """Learning rate of Adam (A.4.1)."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate grows from 0."""
    decay: Literal["none", "linear", "halving"] = "none"
    """Decay of the learning rate: none; linear to 1/50 in the second half; or halving every 100,000 steps."""
    clip_norm: Positive | None = None
    """Norm to which the gradient of all parameters together is clipped; None does not clip."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """float32, or bfloat16 in networks, which is a hundred times slower on a CPU without bfloat16 instructions."""
    log_every: Count = 100
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: Count = 5000
    """Steps between two checkpoints."""
    preview_every: Natural = 10_000
    """Steps between two sets of pictures; with 0, pictures are drawn only at the end."""


Model = TypeVar("Model")


@dataclass(frozen=True)
class Config(Generic[Model]):
    """The configuration of one training run. `model` contains the options of the system."""

    preset: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress]
    """Name of the preset that defines the defaults."""
    model: Model
    seed: Seed = 0
    """Seed of initialisation, minibatches and noise."""
    data: Data = Data()
    train: Train = Train()


def to_dict(options: Any) -> dict[str, Any]:
    """Return the values of a dataclass as in `config.json`; `kind` identifies the class of a system's options."""
    kind = {"kind": options.kind} if hasattr(options, "kind") else {}
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return kind | {name: to_dict(v) if dataclasses.is_dataclass(v) else v for name, v in values.items()}


def from_dict(values: Any, systems: Iterable[type], kind: Any = Config, place: str = "config.json") -> Any:
    """Invert `to_dict`. `systems` are the classes of options that `model` may have.

    A missing field has its default, so the default of a new field must reproduce the behaviour before it existed.

    Raises:
        UserError: `kind` is missing or not in `systems`, or a field is unknown, of another type, or missing without a
            default. The message contains its name.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place} is {values!r}, not an object; restore what the run wrote there")
    choices = systems if isinstance(kind, TypeVar) else get_args(kind)
    if choices:
        named = {choice.kind: choice for choice in choices}
        if "kind" not in values:
            raise UserError(f"{place} was written by an older version, whose runs cannot be read: train it again")
        if (system := values["kind"]) not in list(named):
            raise UserError(
                f"{place}: there is no system {system!r}; pass its class by systems=[...], or its module by --systems"
            )
        kind, values = named[system], {name: value for name, value in values.items() if name != "kind"}
    hints, given = get_type_hints(kind), {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is field.default_factory}
    if not required <= set(values) <= set(fields):
        found = ", ".join(sorted(set(values) - set(fields) | required - set(values)))
        raise UserError(f"{place} was not written by this version: it differs in {found}")
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, TypeVar) or any(map(dataclasses.is_dataclass, (hint, *get_args(hint)))):
            value = from_dict(value, systems, hint, f"{place}: {name}")
        elif get_origin(hint) is tuple and isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
        elif not _fits(value, hint):
            raise UserError(f"{place}: {name} is {value!r}, not of its type; restore what the run wrote there")
        given[name] = value
    return kind(**given)


def check_bounds(options: Any) -> None:
    """Raise UserError, with option, value and bound, if a value is outside of the bounds of its annotation."""
    for name, value, hint in option_fields(options):
        for bound, one in product(_bounds(hint), value if isinstance(value, tuple) else (value,)):
            if one is not None and not bound.holds(one):
                raise UserError(f"--{name} is {one}: it must be {bound.words}")


def overrides(config: Any, default: Any) -> list[str]:
    """Return the command-line options that change `default` to `config`."""
    words = []
    for (name, value, _), (_, base, _) in zip(option_fields(config), option_fields(default), strict=True):
        section, _, field = f"--{name}".rpartition(".")
        if value is False and base is True:
            words += [f"{section}.no-{field}" if section else f"--no-{name}"]
        elif value != base:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [f"--{name}", *map(str, values)]
    return words


def option_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield option name, value and annotation of every field, including nested fields."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        option, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from option_fields(value, f"{option}.")
        else:
            yield option, value, hints[field.name]


def _bounds(hint: Any) -> list[Bound]:
    """Return the bounds of an annotation, also inside of `X | None` and of tuples."""
    parts = (hint, *get_args(hint))
    return [item for part in parts for item in getattr(part, "__metadata__", ()) if isinstance(item, Bound)]


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):  # X | None
        return any(_fits(value, part) for part in get_args(hint))
    return type(value) is hint or (hint is float and type(value) is int)
