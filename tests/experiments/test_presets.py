"""Every preset resolves, shows its plan, and trains: shrunk, two steps."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from tiny import some_slow

from experiments.config import Data, from_dict
from experiments.systems import PRESETS, SYSTEMS, build, preset
from experiments.systems.options import SlotOptions
from pyro_lom.errors import UserError
from pyro_lom.matching import hungarian_matching
from pyro_lom.networks.transformers import token_pooling
from pyro_lom.objective import Objective
from pyro_lom.training.runs import Run
from pyro_lom.training.trainer import Trainer


def shrunk(config, *, sizes=8, counts=2, steps=4):
    """The same with small networks, few steps and small batches; its schedule, data's size and system are kept."""

    def at_most(section, limit):
        numbers = {f.name: getattr(section, f.name) for f in dataclasses.fields(section)}
        smaller = {name: min(value, limit) for name, value in numbers.items() if type(value) is int}
        smaller |= {name: 0 for name in numbers if name == "fixed_clusters"}  # all weights are to move
        smaller |= {name: (1, 1) for name, value in numbers.items() if type(value) is tuple}
        return dataclasses.replace(section, **smaller)

    limits = {"orderless": sizes, "schedule": counts, "free_nats": counts}
    parts = {name: at_most(part, limits[name]) for name, part in vars(config.model).items() if name in limits}
    model = dataclasses.replace(at_most(config.model, sizes), **parts)
    train = dataclasses.replace(at_most(config.train, counts), steps=steps)
    return dataclasses.replace(config, model=model, train=train)


def inference(config):
    """The options of the orderless model's inference: the system's own, or of the pair that it reads."""
    return getattr(config.model, "orderless", config.model)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_called_what_they_are(name):
    config = preset(name)
    assert config.preset == name.replace("demo", "lom-genesis-v2-towers")
    system = f"lom-{inference(config).kind}" if config.model.kind == "lom" else config.model.kind
    names = {"genesis-v2-autoregressive": ("genesis-v2-mog-", "genesis-v2-g-")}.get(system, (f"{system}-",))
    assert config.preset.startswith((*names, "ablation-"))


def test_bare_fit_runs_the_demo():
    assert preset("demo") == preset("lom-genesis-v2-towers")
    assert preset("demo").data == Data()  # the embedded data set, at its own place


def test_an_unknown_preset_is_told_the_others():
    with pytest.raises(
        UserError, match="^there is no preset 'lom-emorl'; choose one of lom-genesis-v2-towers, .*demo, demo-64$"
    ):
        preset("lom-emorl")


@pytest.mark.parametrize("name", some_slow(PRESETS, [name for name in PRESETS if "clevr6" not in name]))
def test_every_preset_trains(name, tmp_path):
    config = shrunk(preset(name))
    image_shape = (3, config.data.image_size, config.data.image_size)
    images = np.random.default_rng(0).integers(0, 256, (4, *image_shape[1:], 3), dtype=np.uint8)
    torch.manual_seed(0)
    system = build(config, image_shape)
    objective = Objective(system)
    with torch.no_grad():
        for parameter in objective.parameters():  # EMORL's start at next to nothing, and so do their gradients
            parameter.add_(0.1 * torch.randn_like(parameter))
    before = {parameter: value.detach().clone() for parameter, value in objective.named_parameters()}
    phases = config.model.phases(system, config.train)
    fabric = Fabric(accelerator="cpu", devices=1)
    Trainer(fabric, objective, images, phases, Run(tmp_path), seed=0, clip_norm=config.train.clip_norm).fit()
    [*_, metrics] = Run(tmp_path).metrics()
    assert metrics["step"] == 4
    assert all(math.isfinite(value) for value in metrics.values())
    still = [parameter for parameter, value in objective.named_parameters() if torch.equal(value, before[parameter])]
    if (
        getattr(inference(config), "num_refinements", None) == 1
    ):  # a recurrent network that takes one step has nothing to remember
        still = [parameter for parameter in still if not parameter.endswith("refinement.recurrent.weight_hh")]
    assert not [parameter for parameter in still if "weight" in parameter]


