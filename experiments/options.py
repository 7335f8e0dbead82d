"""Error messages of `fit.py` for options with old names and options of another system."""

from experiments.config import Config, option_fields
from experiments.systems import PRESETS
from pyro_lom.errors import UserError

_RENAMED = {
    "train.orderless-free-nats-per-dim": ["model.orderless.free-nats-per-dim", "model.free-nats-per-dim"],
    "train.free-nats-per-dim": ["model.free-nats.per-dim"],
    "train.final-free-nats-per-dim": ["model.free-nats.final-per-dim"],
    "train.final-steps": ["model.free-nats.final-steps"],
}
"""Old names of options, and their new names in different systems."""
_MOVED = {
    "model.orderless": ("encoder", "encoder-width", "num-refinements"),
    "model.schedule": ("orderless-first", "ordered-batch-size", "ordered-learning-rate", "ordered-rendered"),
}


def refuse_foreign_options(arguments: list[str], config: Config) -> None:
    """Raise UserError for an option `--model.*` or `--train.*` that has a new name or belongs to other systems.

    The message contains the option, and its new name or the systems that have it. Unknown options raise no error.
    """
    own = _names(config)
    for name in sorted(named(arguments)):
        if not name.startswith(("model.", "train.")) or name in own:
            continue
        if name == "model.system":
            raise UserError("--model.system does not exist any more: name a preset of the system")
        field = name.rpartition(".")[2]
        new_names = _RENAMED.get(name) or [f"{section}.{field}" for section in _MOVED if field in _MOVED[section]]
        if name.startswith("train.geco."):
            new_names = [name.replace("train", "model", 1)]
        for new_name in new_names:
            if new_name in own:
                raise UserError(f"--{name} is now called --{new_name}")
        homes = _homes({name}) or _homes(set(new_names))
        if homes:
            raise UserError(f"--{name} is no option of {config.preset}: it belongs to the systems {', '.join(homes)}")


def named(arguments: list[str]) -> set[str]:
    """Return the names of the options in a command's arguments, without dashes in front."""
    options = (argument for argument in arguments if argument.startswith("--"))
    return {option.partition("=")[0].removeprefix("--").replace("_", "-") for option in options}


def _homes(names: set[str]) -> list[str]:
    """Return the kinds of systems that have one of these options."""
    return sorted({config.model.kind for config in PRESETS.values() if names & _names(config)})


def _names(config: Config) -> set[str]:
    """Return the options of a configuration; flags also have a negated name."""
    names = {name: value for name, value, _ in option_fields(config)}
    flags = (name.rpartition(".") for name, value in names.items() if isinstance(value, bool))
    return {*names, *(f"{section}.no-{field}" for section, _, field in flags)}
