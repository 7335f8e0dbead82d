"""The configuration of a run: frozen dataclasses of plain values, their bounds, and their JSON.

The options of a system are dataclasses of `experiments/systems/`. Units: RMSE per pixel and channel for images in
[0, 1]; other losses in nats per scene. Section numbers refer to the paper.
"""

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec
import tyro

from pyro_lom.errors import UserError
from pyro_lom.training.phase import Decay


class Bound(NamedTuple):
    """The values that an option may have. `check_bounds` and `from_dict` raise an error for others."""

    words: str
    holds: Callable[[Any], bool]


def within(low: int, high: int, unit: str = "") -> Bound:
    """Return the bound of a whole number."""
    return Bound(f"from {low} to {high}{unit and ' '}{unit}", lambda number: low <= number <= high)


_LARGEST = 1e30  # well within float32

Count = Annotated[int, within(1, 10**9)]
Natural = Annotated[int, within(0, 10**9)]
Seed = Annotated[int, within(0, 2**32 - 1)]
NumSlots = Annotated[int, within(2, 64)]
ImageSize = Annotated[int, within(1, 1024, "pixels")]
Size = Annotated[int, within(1, 1024)]
"""Number of dimensions, units or components."""
Width = Annotated[
    int,
    Bound("a multiple of 8 up to 1024, as channels are normalised in 8 groups", lambda n: 0 < n <= 1024 and n % 8 == 0),
]
Depth = Annotated[int, within(0, 64)]
"""Number of blocks or layers."""
Processes = Annotated[int, within(1, 256)]
Real = Annotated[float, Bound("a finite number, at most 1e30", lambda number: abs(number) <= _LARGEST)]
Positive = Annotated[float, Bound("a finite number above 0, at most 1e30", lambda number: 0 < number <= _LARGEST)]
NotNegative = Annotated[float, Bound("a finite number, 0 or more, at most 1e30", lambda n: 0 <= n <= _LARGEST)]
Share = Annotated[float, Bound("0 or more and below 1", lambda number: 0 <= number < 1)]
Name = Annotated[
    str,
    Bound("1 to 100 printable characters without /", lambda n: 0 < len(n) <= 100 and n.isprintable() and "/" not in n),
]
"""Part of the name of a run folder."""
Fit = Literal["crop", "pad"]
PathName = Annotated[str, Bound("a path of 1 to 4000 characters", lambda n: 0 < len(n) <= 4000 and "\0" not in n)]


@dataclass(frozen=True)
class Data:
    path: PathName = "data/towers.h5"
    """HDF5 file or folder of images. data/towers.h5 and data/towers-64.h5 are rendered if missing."""
    image_size: ImageSize = 32
    """Height and width in pixels, to which images of another size are brought."""
    fit: Fit = "crop"
    """How images of another size are brought to it: cropped about the centre, or padded with black, and resized."""


@dataclass(frozen=True)
class Train:
    steps: Count = 500_000
    """Optimiser steps (A.4.3)."""
    batch_size: Count = 32
    """Scenes per step on each device (A.4.3)."""
    learning_rate: Positive = 1e-4
    """Learning rate (A.4.1)."""
    optimizer: Literal["adam", "rmsprop", "adamax"] = "adam"
    """Optimiser; the averages of all three decay as in PyTorch by default."""
    eps: Positive = 1e-8
    """Number that the optimiser adds to its denominators; NVAE's Adamax has 1e-3."""
    weight_decay: NotNegative = 0.0
    """Factor of the squared norm of the parameters, of which a half is added to the loss."""
    warmup_steps: Natural = 0
    """Steps over which the learning rate grows from 0."""
    decay: Decay = "none"
    """Decay of the learning rate: none; linear to 1/50 in the second half; halving every 100,000 steps; or cosine,
    by half a cosine to 1/100."""
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
_RESTORE = "restore what the run wrote there"


@dataclass(frozen=True)
class Config(Generic[Model]):
    """The configuration of one training run. `model` contains the options of the system."""

    preset: Annotated[Name, tyro.conf.Fixed, tyro.conf.Suppress]
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
        UserError: `kind` is missing or unknown, or a field is unknown, of another type, out of bounds, or missing
            without a default. The message contains its name.
    """
    if not isinstance(values, dict):
        raise UserError(f"{place} is {reprlib.repr(values)}, not an object; {_RESTORE}")
    of_system = isinstance(kind, TypeVar)
    if choices := {choice.kind: choice for choice in (systems if of_system else get_args(kind))}:
        if "kind" not in values:
            raise UserError(f"{place} was written by an older version, whose runs cannot be read: train it again")
        if (found := values["kind"]) not in list(choices):
            if of_system:
                remedy = "pass its class by systems=[...], or its module by --systems"
                raise UserError(f"{place}: there is no system {reprlib.repr(found)}; {remedy}")
            raise UserError(f"{place}: kind is {reprlib.repr(found)}, not one of {', '.join(choices)}; {_RESTORE}")
        kind, values = choices[found], {name: value for name, value in values.items() if name != "kind"}
    hints, given = get_type_hints(kind, include_extras=True), {}
    fields = {field.name: field for field in dataclasses.fields(kind)}
    required = {name for name, field in fields.items() if field.default is field.default_factory}
    if not required <= set(values) <= set(fields):
        differ = ", ".join(sorted(set(values) - set(fields) | required - set(values)))
        raise UserError(f"{place} was not written by this version: it differs in {differ}")
    for name, value in values.items():
        hint = hints[name]
        if isinstance(hint, TypeVar) or any(map(dataclasses.is_dataclass, (hint, *get_args(hint)))):
            given[name] = from_dict(value, systems, hint, f"{place}: {name}")
            continue
        try:
            given[name] = msgspec.convert(value, hint)
        except msgspec.ValidationError:
            raise UserError(f"{place}: {name} is {reprlib.repr(value)}, not of its type; {_RESTORE}") from None
        check_value(f"{place}: {name}", given[name], hint)
    return kind(**given)


def check_bounds(options: Any) -> None:
    """Raise UserError, with option, value and bound, if a value is outside of the bounds of its annotation."""
    for name, value, hint in option_fields(options):
        check_value(f"--{name}", value, hint)


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raise UserError, with name, value and bound, if a value, or a value of a tuple, is outside of the bounds."""
    for bound, one in product(bounds(hint), value if isinstance(value, tuple) else (value,)):
        if one is not None and not bound.holds(one):
            raise UserError(f"{name} is {one!r}: it must be {bound.words}")


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


def bounds(hint: Any) -> list[Bound]:
    """Return the bounds of an annotation, also inside of `X | None` and of tuples."""
    parts = (hint, *get_args(hint))
    return [item for part in parts for item in getattr(part, "__metadata__", ()) if isinstance(item, Bound)]