@pytest.mark.parametrize("name", PRESETS)
def test_the_plan_shows_configuration_and_parameters(name, fit, tmp_path):
    config = preset(name)
    section = "model" if inference(config) is config.model else "model.orderless"
    width = next(option for option in ("encoder_width", "width") if hasattr(inference(config), option))
    option = f"--{section}.{width.replace('_', '-')}"
    code, out, err = fit(name, "--dry-run", option, "8", "--train.steps", "123")
    assert (code, err) == (0, "")
    shown, _, plan = out.partition("\nparameters, for RGB images\n")
    found = from_dict(json.loads(shown), SYSTEMS)
    assert found.train == dataclasses.replace(config.train, steps=123) and getattr(inference(found), width) == 8
    assert (found.preset, found.data, found.model.kind) == (config.preset, config.data, config.model.kind)
    plan = plan.splitlines()
    counts = {" ".join(line.split()[:-1]): int(line.split()[-1].replace(",", "")) for line in plan}
    of_pairs = {pair: counts.pop(f"{pair} total") for pair in dict.fromkeys(line.split()[0] for line in plan[:-1])}
    assert sum(of_pairs.values()) == counts.pop("total")
    for pair, total in of_pairs.items():
        assert total == sum(number for part, number in counts.items() if part.startswith(f"{pair} "))
    pair = "model" if inference(config) is config.model else "orderless"
    assert any(f"{pair} guide.encoder" in line for line in plan)
    has_scenes = config.model.kind in ("lom", "scene-autoregressive", "sri")
    assert any("ordered guide.scene_encoder" in line for line in plan) == has_scenes
    assert not list(tmp_path.iterdir())  # no data set, no run


def test_the_plan_shows_the_published_number_of_parameters(fit):
    _, out, _ = fit("genesis-v2-mog-objects-room", "--dry-run")
    assert [line.split() for line in out.splitlines()[-2:]] == [["model", "total", "2,729,422"], ["total", "2,729,422"]]


NORMALISED = 0.5655 - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize(
    ("name", "likelihood", "image_scale", "target", "step_size"),
    [
        ("mog-objects-room", "mixture", 0.7, NORMALISED, 1e-5),
        ("mog-shapestacks", "mixture", 0.7, NORMALISED, 1e-5),
        ("mog-clevr6", "mixture", 0.1, -2.265, 1e-5),
        ("g-objects-room", "gaussian", 0.7, -0.353, 1e-6),
        ("g-shapestacks", "gaussian", 0.7, -0.353, 1e-6),
        ("g-clevr6", "gaussian", 0.7, -0.356, 1e-6),
    ],
)
def test_genesis_v2_with_its_own_prior(name, likelihood, image_scale, target, step_size):
    """A.4.2 and A.4.3; all other options are those of GENESIS-v2 with independent slots."""
    config, independent = preset(f"genesis-v2-{name}"), preset(f"genesis-v2-{name.partition('-')[2]}")
    assert (config.data, config.train) == (independent.data, independent.train)
    model, geco = config.model, config.model.geco
    assert (model.likelihood, model.image_scale) == (likelihood, image_scale)
    assert (geco.target, geco.step_size) == (pytest.approx(target, rel=1e-12), step_size)
    assert not geco.analytic_kl and independent.model.geco.analytic_kl
    own, theirs = vars(model), vars(independent.model)
    assert set(own) - set(theirs) == {"recurrence_width"} and set(theirs) - set(own) == {"free_nats_per_dim"}
    of_preset = {"likelihood", "image_scale", "geco"}
    assert all(own[option] == theirs[option] for option in (set(own) & set(theirs)) - of_preset)


@pytest.mark.parametrize("data", ["objects-room", "shapestacks", "clevr6"])
def test_the_vae(data):
    config, lom = preset(f"vae-{data}"), preset(f"lom-genesis-v2-{data}")
    assert (config.data, config.train) == (lom.data, lom.train)
    assert (config.model.scene_dim, config.model.image_scale) == (128, 0.7)


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
    assert (model.kind, inference(config).kind) == ("lom" if "lom" in system else system, "genesis-v2")
    assert (model.num_slots, model.slot_dim, model.image_scale) == (num_slots, 64, 0.7)
    assert (model.likelihood, inference(config).encoder, model.decoder) == ("gaussian", "published", "deconvolution")
    assert (train.steps, train.batch_size, train.learning_rate) == (steps, 32, 1e-4)
    assert (train.warmup_steps, train.decay, train.clip_norm) == (0, "none", None)
    assert (model.geco.target, model.geco.target_rmse, model.geco.step_size) == (target, None, 1e-6)
    assert (model.geco.rule, model.geco.initial, model.geco.goal_relative) == ("multiplicative", 1.0, False)
    assert inference(config).free_nats_per_dim == 0
    if model.kind == "lom":
        the_papers_scene(model)


