"""A configuration survives its JSON, and numbers that make no sense are refused by name."""

import dataclasses
import json
import math

import pytest

from experiments.config import Bound, Config, _bounds, _fields, check, from_dict, to_dict
from experiments.presets import PRESETS, preset
from pyro_lom.errors import UserError


@pytest.fixture
def values():
    return to_dict(preset("demo"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_comes_back_from_json(name):
    config = preset(name)
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("place", [(), ("train",), ("train", "geco"), ("model", "scene_prior")])
def test_unknown_fields_are_named(values, place):
    section = values
    for name in place:
        section = section[name]
    where = "".join(f": {name}" for name in place)
    section |= {"colour": "red"}
    with pytest.raises(UserError, match=f"^config.json{where} was not written by this version: it differs in colour$"):
        from_dict(values)


def test_fields_of_a_later_version_take_their_defaults(values):
    del values["model"]["likelihood"], values["train"]["geco"]["goal_relative"]
    found = from_dict(values)
    assert (found.model.likelihood, found.train.geco.goal_relative) == ("gaussian", False)


def test_what_has_no_default_is_missed(values):
    del values["preset"]
    with pytest.raises(UserError, match="^config.json was not written by this version: it differs in preset$"):
        from_dict(values)


def test_a_whole_number_is_a_number(values):
    values["train"]["clip_norm"] = 10
    assert from_dict(values).train.clip_norm == 10


@pytest.mark.parametrize("wrong", [[], "text", None, 3])
def test_sections_of_another_kind(values, wrong):
    with pytest.raises(UserError, match="^runs/7/config.json was not written by this version: it differs in "):
        from_dict(wrong, place="runs/7/config.json")
    values["model"] = wrong
    with pytest.raises(UserError, match="^config.json: model was not written by this version: it differs in "):
        from_dict(values)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("train", "steps", "6000"),
        ("train", "steps", 10.5),
        ("train", "steps", True),
        ("train", "steps", None),
        ("train", "learning_rate", "fast"),
        ("train", "learning_rate", False),
        ("train", "clip_norm", "none"),
        ("train", "ordered_batch_size", 1.5),
        ("train", "decay", "sudden"),
        ("model", "system", "lom"),
        ("model", "system", ["lom-genesis-v2"]),
        ("data", "path", 3),
    ],
)
def test_values_of_another_type_are_named(values, section, name, value):
    values[section][name] = value
    with pytest.raises(UserError) as refusal:
        from_dict(values)
    assert str(refusal.value).startswith(f"config.json: {section}: {name} is {value!r}, not of its type;")


# Numbers.


def changed(option, value, config=None):
    """The demo's configuration with one option changed, `option` written as on the command line."""
    config = preset("demo") if config is None else config
    name, _, rest = option.replace("-", "_").partition(".")
    return dataclasses.replace(config, **{name: changed(rest, value, getattr(config, name)) if rest else value})


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes(name):
    check(preset(name))


NUMBERS = {option: value for option, value, _ in _fields(preset("demo")) if type(value) in (int, float)}


@pytest.mark.parametrize("option", sorted(NUMBERS))
def test_every_number_has_bounds(option):
    never = [-1] if type(NUMBERS[option]) is int else [-math.inf, math.inf, math.nan]
    for value in never:
        with pytest.raises(UserError, match=f"^--{option} is {value}: it must be [a-z0-9]"):
            check(changed(option, value))


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("seed", [0, 2**32 - 1], [-1, 2**32]),
        ("train.steps", [1], [0]),
        ("train.batch-size", [1], [0]),
        ("train.ordered-batch-size", [None, 1], [0]),
        ("train.warmup-steps", [0], [-1]),
        ("train.preview-every", [0, 7], [-1]),
        ("train.learning-rate", [1e-9, 1.0], [0.0]),
        ("train.clip-norm", [None, 1e-9], [0.0, -1.0, math.nan]),
        ("train.orderless-first", [0.0, 0.99], [1.0, 1.5, -0.1]),
        ("train.geco.step-size", [0.0], [-1e-9]),
        ("train.geco.target-rmse", [None, 0.1], [0.0, -0.1]),
        ("model.encoder-width", [8, 24], [0, 12, -8]),
        ("model.num-encoder-blocks", [0], [-1]),
    ],
)
def test_bounds(option, good, bad):
    for value in good:
        check(changed(option, value))
    for value in bad:
        with pytest.raises(UserError, match=f"^--{option} is {value}: it must be "):
            check(changed(option, value))


@pytest.mark.parametrize("initial", [0.001, 2.0])
def test_the_multiplier_starts_within_its_bounds(initial):
    with pytest.raises(
        UserError, match=f"^--train.geco.initial is {initial}: it must lie between --train.geco.minimum"
    ):
        check(changed("train.geco.initial", initial))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (dict(slot_prior="bag-of-words"), "shares f, and --model.slot-prior bag-of-words has none: drop one"),
        (dict(order_aware_scales=False), "shares f', and --model.no-order-aware-scales has none: drop one"),
    ],
)
def test_only_what_is_there_can_be_shared(options, line):
    model = dataclasses.replace(preset("demo").model, shared_order_nets=True)
    check(dataclasses.replace(preset("demo"), model=model))
    with pytest.raises(UserError, match=f"^--model.shared-order-nets {line}$"):
        check(dataclasses.replace(preset("demo"), model=dataclasses.replace(model, **options)))


def test_bounds_are_found_in_every_spelling():
    assert {len(_bounds(hint)) for _, _, hint in _fields(preset("demo"))} == {0, 1}
    assert all(isinstance(bound, Bound) for _, _, hint in _fields(preset("demo")) for bound in _bounds(hint))
    assert "train.geco.target-rmse" in {option for option, _, hint in _fields(preset("demo")) if _bounds(hint)}


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config("demo").seed = 3
