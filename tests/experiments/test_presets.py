"""Every preset resolves, shows its plan, and trains: shrunk, two steps."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from experiments.config import Data
from experiments.presets import PRESETS, preset
from experiments.systems import build_objective, build_phases, build_system
from pyro_lom.errors import UserError
from pyro_lom.runs import Run
from pyro_lom.trainer import Trainer


def shrunk(config, *, sizes=8, counts=2, steps=4):
    """The same with small networks, few steps and small batches; its schedule, data's size and system are kept."""

    def at_most(section, limit):
        numbers = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
        return {name: min(value, limit) for name, value in numbers.items() if type(value) is int}

    model = dataclasses.replace(config.model, **at_most(config.model, sizes))
    train = dataclasses.replace(config.train, **at_most(config.train, counts) | {"steps": steps})
    return dataclasses.replace(config, model=model, train=train)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_called_what_they_are(name):
    config = preset(name)
    assert config.preset == name.replace("demo", "lom-genesis-v2-towers")
    assert config.preset.startswith((f"{config.model.system}-", "ablation-"))
    assert PRESETS[name].__doc__
    assert preset(name) == config


def test_bare_fit_runs_the_demo():
    assert preset("demo") == preset("lom-genesis-v2-towers")
    assert preset("demo").data == Data()  # the embedded data set, at its own place


def test_an_unknown_preset_is_told_the_others():
    with pytest.raises(
        UserError, match="^there is no preset 'lom-emorl'; choose one of lom-genesis-v2-towers, .*demo, demo-64$"
    ):
        preset("lom-emorl")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name, tmp_path):
    config = shrunk(preset(name))
    image_shape = (3, config.data.image_size, config.data.image_size)
    images = np.random.default_rng(0).integers(0, 256, (4, *image_shape[1:], 3), dtype=np.uint8)
    torch.manual_seed(0)
    system = build_system(config, image_shape)
    objective = build_objective(config, system, image_shape)
    with torch.no_grad():
        for parameter in objective.parameters():  # EMORL's start at next to nothing, and so do their gradients
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = {parameter: value.detach().clone() for parameter, value in objective.named_parameters()}
    phases = build_phases(config, system)
    fabric = Fabric(accelerator="cpu", devices=1)
    Trainer(fabric, objective, images, phases, Run(tmp_path), seed=0, clip_norm=config.train.clip_norm).fit()
    [*_, metrics] = Run(tmp_path).metrics()
    assert metrics["step"] == 4
    assert all(math.isfinite(value) for value in metrics.values())
    still = [parameter for parameter, value in objective.named_parameters() if torch.equal(value, before[parameter])]
    if config.model.num_refinements == 1:  # a recurrent network that takes one step has nothing to remember
        still = [parameter for parameter in still if not parameter.endswith("refinement.recurrent.weight_hh")]
    assert not [parameter for parameter in still if "weight" in parameter]


@pytest.mark.parametrize("name", PRESETS)
def test_the_plan_shows_configuration_and_parameters(name, fit, tmp_path):
    code, out, err = fit(name, "--dry-run", "--model.encoder-width", "8", "--train.steps", "123")
    assert (code, err) == (0, "")
    config = preset(name)
    assert f"preset: {config.preset}\n" in out and f"  path: {config.data.path}\n" in out and "  steps: 123\n" in out
    plan = out.partition("parameters, for RGB images\n")[2].splitlines()
    counts = [int(line.split()[-1].replace(",", "")) for line in plan]
    assert counts[-1] == sum(counts[:-1])
    assert any("orderless guide.encoder" in line for line in plan)
    assert any("ordered guide.scene_encoder" in line for line in plan) == config.model.system.startswith(
        ("lom-", "scene-")
    )
    assert not list(tmp_path.iterdir())  # no data set, no run


@pytest.mark.parametrize(
    ("data", "image_size", "num_slots", "target", "steps"),
    [
        ("objects-room", 64, 7, -0.353, 500_000),
        ("shapestacks", 64, 9, -0.353, 500_000),
        ("clevr6", 96, 7, -0.356, 300_000),
    ],
)
@pytest.mark.parametrize("system", ["lom-genesis-v2", "genesis-v2"])
def test_the_papers_hyperparameters(system, data, image_size, num_slots, target, steps):
    """A.4.1 to A.4.3."""
    config = preset(f"{system}-{data}")
    model, train = config.model, config.train
    assert config.data == Data(f"data/{data}.h5", image_size)
    assert (model.system, model.num_slots, model.slot_dim, model.scene_dim) == (system, num_slots, 64, 128)
    assert (model.image_scale, model.encoder, model.decoder, model.matching) == (
        0.7,
        "published",
        "deconvolution",
        "greedy",
    )
    assert (train.steps, train.batch_size, train.learning_rate) == (steps, 32, 1e-4)
    assert (train.free_nats_per_dim, train.final_free_nats_per_dim, train.final_steps) == (0.25, 0.167, 25_000)
    assert (train.geco.target, train.geco.target_rmse, train.geco.step_size) == (target, None, 1e-6)
    assert (train.geco.initial, train.geco.goal_relative) == (1.0, False)
    assert (train.orderless_first, train.warmup_steps, train.decay, train.clip_norm) == (0.0, 0, "none", None)


