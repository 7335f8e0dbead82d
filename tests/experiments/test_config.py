"""A configuration survives its JSON, and numbers that make no sense are refused by name."""

import dataclasses
import json
import math
import re

import pytest

from experiments.config import Bound, Config, bounds, from_dict, option_fields, to_dict
from experiments.systems import PRESETS, SYSTEMS, check, preset
from experiments.systems.lom import Lom
from pyro_lom.errors import UserError
from pyro_lom.training.runs import Run


@pytest.fixture
def values():
    return to_dict(preset("demo"))


def read(values, **options):
    return from_dict(values, SYSTEMS, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_a_configuration_comes_back_from_json(name):
    config = preset(name)
    found = read(json.loads(json.dumps(to_dict(config))))
    assert found == config
    assert type(found.model) is type(config.model)


@pytest.mark.parametrize("name", PRESETS)
def test_the_kind_of_system_is_stored_and_no_module(name):
    values, config = to_dict(preset(name)), preset(name)
    assert values["model"]["kind"] == config.model.kind
    if hasattr(config.model, "orderless"):
        assert values["model"]["orderless"]["kind"] == config.model.orderless.kind
    assert "experiments" not in json.dumps(values)


def test_kinds_of_systems_differ():
    kinds = [system.kind for system in SYSTEMS]
    assert len(set(kinds)) == len(kinds)


@pytest.mark.parametrize(
    "place",
    [(), ("data",), ("train",), ("model",), ("model", "geco"), ("model", "scene_prior"), ("model", "orderless")],
)
def test_unknown_fields_are_named(values, place):
    section = values
    for name in place:
        section = section[name]
    where = "".join(f": {name}" for name in place)
    section |= {"colour": "red"}
    with pytest.raises(UserError, match=f"^config.json{where} was not written by this version: it differs in colour$"):
        read(values)


def test_fields_of_a_later_version_take_their_defaults(values):
    del values["model"]["likelihood"], values["model"]["geco"]["goal_relative"]
    found = read(values)
    assert (found.model.likelihood, found.model.geco.goal_relative) == ("gaussian", False)


def test_what_has_no_default_is_missed(values):
    without = {name: value for name, value in values.items() if name != "preset"}
    with pytest.raises(UserError, match="^config.json was not written by this version: it differs in preset$"):
        read(without)
    del values["model"]
    with pytest.raises(UserError, match="^config.json was not written by this version: it differs in model$"):
        read(values)


def test_a_whole_number_is_a_number(values):
    values["train"]["clip_norm"] = 10
    assert read(values).train.clip_norm == 10


@pytest.mark.parametrize("wrong", [[], "text", None, 3])
def test_sections_of_another_kind(values, wrong):
    complaint = rf"is {re.escape(repr(wrong))}, not an object; restore what the run wrote there$"
    with pytest.raises(UserError, match=f"^runs/7/config.json {complaint}"):
        read(wrong, place="runs/7/config.json")
    for name in ("train", "model"):
        with pytest.raises(UserError, match=f"^config.json: {name} {complaint}"):
            read(values | {name: wrong})
    values["model"]["geco"] = wrong
    with pytest.raises(UserError, match=f"^config.json: model: geco {complaint}"):
        read(values)


@pytest.mark.parametrize("kind", ["monet", "experiments.systems.lom.Lom", "", None, 3, ["lom"]])
def test_a_system_that_is_not_there(values, kind):
    values["model"]["kind"] = kind
    with pytest.raises(UserError) as refusal:
        read(values)
    line = (
        f"config.json: model: there is no system {kind!r}; pass its class by systems=[...], or its module by --systems"
    )
    assert str(refusal.value) == line


def test_a_part_of_another_kind(values):
    values["model"]["orderless"]["kind"] = "slot-attention"
    with pytest.raises(
        UserError,
        match="^config.json: model: orderless: kind is 'slot-attention', not one of genesis-v2, ",
    ):
        read(values)


OLDER = {  # as it was before systems had options of their own
    "preset": "lom-genesis-v2-towers",
    "seed": 0,
    "data": {"path": "data/towers.h5", "image_size": 32},
    "model": {"system": "lom-genesis-v2", "num_slots": 5, "scene_prior": {"kind": "normal"}, "matching": "greedy"},
    "train": {"steps": 9000, "orderless_first": 0.29, "geco": {"rule": "multiplicative", "target_rmse": 0.028}},
}


@pytest.mark.parametrize("system", ["lom-genesis-v2", "genesis-v2", "emorl", "scene-autoregressive-emorl"])
def test_a_configuration_of_the_older_format_is_refused(system):
    older = OLDER | {"model": OLDER["model"] | {"system": system}}
    with pytest.raises(UserError) as refusal:
        read(older, place="runs/7/config.json")
    line = "runs/7/config.json: model was written by an older version, whose runs cannot be read: train it again"
    assert str(refusal.value) == line


@pytest.mark.parametrize("option", [[], ["--dry-run"]], ids=" ".join)
def test_a_run_of_the_older_format_is_refused_by_the_command(option, refused, tmp_path):
    run = Run.create(tmp_path, "old", OLDER)
    line = refused("--resume", run.folder, *option)
    assert line.startswith(f"{run.folder}/config.json: model was written by an older version, ")


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
        ("train", "decay", "sudden"),
        ("model", "matching", "lucky"),
        ("model", "matching", ["greedy"]),
        ("model", "order_aware_scales", 1),
        ("model: schedule", "ordered_batch_size", 1.5),
        ("model: geco", "rule", None),
        ("model: orderless", "encoder", "small"),
        ("data", "path", 3),
    ],
)
def test_values_of_another_type_are_named(values, section, name, value):
    place = values
    for part in section.split(": "):
        place = place[part]
    place[name] = value
    with pytest.raises(UserError) as refusal:
        read(values)
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


