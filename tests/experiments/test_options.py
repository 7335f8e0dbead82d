"""Every option belongs to a system and has an effect there; old options and those of other systems are refused."""

import dataclasses
from typing import Literal, get_args, get_origin

import pytest
import torch
from tiny import some_slow
from torch import nn

from experiments.config import Count, NumSlots, option_fields, overrides
from experiments.fit import parse
from experiments.options import refuse_foreign_options
from experiments.systems import PRESETS, build, check, preset
from experiments.training.optimizers import optimizer
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective

GECO = ("rule", "target", "target-rmse", "step-size", "speedup", "initial", "minimum", "maximum", "warm-start")
SCHEDULE = ("orderless-first", "ordered-batch-size", "ordered-learning-rate")

OF_GECO = {f"train.geco.{name}": f"model.geco.{name}" for name in (*GECO, "goal-relative", "no-goal-relative")}
OF_SCHEDULES = {f"train.{name}": f"model.schedule.{name}" for name in SCHEDULE}
OF_SCENES = {
    "train.free-nats-per-dim": "model.free-nats.per-dim",
    "train.final-free-nats-per-dim": "model.free-nats.final-per-dim",
    "train.final-steps": "model.free-nats.final-steps",
}
OF_LOMS = {"train.ordered-rendered": "model.schedule.ordered-rendered"}
OF_INFERENCE = {
    "model.encoder": "model.orderless.encoder",
    "model.encoder-width": "model.orderless.encoder-width",
    "train.orderless-free-nats-per-dim": "model.orderless.free-nats-per-dim",
}
OF_EMORL = {"model.num-refinements": "model.orderless.num-refinements"}
ALONE = {"train.orderless-free-nats-per-dim": "model.free-nats-per-dim"}

RENAMED = {  # by preset: old names of options, and their new names there
    "genesis-v2-towers": OF_GECO | ALONE,
    "emorl-towers": OF_GECO | ALONE,
    "demo": OF_GECO | OF_SCHEDULES | OF_SCENES | OF_LOMS | OF_INFERENCE,
    "lom-emorl-towers": OF_GECO | OF_SCHEDULES | OF_SCENES | OF_LOMS | OF_INFERENCE | OF_EMORL,
    "ablation-7-towers": OF_GECO | OF_SCHEDULES | OF_INFERENCE | OF_EMORL,
    "ablation-8-towers": OF_GECO | OF_SCHEDULES | OF_SCENES | OF_INFERENCE | OF_EMORL,
}
OLD = {
    *(f"train.{name}" for name in ("steps", "batch-size", "learning-rate", "warmup-steps", "decay", "clip-norm")),
    *(f"train.{name}" for name in ("precision", "log-every", "checkpoint-every", "preview-every")),
    *(f"model.{name}" for name in ("num-slots", "slot-dim", "likelihood", "image-scale", "decoder", "decoder-width")),
    *(f"model.{name}" for name in ("scene-dim", "slot-prior", "scene-pooling", "matching", "transformer-width")),
    *(f"model.{name}" for name in ("num-encoder-blocks", "num-order-blocks", "transformer-mlp-ratio")),
    *(f"model.scene-prior.{name}" for name in ("kind", "num-components", "num-couplings")),
    *(f"model.{no}{name}" for no in ("", "no-") for name in ("order-aware-scales", "shared-order-nets")),
    *(old for renamed in RENAMED.values() for old in renamed),
}
"""All options of a model and its training that there were when systems had none of their own."""


# Options of other systems.


