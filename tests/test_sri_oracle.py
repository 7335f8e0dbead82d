"""SRI reproduces what the published program computes on the same weights, images and draws.

`tests/oracles/sri.json` describes the tensors. Maps have every fourth row and column.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from safetensors.torch import load_file

from experiments.config import Train
from experiments.published import from_published
from experiments.systems import preset
from experiments.systems.genesis_v2 import GenesisV2Inference
from experiments.systems.options import SHAPESTACKS
from experiments.systems.sri import Sri
from pyro_lom.objective import Objective, pair_losses
from pyro_lom.tempering import temperature

ORACLES = Path(__file__).parent / "oracles"
FACTS = json.loads((ORACLES / "sri.json").read_text())
ORACLE = load_file(ORACLES / "sri.lite.safetensors")
K = FACTS["configuration"]["K_steps"]
SLOTS = [f"z_{k}" for k in range(1, K + 1)]
ROLLOUT = [f"rollout_{k}" for k in range(1, K + 1)]


class Draws(Messenger):
    """Samples are loc + scale times the oracle's noise."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        name, fn = msg["name"], msg["fn"]
        if name in self.noise and msg["value"] is None:
            noise = self.noise[name].view(fn.shape())
            msg["value"] = noise if name == "seed_scores" else fn.mean + fn.stddev * noise


def in_turn(sites, noise):
    return dict(zip(sites, noise.split(1, dim=1), strict=True))


@pytest.fixture(params=[torch.float64, torch.float32], ids=str)
def dtype(request):
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)  # of constants, such as coordinates and sigma
    yield request.param
    torch.set_default_dtype(before)


float64 = pytest.mark.parametrize("dtype", [torch.float64], indirect=True)


@pytest.fixture
def oracle(dtype):
    return {name: value.to(dtype) for name, value in ORACLE.items() if name.startswith(("noise", "weights", "images"))}


@pytest.fixture
def noise(oracle):
    return {
        "seed_scores": oracle["noise/rand_pixel"],
        "o": oracle["noise/z_eps"],  # (B, K | Dz) in the orderless pair, (B, 1 | K, Dz) in the ordered pair
        "s": oracle["noise/scene_eps"],
        **in_turn(ROLLOUT, oracle["noise/rollout_eps"]),
        **in_turn(SLOTS, oracle["noise/ordered_eps"]),
    }


@pytest.fixture
def options():
    """The size of the oracle."""
    facts = FACTS["configuration"]
    width = facts["feat_dim"]
    return Sri(
        num_slots=K,
        slot_dim=width,
        decoder_width=width,
        orderless=GenesisV2Inference(encoder_width=width, encoder_hidden=facts["UNet perceptron hidden units"]),
        scene_dim=facts["scene_latent_dim"],
        num_encoder_blocks=facts["scene_encoder_layers"],
        token_width=width,
        recurrence_width=facts["LSTM units (prior, posterior)"],
    )


@pytest.fixture
def system(options, dtype):
    size = FACTS["configuration"]["img_size"]
    return options.build((3, size, size), Train())


@pytest.fixture
def objective(options, system):
    """With the published weights: each of ours is one of them, and none is left over."""
    objective = Objective(system)
    weights = {name.removeprefix("weights/"): ORACLE[name] for name in ORACLE if name.startswith("weights/")}
    objective.load_state_dict(from_published(options, objective, weights, "sri.lite.safetensors"))
    return objective


@pytest.fixture
def agree(dtype):
    """`agree(found, name)` compares with `out/name`: float64 to 1e-6 of its size, float32 to twice the published
    program's own rounding error."""

    def compare(found, name):
        expected = ORACLE[f"out/{name}"]
        if f"out/{name}" in FACTS["maps"]:
            found = found[..., ::4, ::4]
        assert found.dtype in (dtype, torch.int64) and found.shape == expected.shape, name
        size = expected.double().abs().max().item()
        if dtype == torch.float64:
            error = 1e-6 * size
        else:  # at least twice the distance of neighbouring numbers
            rounding = FACTS["float32 rounding of the published code itself"][name]
            error = 2 * max(rounding, torch.finfo(dtype).eps * size)
        assert (found.double() - expected.double()).abs().max().item() <= error, name

    return compare


def moments(trace, sites):
    fns = [trace.nodes[site]["fn"] for site in sites]
    return torch.cat([fn.mean for fn in fns], dim=1), torch.cat([fn.stddev for fn in fns], dim=1)


def values(trace, sites):
    return torch.cat([trace.nodes[site]["value"] for site in sites], dim=1)


def test_the_orderless_pair(objective, system, oracle, noise, agree, dtype):
    model, guide, criterion, _ = system["orderless"]
    with Draws(noise):
        inferred = guide.infer(oracle["images"])
        terms = criterion.terms(model, guide, oracle["images"])
        slots = guide(oracle["images"], inferred=inferred)
    rendering = model.render({"o": slots})
    agree(guide.encoder(oracle["images"]).embedding, "embedding")
    agree(inferred.log_masks, "log_m_k")
    agree(inferred.loc, "slot_loc")
    agree(inferred.scale, "slot_scale")
    agree(slots, "z")
    agree(rendering.log_masks, "log_m_r_k")
    agree(rendering.components, "x_r_k")
    agree(rendering.image, "recon")
    agree(-terms.log_likelihood["x"], "err")
    expected = ORACLE["out/kl_l_k"].sum(1)  # ours is the sum over slots
    torch.testing.assert_close(terms.kl["o"].double(), expected, rtol=1e-9 if dtype == torch.float64 else 1e-5, atol=0)