def numbers(config):
    return [(option, value) for option, value, _ in option_fields(config) if type(value) in (int, float)]


EXAMPLES = {preset(name).model.kind: preset(name) for name in PRESETS}  # a configuration of each system


@pytest.mark.parametrize(
    ("kind", "option", "number"),
    [(kind, *found) for kind, config in EXAMPLES.items() for found in numbers(config)],
)
def test_every_number_has_bounds(kind, option, number):
    never = [-1] if type(number) is int else [-math.inf, math.inf, math.nan]
    for value in never:
        with pytest.raises(UserError, match=f"^--{option} is {value}: it must be [a-z0-9]"):
            check(changed(option, value, EXAMPLES[kind]))


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("seed", [0, 2**32 - 1], [-1, 2**32]),
        ("train.steps", [1], [0]),
        ("train.batch-size", [1], [0]),
        ("model.schedule.ordered-batch-size", [None, 1], [0]),
        ("model.schedule.ordered-rendered", [None, 1], [0]),
        ("train.warmup-steps", [0], [-1]),
        ("train.preview-every", [0, 7], [-1]),
        ("train.learning-rate", [1e-9, 1.0], [0.0]),
        ("train.clip-norm", [None, 1e-9], [0.0, -1.0, math.nan]),
        ("model.schedule.orderless-first", [0.01, 0.99], [1.0, 1.5, -0.1]),
        ("model.geco.step-size", [0.0], [-1e-9]),
        ("model.geco.target-rmse", [0.1], [0.0, -0.1]),
        ("model.orderless.encoder-width", [8, 24], [0, 12, -8]),
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
        UserError, match=f"^--model.geco.initial is {initial}: it must lie between --model.geco.minimum"
    ):
        check(changed("model.geco.initial", initial))


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
    assert {len(bounds(hint)) for _, _, hint in option_fields(preset("demo"))} == {0, 1}
    assert all(isinstance(bound, Bound) for _, _, hint in option_fields(preset("demo")) for bound in bounds(hint))
    assert "model.geco.target-rmse" in {option for option, _, hint in option_fields(preset("demo")) if bounds(hint)}


def test_configurations_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config("demo", model=Lom()).seed = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("demo").model.num_slots = 3