@pytest.mark.parametrize(
    ("option", "systems"),
    [
        (["--model.matching", "hungarian"], "lom, sri"),
        (["--model.scene-dim", "3"], "lom, scene-autoregressive, sri, vae"),
        (["--model.num-refinements", "3"], "emorl"),
        (["--model.recurrence-width", "3"], "autoregressive, genesis-v2-autoregressive, scene-autoregressive, sri"),
        (["--model.token-width", "3"], "sri"),
        (["--model.no-order-aware-scales"], "lom"),
        (["--model.largest-scale", "1"], "lom"),
        (["--model.shared-order-nets"], "lom"),
        (["--model.scene-prior.kind", "flow"], "lom, scene-autoregressive"),
        (["--model.orderless.encoder-width", "8"], "autoregressive, lom, scene-autoregressive, sri"),
        (["--model.schedule.orderless-first", "0.5"], "autoregressive, lom, scene-autoregressive, sri"),
        (["--model.schedule.ordered-rendered", "2"], "lom"),
        (["--model.free-nats.per-dim", "0.5"], "lom, scene-autoregressive"),
        (["--train.orderless-first", "0.5"], "autoregressive, lom, scene-autoregressive, sri"),  # an old name
        (["--train.free-nats-per-dim", "0.5"], "lom, scene-autoregressive"),
        (["--train.ordered-rendered", "2"], "lom"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("written", ["two words", "one word", "underscores"])
def test_options_of_another_system_are_refused(option, systems, written, refused, tiny_alone):
    name = option[0].removeprefix("--")
    if written == "one word":
        option = ["=".join(option)]
    if written == "underscores":
        option = [option[0].replace("-", "_").replace("__", "--", 1), *option[1:]]
    line = refused("genesis-v2-towers", *tiny_alone, *option)
    assert line == f"--{name} is no option of genesis-v2-towers: it belongs to the systems {systems}"


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("demo", ["--model.num-refinements", "3"]),
        ("demo", ["--model.orderless.num-refinements", "3"]),
        ("demo", ["--model.recurrence-width", "3"]),
        ("lom-emorl-towers", ["--model.recurrence-width", "3"]),
        ("ablation-7-towers", ["--model.matching", "greedy"]),
        ("ablation-7-towers", ["--model.scene-dim", "3"]),
        ("ablation-8-towers", ["--model.schedule.ordered-rendered", "3"]),
        ("emorl-towers", ["--model.scene-pooling", "token"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_no_system_takes_options_of_another(name, option, refused):
    assert refused(name, *option).startswith(f"{option[0]} is no option of {preset(name).preset}: it belongs to the ")


def test_what_no_system_has_is_unknown(refused):
    assert refused("--model.colour", "red").startswith("Unrecognized options: --model.colour, red")
    assert refused("--train.colour=red").startswith("Unrecognized options: --train.colour")


# Old names.


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [(name, old, new) for name, renamed in RENAMED.items() for old, new in renamed.items()],
)
def test_old_names_give_the_new_ones(name, old, new):
    own = {option for option, _, _ in option_fields(preset(name))}
    assert new.replace(".no-", ".") in own
    with pytest.raises(UserError) as refusal:
        parse([name, f"--{old}", "1"])
    assert str(refusal.value) == f"--{old} is now called --{new}"


def test_old_names_are_refused_by_the_command(refused):
    assert refused("--train.orderless-first", "0.5") == (
        "--train.orderless-first is now called --model.schedule.orderless-first"
    )
    assert refused("--train.geco.target_rmse=0.03") == (
        "--train.geco.target-rmse is now called --model.geco.target-rmse"
    )
    assert refused("emorl-towers", "--model.system", "lom") == (
        "--model.system does not exist any more: name a preset of the system"
    )


@pytest.mark.parametrize("name", RENAMED)
def test_every_old_option_is_one_or_is_explained(name):
    config = preset(name)
    own = {option for option, _, _ in option_fields(config)}
    for old in sorted(OLD):
        if old.replace(".no-", ".") in own:
            refuse_foreign_options([f"--{old}"], config)
            assert old not in RENAMED[name]
        else:
            with pytest.raises(UserError, match=rf"^--{old} is (now called --model\.|no option of {config.preset}: )"):
                refuse_foreign_options([f"--{old}", "1"], config)


# Every option has an effect.


def shrunk(config):
    """The same system in small, for a few steps."""
    sizes = {"decoder_width": 8, "transformer_width": 8, "scene_dim": 4, "recurrence_width": 8, "slot_dim": 4}
    model = dataclasses.replace(config.model, **{name: sizes[name] for name in sizes if hasattr(config.model, name)})
    inference = getattr(model, "orderless", model)
    widths = {"encoder_width": 8, "width": 2, "groups": (1, 2)}
    small = dataclasses.replace(inference, **{name: widths[name] for name in widths if hasattr(inference, name)})
    model = small if inference is model else dataclasses.replace(model, orderless=small)
    return dataclasses.replace(config, model=model, train=dataclasses.replace(config.train, steps=40))


def words(config):
    """Everything that is no number: configurations that agree in it have the same parts."""
    plain = [(option, value) for option, value, _ in option_fields(config.model) if type(value) not in (int, float)]
    return str((config.model.kind, getattr(config.model, "orderless", config.model).kind, plain))


DISTINCT = [*{words(preset(name)): name for name in PRESETS}.values()]
ONE_OF_A_KIND = {preset(name).model.kind: name for name in reversed(DISTINCT)}.values()


def others(value, hint):
    """Other values of an option."""
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if choice != value]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, tuple):
        return [(*value[:-1], value[-1] + 1)]
    if value is None:
        return [3 if Count.__metadata__[0] in bounds_of(hint) else 0.125]
    if isinstance(value, int):
        return [value + 8] if value % 8 == 0 else [value + 1]
    return [value * 0.5 if value else 0.5]


def bounds_of(hint):
    return [item for part in (hint, *get_args(hint)) for item in getattr(part, "__metadata__", ())]


def changed(config, option, value):
    name, _, rest = option.replace("-", "_").partition(".")
    value = changed(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: value})


def traits(config):
    """What a configuration makes: weights, classes and plain attributes of all modules, optimiser and phases."""
    torch.manual_seed(0)
    system = build(config, (3, 32, 32))
    objective = Objective(system)
    found = {name: (tensor.shape, tensor.double().sum().item()) for name, tensor in objective.state_dict().items()}
    for name, module in objective.named_modules():
        plain = {key: value for key, value in vars(module).items() if not isinstance(value, nn.Module)}
        public = {key: getattr(value, "__name__", str(value)) for key, value in plain.items() if key[0] != "_"}
        public = {key: text.partition(" at 0x")[0] for key, text in public.items()}  # no address of an object
        found[f"attributes of {name}"] = (type(module).__name__, public)
    phases = config.model.phases(system, config.train)
    found["optimizer"] = str(optimizer(config.train)([nn.Parameter(torch.zeros(1))]))
    found["phases"] = [str(dataclasses.replace(phase, prepare=None)) for phase in phases]
    return found


OF_THE_LOOP = {"train.clip-norm", "train.precision", "train.log-every", "train.checkpoint-every", "train.preview-every"}
"""Options of training that no part of a system depends on."""


@pytest.mark.parametrize("name", some_slow(DISTINCT, ONE_OF_A_KIND))
def test_every_option_changes_something_or_is_refused(name):
    config = shrunk(preset(name))
    check(config)
    before = traits(config)
    assert traits(config) == before
    for option, value, hint in option_fields(config):
        if not option.startswith(("model.", "train.")) or option in OF_THE_LOOP:
            continue
        for other in others(value, hint):
            another = changed(config, option, other)
            try:
                check(another)
            except UserError as refusal:
                assert option.rpartition(".")[2] in str(refusal), (option, other)
                continue
            same = traits(another) == before  # a name, since what differs is long
            assert not same, (option, other)


@pytest.mark.parametrize("name", DISTINCT)
def test_every_option_can_be_given(name):
    """All at once, so that they need not go together."""
    config = preset(name)
    another = config
    for option, value, hint in option_fields(config):
        if option != "preset" and not option.endswith("path"):
            another = changed(another, option, others(value, hint)[0])
    assert parse([name, *overrides(another, config)]).config == another


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "demo",
            ["--model.scene-prior.num-components", "3"],
            "--model.scene-prior.num-components has no effect without --model.scene-prior.kind mixture",
        ),
        (
            "ablation-8-towers",
            ["--model.scene-prior.num-couplings", "3", "--model.scene-prior.kind", "mixture"],
            "--model.scene-prior.num-couplings has no effect without --model.scene-prior.kind flow",
        ),
        (
            "lom-genesis-v2-objects-room",
            ["--model.schedule.ordered-batch-size", "8"],
            "--model.schedule.ordered-batch-size has no effect if both pairs train at once: pass ",
        ),
        (
            "ablation-7",
            ["--model.schedule.ordered-learning-rate", "0.001"],
            "--model.schedule.ordered-learning-rate has no effect if both pairs train at once: pass ",
        ),
        (
            "emorl-towers",
            ["--model.geco.target", "-0.3"],
            "--model.geco.target is -0.3 and --model.geco.target-rmse is 0.028: give one of them, and None for ",
        ),
        (
            "lom-genesis-v2-towers-bag-of-words",
            ["--model.shared-order-nets"],
            "--model.shared-order-nets shares f, and --model.slot-prior bag-of-words has none: drop one",
        ),
        (
            "lom-genesis-v2-own",
            ["--model.no-order-aware-scales"],
            "--model.largest-scale bounds order-aware scales, and --model.no-order-aware-scales has none: drop ",
        ),
    ],
)
def test_options_without_effect_are_refused(name, options, line, refused, data):
    assert refused(name, "--data.path", data, *options).startswith(line)


def test_a_part_that_a_system_lacks(data):
    for name in ("genesis-v2-towers", "emorl-towers", "ablation-7-towers"):
        with pytest.raises(UserError, match="^[A-Za-z0-9]+ has no scene_prior, so it cannot be exchanged"):
            build(preset(name), (3, 32, 32), scene_prior=nn.Identity())
    with pytest.raises(UserError, match="^AutoregressiveModel borrows its decoder, so it cannot be exchanged"):
        build(preset("ablation-7-towers"), (3, 32, 32), decoder=nn.Identity())


def test_bounds_come_with_the_options():
    hints = {option: hint for option, _, hint in option_fields(preset("demo"))}
    assert hints["model.num-slots"] == NumSlots and hints["model.schedule.ordered-batch-size"] == Count | None