def test_the_ordered_pair(objective, system, oracle, noise, agree):
    model, guide, criterion, _ = system["ordered"]
    outputs = []
    for block in guide.scene_encoder.blocks:
        block.register_forward_hook(lambda _, given, output: outputs.append(output.squeeze(1)))
    with Draws(noise):
        guided = poutine.trace(guide).get_trace(oracle["images"])
        modelled = poutine.trace(poutine.replay(model, trace=guided)).get_trace(oracle["images"])
        terms = criterion.terms(model, guide, oracle["images"])
    inference = guided.nodes["_RETURN"]["value"]
    agree(torch.stack(outputs[: len(guide.scene_encoder.blocks)], dim=1), "relation_outputs")
    agree(guided.nodes["s"]["fn"].mean.squeeze(1), "scene_loc")
    agree(guided.nodes["s"]["fn"].stddev.squeeze(1), "scene_scale")
    agree(guided.nodes["s"]["value"].squeeze(1), "scene")
    for sites, trace, name in (
        (ROLLOUT, guided, "rollout_prior"),
        (SLOTS, guided, "ordered"),
        (SLOTS, modelled, "forced_prior"),
    ):
        for found, moment in zip(moments(trace, sites), ("loc", "scale"), strict=True):
            agree(found, f"{name}_{moment}")
    agree(values(guided, ROLLOUT), "rollout_z")
    agree(values(guided, SLOTS), "ordered_z")
    agree(inference.permutation, "permutation")
    rendering = model.render({site: guided.nodes[site]["value"] for site in SLOTS})
    agree(rendering.log_masks, "ordered_log_m_r_k")
    agree(rendering.components, "ordered_x_r_k")
    agree(rendering.image, "ordered_recon")
    agree(-terms.log_likelihood["x"], "sri_err")
    agree(terms.kl["s"], "kl_scene")
    agree(sum(terms.kl[site] for site in ROLLOUT), "kl_rollout")
    agree(sum(terms.kl[site] for site in SLOTS), "kl_slot")


@float64
@pytest.mark.parametrize(("tau", "name"), [(1.0, "sample"), (0.8, "sample_08")])
def test_samples(objective, system, oracle, agree, tau, name):
    model = system["ordered"].model
    noise = {"s": oracle["noise/sample_scene_eps"], **in_turn(SLOTS, oracle["noise/sample_z_eps"])}
    with Draws(noise), temperature(tau):
        trace = poutine.trace(model).get_trace(num_scenes=1)
    rendering = model.render({site: trace.nodes[site]["value"] for site in SLOTS})
    agree(trace.nodes["s"]["value"].squeeze(1), f"{name}_scene")
    agree(values(trace, SLOTS), f"{name}_z")
    agree(trace.nodes["x"]["fn"].mean.squeeze(1), f"{name}_image")
    if tau == 1:
        agree(rendering.log_masks, "sample_log_m_k")
        agree(rendering.components, "sample_x_k")


def test_losses(objective, oracle, noise, agree):
    with Draws(noise):
        orderless, ordered = pair_losses(dict(objective.pairs.items()), oracle["images"])
    agree(orderless.loss, "loss_genesis")
    agree(ordered.loss, "loss_sri")
    agree(orderless.loss + ordered.loss, "total_loss")


PARTS = ("grad_genesis", "grad_sri_err", "grad_kl_scene", "grad_kl_rollout", "grad_kl_slot")


@float64
@pytest.mark.parametrize("part", ["grad", *PARTS])
def test_gradients(options, objective, system, oracle, noise, part):
    """Of every weight by its norm, and of some weights number by number; no other weight has a gradient."""
    with Draws(noise):
        orderless, ordered = pair_losses(dict(objective.pairs.items()), oracle["images"])
        terms = system["ordered"].criterion.terms(*system["ordered"][:2], oracle["images"])
    losses = {
        "grad": orderless.loss + ordered.loss,
        "grad_genesis": orderless.loss,
        "grad_sri_err": terms.mean_error(),
        "grad_kl_scene": terms.kl["s"].mean(),
        "grad_kl_rollout": sum(terms.kl[site].mean() for site in ROLLOUT),
        "grad_kl_slot": sum(terms.kl[site].mean() for site in SLOTS),
    }
    losses[part].backward()
    found = options.published(
        {name: parameter.grad for name, parameter in objective.named_parameters() if parameter.grad is not None}
    )
    norms = {name: norm for name, norm in FACTS["gradient norms"][part].items() if norm is not None}
    assert found.keys() == norms.keys()
    largest = max(norms.values())
    for name, norm in norms.items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-12 * largest), name
    stored = [name for name in ORACLE if name.startswith(f"{part}/")]
    assert stored
    for name in stored:
        gradient, expected = found[name.removeprefix(f"{part}/")], ORACLE[name]
        assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max(), name


def test_the_preset_has_the_published_options():
    config = preset("sri-shapestacks")
    assert (config.data, config.train) == (SHAPESTACKS, Train())
    assert (config.train.steps, config.train.batch_size, config.train.learning_rate) == (500_000, 32, 1e-4)
    assert config.model == Sri(num_slots=9) and config.model.likelihood == "mixture"
    system = config.model.build((3, 64, 64), config.train)
    for name, pair in system.items():
        assert pair.criterion.target.nats == pytest.approx(0.5655 * 3 * 64**2, rel=1e-12)
        assert (pair.criterion.step_size, pair.criterion.speedup, pair.criterion.ema_decay) == (1e-6, 10, 0.99)
        assert pair.criterion.analytic_kl == (name == "ordered")
    weights = config.model.published(dict(Objective(system).named_parameters()))
    sizes = {name: tuple(weight.shape) for name, weight in weights.items()}
    published = FACTS["published size"]
    assert sizes == {name: tuple(shape) for name, shape in published["parameters"].items()}
    assert sum(map(math.prod, sizes.values())) == published["num_parameters"] == 3_634_450