@pytest.mark.parametrize(
    ("data", "image_size", "num_slots", "image_scale", "target", "speedup", "steps"),
    [
        ("objects-room", 64, 7, 0.7, -0.352, 5.0, 400_000),
        ("shapestacks", 64, 9, 0.7, -0.351, 50.0, 400_000),
        ("clevr6", 96, 7, 0.1, -2.265, 10.0, 300_000),
    ],
)
@pytest.mark.parametrize("system", ["lom-emorl", "emorl"])
def test_the_papers_hyperparameters_of_emorl(system, data, image_size, num_slots, image_scale, target, speedup, steps):
    """A.4.1 to A.4.3."""
    config = preset(f"{system}-{data}")
    model, train, geco = config.model, config.train, config.train.geco
    assert config.data == Data(f"data/{data}.h5", image_size)
    assert (model.system, model.num_slots, model.slot_dim, model.scene_dim) == (system, num_slots, 64, 128)
    assert (model.image_scale, model.encoder, model.decoder, model.num_refinements) == (
        image_scale,
        "published",
        "broadcast",
        2,
    )
    assert (train.steps, train.batch_size, train.learning_rate) == (steps, 32, 4e-4)
    assert (train.warmup_steps, train.decay, train.clip_norm) == (10_000, "halving", 5.0)
    assert (train.free_nats_per_dim, train.final_free_nats_per_dim, train.final_steps) == (0.25, 0.167, 25_000)
    assert (train.orderless_free_nats_per_dim, train.orderless_first) == (0.75, 0.0)
    assert (geco.rule, geco.target, geco.step_size, geco.speedup) == ("additive", target, 1e-6, speedup)
    assert (geco.initial, geco.minimum, geco.warm_start, geco.goal_relative) == (0.55, 0.55, 1000, False)


ABLATIONS = {  # what A.5 says of each, against Model 0, which has two blocks everywhere
    1: dict(num_encoder_blocks=1),
    2: dict(num_encoder_blocks=3),
    3: dict(num_order_blocks=1),
    4: dict(num_order_blocks=3),
    5: dict(order_aware_scales=False),
    6: dict(shared_order_nets=True),
    7: dict(system="autoregressive-emorl"),
    8: dict(system="scene-autoregressive-emorl"),
}


def test_model_0_of_the_ablations_is_lom_emorl_on_small_rooms_with_two_blocks():
    config, base = preset("ablation-0"), preset("lom-emorl-objects-room")
    assert config.data == Data("data/objects-room-48.h5", 48)
    model = dataclasses.replace(base.model, num_encoder_blocks=2, num_order_blocks=2)
    assert config == dataclasses.replace(base, preset="ablation-0", data=config.data, model=model)


@pytest.mark.parametrize("where", ["", "-towers"])
@pytest.mark.parametrize(("number", "changes"), ABLATIONS.items())
def test_an_ablation_changes_in_model_0_what_it_says(number, changes, where):
    config, base = preset(f"ablation-{number}{where}"), preset(f"ablation-0{where}")
    assert (base.model.num_encoder_blocks, base.model.num_order_blocks) == (2, 2)
    model = dataclasses.replace(base.model, **changes)
    assert config == dataclasses.replace(base, preset=config.preset, model=model) != base


@pytest.mark.parametrize("number", range(9))
def test_small_ablations_of_a_seed_begin_with_the_same_orderless_model(number):
    weights = []
    for name in ("ablation-0-towers", f"ablation-{number}-towers"):
        torch.manual_seed(3)
        weights.append(build_system(shrunk(preset(name)), (3, 32, 32)).orderless)
    for first, second in zip(*weights, strict=True):
        assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))
    phase, *_ = build_phases(preset(f"ablation-{number}-towers"), build_system(preset(name), (3, 32, 32)))
    assert phase.pairs == ("orderless",)


@pytest.mark.parametrize(
    "base", ["lom-emorl-objects-room", "lom-emorl-shapestacks", "lom-emorl-clevr6", "ablation-0", "ablation-0-towers"]
)
def test_without_sum_pooling_nothing_else_changes(base):
    config, base = preset(f"{base}-no-sum-pooling"), preset(base)
    assert base.model.scene_pooling == "sum"
    model = dataclasses.replace(base.model, scene_pooling="token")
    assert config == dataclasses.replace(base, preset=config.preset, model=model)
    guide = build_system(shrunk(config), (3, 32, 32)).ordered.guide
    assert guide.scene_encoder.pooling == "token"