@pytest.mark.parametrize(
    ("data", "image_size", "num_slots", "steps"),
    [("objects-room", 64, 7, 500_000), ("shapestacks", 64, 9, 500_000), ("clevr6", 96, 7, 300_000)],
)
def test_the_published_hyperparameters_of_genesis(data, image_size, num_slots, steps):
    config = preset(f"genesis-{data}")
    model, train = config.model, config.train
    assert config.data == Data(f"data/{data}.h5", image_size)
    assert (model.num_slots, model.mask_dim, model.component_dim) == (num_slots, 64, 16)
    assert (model.likelihood, model.image_scale, model.encoder_width, model.decoder_width) == ("mixture", 0.7, 32, 32)
    assert (train.steps, train.batch_size, train.learning_rate, train.clip_norm) == (steps, 32, 1e-4, None)
    rule = model.criterion((3, 64, 64))
    assert rule.target.nats / rule.target.num_values == pytest.approx(0.5655, abs=1e-6)
    assert (rule.step_size, rule.speedup, rule.multiplier, rule.bounds) == (1e-5, 10, 1, (1e-10, 1e10))
    assert (rule.analytic_kl, rule.num_kl_samples) == (False, 1)


def the_papers_scene(model):
    """The options of s and of the order of slots have the values of A.4.1 and A.4.2, and there is one phase."""
    assert (model.scene_dim, model.scene_prior.kind, model.matching) == (128, "normal", "greedy")
    nats = model.free_nats
    assert (nats.per_dim, nats.final_per_dim, nats.final_steps) == (0.25, 0.167, 25_000)
    assert (model.slot_prior, model.order_aware_scales, model.shared_order_nets) == ("ordered", True, False)
    assert set(vars(model.schedule).values()) == {0.0, None}


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
    model, train, geco = config.model, config.train, config.model.geco
    assert config.data == Data(f"data/{data}.h5", image_size)
    assert (model.kind, inference(config).kind) == ("lom" if "lom" in system else system, "emorl")
    assert (model.num_slots, model.slot_dim, model.image_scale) == (num_slots, 64, image_scale)
    assert (model.likelihood, inference(config).encoder, model.decoder) == ("gaussian", "published", "broadcast")
    assert (inference(config).num_refinements, inference(config).free_nats_per_dim) == (2, 0.75)
    assert (train.steps, train.batch_size, train.learning_rate) == (steps, 32, 4e-4)
    assert (train.warmup_steps, train.decay, train.clip_norm) == (10_000, "halving", 5.0)
    assert (geco.rule, geco.target, geco.step_size, geco.speedup) == ("additive", target, 1e-6, speedup)
    assert (geco.initial, geco.minimum, geco.warm_start, geco.goal_relative) == (0.55, 0.55, 1000, False)
    if model.kind == "lom":
        the_papers_scene(model)


@pytest.mark.parametrize("base", [name for name in PRESETS if f"lom-{name}" in PRESETS])
def test_a_lom_shares_with_its_orderless_model_what_both_have(base):
    alone, config = preset(base), preset(f"lom-{base}")
    assert (config.data, config.seed) == (alone.data, alone.seed)
    shared = [one.name for one in dataclasses.fields(SlotOptions)]
    assert [getattr(config.model, name) for name in shared] == [getattr(alone.model, name) for name in shared]
    assert vars(config.model.orderless) == {name: getattr(alone.model, name) for name in vars(config.model.orderless)}


@pytest.mark.parametrize("world", ["objects-room", "shapestacks-near", "clevr6"])
@pytest.mark.parametrize(
    "system",
    ["lom-genesis-v2", "genesis-v2", "lom-emorl", "emorl", "genesis-v2-g", "genesis-v2-mog", "sri"]
    + ["genesis", "vae", "gnm", "nvae"],
)
def test_every_system_has_a_small_preset_of_each_rendered_world(system, world):
    config = preset(f"{system}-{world}-small")
    assert config.data == preset(f"lom-genesis-v2-{world}-small").data
    assert config.data.image_size == 64
    assert type(config.model) is type(preset(f"{system}-towers").model)


