"""EMORL with the weights and the noise of the published program has its outputs, losses and gradients.

`oracles/emorl.json` describes the numbers, which the published program computed in float64 on float32 weights.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from pyro import poutine
from safetensors.torch import load_file

from experiments.config import Train
from experiments.published import from_published
from experiments.systems.emorl import Emorl
from experiments.systems.options import Geco
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.likelihoods import MixtureLikelihood
from pyro_lom.objective import Objective

FOLDER = Path(__file__).parent / "oracles"
ORACLE = load_file(FOLDER / "emorl.safetensors")
FACTS = json.loads((FOLDER / "emorl.json").read_text(encoding="utf-8"))
DRAWS = [name for name in ORACLE if name.startswith("noise/") and not name.startswith("noise/sample")]
RUNS = ("out", "tied", "geco")
ERROR_WEIGHT = {"out": 1.0, "tied": 1.0, "geco": math.log1p(math.exp(FACTS["geco"]["beta"]))}
K, DIM, SIZE, IMAGE_SCALE = 3, 16, 32, 0.7
CONSTANT = 3 * SIZE**2 * 0.5 * math.log(2 * math.pi)
"""The published errors have no (1/2) log 2 pi."""


def group(name):
    return {key.removeprefix(f"{name}/"): value for key, value in ORACLE.items() if key.startswith(f"{name}/")}


class Run:
    """One run of the fixture: the pair with the published weights, what it infers, and the terms of its losses."""

    def __init__(self, name, dtype=torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # of constants, such as sigma
        geco = Geco(rule="additive", target=FACTS["geco"]["target_per_value"], initial=FACTS["geco"]["beta"])
        sizes = dict(num_slots=K, slot_dim=DIM, encoder_width=DIM, decoder_width=DIM)
        self.options = Emorl(**sizes, image_scale=IMAGE_SCALE, free_nats_per_dim=0.0, geco=geco)
        self.objective = Objective(self.options.build((3, SIZE, SIZE), Train()))
        torch.set_default_dtype(before)
        weights = group("weights") | {"geco_beta": torch.tensor(FACTS["geco"]["beta"])}
        self.objective.load_state_dict(from_published(self.options, self.objective, weights, "emorl.safetensors"))
        self.name, self.images = name, ORACLE["images"].to(dtype)
        self.model, self.guide = self.objective.pairs["model"].model, self.objective.pairs["model"].guide
        self.attended, self.gradients_read = [], []
        self.guide.attention.register_forward_hook(lambda _, given, found: self.attended.append(found))
        self.guide.refinement.register_forward_pre_hook(lambda _, given: self.gradients_read.append(given[1]))
        draws = {int(draw.removeprefix("noise/")[0]): ORACLE[draw].to(dtype) for draw in DRAWS}
        if name == "tied":
            draws |= {4: draws[3], 5: draws[2]}
        noise = torch.stack([draws[number] for number in sorted(draws)], dim=-2).unsqueeze(1)
        with poutine.condition(data={"noise": noise}):
            self.posterior = self.guide.infer(self.images, error_weight=ERROR_WEIGHT[name])
        self.steps = [*self.guide.losses(TraceScene_ELBO(), self.images, self.posterior)]

    def outputs(self):
        """Our values of published outputs."""
        found = {"encoder_features": self.guide.encoder(self.images)}
        for layer, attended in enumerate(self.attended, start=1):
            found[f"layer_{layer}/raw_variance"] = attended.raw.chunk(2, dim=-1)[1]
            found[f"layer_{layer}/attention"] = attended.log_masks.exp().view(*self.images.shape[:1], K, 1, SIZE, SIZE)
        names = ("layer_1", "layer_2", "layer_3", "refined_1", "refined_2")
        moments = (*self.posterior.earlier, self.posterior[:2])
        for name, (loc, scale) in zip(names, moments, strict=True):
            found |= {f"{name}/loc": loc, f"{name}/scale": scale}
        above_third, above_second, *decoded = self.posterior.samples
        for name, above in (("prior_2", above_third), ("prior_1", above_second)):
            prior = self.model.slot_prior(above)
            found |= {f"{name}/loc": prior.mean, f"{name}/scale": prior.stddev}
        found |= {f"step_{step}/gradient_of_posterior": read for step, read in enumerate(self.gradients_read)}
        for step, (slots, (_, terms)) in enumerate(zip(decoded, self.steps, strict=True)):
            rendering = self.model.render({"o_1": slots})
            found |= {f"step_{step}/{part}": getattr(rendering, part) for part in ("image", "components", "log_masks")}
            mixture = MixtureLikelihood(IMAGE_SCALE).to(slots.dtype)(rendering).log_prob(self.images.unsqueeze(1))
            found[f"step_{step}/nll_of_mixture"] = -mixture.squeeze(1) - CONSTANT
            found[f"step_{step}/nll"] = -terms.log_likelihood["x"] - CONSTANT
            for site, kl in terms.kl.items():
                found[f"step_{step}/{'kl' if step else site.replace('o_', 'kl_layer_')}"] = kl
        return found | {"total_loss": self.total_loss()}

    def total_loss(self):
        """As published: under GECO a loss contains the moving average of the constraint in place of the constraint."""
        if self.name == "geco":
            constraint = -ERROR_WEIGHT["geco"] * FACTS["geco"]["ema"]
            return sum(weight * (terms.mean_kl() + constraint) for weight, terms in self.steps)
        return sum(weight * (terms.mean_error() - CONSTANT + terms.mean_kl()) for weight, terms in self.steps)

    def gradients(self):
        """Of the loss of a training step, by published names."""
        criterion = self.objective.pairs["model"].elbo if self.name == "geco" else TraceScene_ELBO()
        sum(weight * criterion.combine(terms) for weight, terms in self.steps).backward()
        gradients = {name: weight.grad for name, weight in self.objective.named_parameters()}
        return self.options.published(gradients)


def expected_outputs(name):
    """Published outputs; ours are KLs summed over slots."""
    return {
        key: value.sum(1) if "/kl" in key else value
        for key, value in group(name).items()
        if not key.startswith(("gradients/", "sample/", "initial/"))  # gradients and samples have tests of their own
        and not (key.startswith(("prior", "refined")) and key.endswith("raw_variance"))  # tested as scales
    }


def assert_close(found, expected, name, error=1e-6):
    """Assert that no number differs by more than `error` times the largest number of the tensor."""
    assert found.shape == expected.shape, name
    assert (found.double() - expected.double()).abs().max() <= error * expected.abs().max(), name


@pytest.mark.parametrize("name", RUNS)
def test_outputs_in_float64(name):
    found, expected = Run(name).outputs(), expected_outputs(name)
    assert expected and not expected.keys() - found.keys()
    for key in expected:
        assert_close(found[key], expected[key], key)


def test_outputs_in_float32():
    """To twice the rounding error of the published program itself."""
    found, errors = Run("out", torch.float32).outputs(), FACTS["float32_deviation"]
    sums = ("/kl", "/nll", "total_loss")  # over other numbers than the published ones
    checked = {key for key in found if f"out/{key}" in errors and not any(word in key for word in sums)}
    assert len(checked) >= 25
    for key in checked:
        error = (found[key].double() - ORACLE[f"out/{key}"].double()).abs().max().item()
        assert found[key].dtype == torch.float32 and error <= 2 * errors[f"out/{key}"], key


@pytest.mark.parametrize("name", RUNS)
def test_gradients(name):
    """Of the loss of a training step: of EMORL's under its own GECO rule, or else with the weight 1."""
    found, expected = Run(name).gradients(), group(f"{name}/gradients")
    assert len(expected) >= 3
    for weight, gradient in expected.items():
        assert_close(found[weight], gradient, weight)


def test_samples():
    run = Run("out")
    noise = {f"o_{level}": ORACLE[f"noise/sample/{3 - level}_z_{level}"].double() for level in (1, 2, 3)}
    with WithNoise(noise):
        trace = poutine.trace(run.model).get_trace(num_scenes=len(run.images))
    nodes = trace.nodes
    found = {f"prior_{level}/loc": nodes[f"o_{level}"]["fn"].mean for level in (1, 2)}
    found |= {f"prior_{level}/scale": nodes[f"o_{level}"]["fn"].stddev for level in (1, 2)}
    found |= {f"z_{level}": nodes[f"o_{level}"]["value"] for level in (1, 2)}
    found["image"] = nodes["x"]["fn"].mean.squeeze(1)
    for key, expected in group("out/sample").items():
        assert_close(found[key], expected, key)


class WithNoise(poutine.messenger.Messenger):
    """Samples are loc + scale times the oracle's noise."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        if msg["name"] in self.noise:
            msg["value"] = msg["fn"].mean + msg["fn"].stddev * self.noise[msg["name"]]