@pytest.mark.parametrize("system", ["lom-genesis-v2", "lom-emorl", "sri"])
def test_small_systems_on_rendered_scenes_match_with_the_hungarian_algorithm(system):
    pair = build(shrunk(preset(f"{system}-objects-room-small")), (3, 64, 64))["ordered"]
    assert pair.guide.match is hungarian_matching


@pytest.mark.parametrize("world", ["objects-room-small", "shapestacks-near-small", "clevr6-small"])
def test_small_emorl_has_the_networks_of_small_genesis_v2_and_the_inference_of_emorl_on_towers(world):
    config, networks, towers = preset(f"emorl-{world}"), preset(f"genesis-v2-{world}"), preset("emorl-towers")
    own, theirs = vars(config.model), vars(networks.model)
    shared = {"num_slots", "slot_dim", "encoder", "encoder_width", "decoder", "decoder_width"}
    assert all(own[name] == theirs[name] for name in shared)
    geco = dataclasses.replace(towers.model.geco, target_rmse=networks.model.geco.target_rmse)
    others = {name: getattr(towers.model, name) for name in own.keys() - shared} | {"geco": geco}
    assert {name: own[name] for name in others} == others
    assert (config.data, config.train) == (
        networks.data,
        dataclasses.replace(networks.train, steps=3200, learning_rate=4e-3),
    )


ABLATIONS = {  # what A.5 says of each, against Model 0, which has two blocks everywhere
    1: dict(num_encoder_blocks=1),
    2: dict(num_encoder_blocks=3),
    3: dict(num_order_blocks=1),
    4: dict(num_order_blocks=3),
    5: dict(order_aware_scales=False),
    6: dict(shared_order_nets=True),
}
OTHER_SYSTEMS = {7: "autoregressive", 8: "scene-autoregressive"}


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


@pytest.mark.parametrize("where", ["", "-towers"])
@pytest.mark.parametrize(("number", "kind"), OTHER_SYSTEMS.items())
def test_an_ablation_of_another_system_keeps_what_both_have(number, kind, where):
    config, base = preset(f"ablation-{number}{where}"), preset(f"ablation-0{where}")
    assert dataclasses.replace(config, preset=base.preset, model=base.model) == base
    own, theirs = vars(config.model), vars(base.model)
    of_scenes = {"scene_dim", "scene_prior", "scene_pooling", "num_encoder_blocks", "free_nats"}
    of_scenes |= {"transformer_width", "transformer_mlp_ratio"}
    of_order = {
        "slot_prior",
        "num_order_blocks",
        "order_aware_scales",
        "largest_scale",
        "shared_order_nets",
        "matching",
    }
    assert config.model.kind == kind
    assert set(own) - set(theirs) == {"recurrence_width"}
    assert set(theirs) - set(own) == (of_order if number == 8 else of_order | of_scenes)
    assert all(own[name] == theirs[name] for name in set(own) & set(theirs) - {"schedule"})
    assert vars(config.model.schedule).items() <= vars(base.model.schedule).items()


@pytest.mark.parametrize("number", range(9))
def test_small_ablations_of_a_seed_begin_with_the_same_orderless_model(number):
    weights = []
    for name in ("ablation-0-towers", f"ablation-{number}-towers"):
        torch.manual_seed(3)
        weights.append(build(shrunk(preset(name)), (3, 32, 32))["orderless"])
    for role in ("model", "guide"):
        first, second = (getattr(pair, role).state_dict() for pair in weights)
        assert first.keys() == second.keys() and first
        assert all(map(torch.equal, first.values(), second.values()))
    config = preset(f"ablation-{number}-towers")
    phase, *_ = config.model.phases(build(config, (3, 32, 32)), config.train)
    assert phase.pairs == ("orderless",)


@pytest.mark.parametrize(
    "base", ["lom-emorl-objects-room", "lom-emorl-shapestacks", "lom-emorl-clevr6", "ablation-0", "ablation-0-towers"]
)
def test_without_sum_pooling_nothing_else_changes(base):
    config, base = preset(f"{base}-no-sum-pooling"), preset(base)
    assert base.model.scene_pooling == "sum"
    model = dataclasses.replace(base.model, scene_pooling="token")
    assert config == dataclasses.replace(base, preset=config.preset, model=model)
    guide = build(shrunk(config), (3, 32, 32))["ordered"].guide
    assert guide.scene_encoder.pooling is token_pooling
