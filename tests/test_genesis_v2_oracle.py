"""GENESIS-v2 with the weights and the noise of the published program has its outputs, losses and gradients.

`oracles/genesis_v2.json` and `oracles/genesis_v2_iid.json` describe the numbers, which the published program computed
in float64 on float32 weights.
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
from experiments.systems import build, preset
from experiments.systems.genesis_v2 import GenesisV2
from experiments.systems.genesis_v2_autoregressive import GenesisV2Autoregressive
from experiments.systems.options import Geco
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.objective import Objective

FOLDER = Path(__file__).parent / "oracles"
KINDS = {"genesis_v2": GenesisV2Autoregressive, "genesis_v2_iid": GenesisV2}


class Published:
    """The published numbers, and our pair with the published weights."""

    def __init__(self, name, dtype):
        self.numbers = load_file(FOLDER / f"{name}.lite.safetensors")
        self.facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        configuration = self.facts["configuration"]
        width, self.num_slots = configuration["feat_dim"], configuration["K_steps"]
        options = dict(recurrence_width=4 * width) if configuration["autoreg_prior"] else {}
        kind = KINDS[name](
            num_slots=self.num_slots,
            slot_dim=width,
            likelihood="mixture",
            decoder_width=width,
            encoder_width=width,
            encoder_hidden=configuration["UNet perceptron hidden units"],
            geco=Geco(target=0.0, analytic_kl=False),
            **options,
        )
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # of constants, such as coordinates and sigma
        system = kind.build((3, 64, 64), Train())
        torch.set_default_dtype(before)
        [self.pair], self.options, self.objective = system.values(), kind, Objective(system)
        self.objective.load_state_dict(from_published(kind, self.objective, self.group("weights"), name))
        self.images = self.numbers["images"].to(dtype)

    def group(self, name):
        return {
            key.removeprefix(f"{name}/"): value for key, value in self.numbers.items() if key.startswith(f"{name}/")
        }

    def gradients(self):
        """By published names."""
        gradients = {name: weight.grad for name, weight in self.objective.named_parameters()}
        return self.options.published({name: grad for name, grad in gradients.items() if grad is not None})

    def guide_trace(self):
        return poutine.trace(self.with_noise(self.pair.guide)).get_trace(self.images)

    def with_noise(self, program, of_slots="z_eps"):
        return WithNoise(self.numbers["noise/rand_pixel"], self.numbers[f"noise/{of_slots}"])(program)

    def slots_of(self, trace, of):
        """A property of the slots, (B, K, Dz), whether they have one site or one site each."""
        nodes = [trace.nodes[site] for site in self.pair.model.slot_sites]
        parts = [node["value"] if of == "value" else getattr(node["fn"], of) for node in nodes]
        return torch.cat([part.expand(len(node["value"]), -1, -1) for part, node in zip(parts, nodes, strict=True)], 1)

    def terms(self):
        return self.pair.criterion.terms(self.pair.model, self.with_noise(self.pair.guide), self.images)

    def per_slot(self, terms):
        return torch.stack([terms.kl[site] for site in self.pair.model.slot_sites], dim=1)


class WithNoise(poutine.messenger.Messenger):
    """Seed scores are the published ones, and slots are loc + scale times the published noise."""

    def __init__(self, seed_scores, of_slots):
        super().__init__()
        self.seed_scores, self.of_slots = seed_scores, of_slots

    def _pyro_sample(self, msg):
        name, fn = msg["name"], msg["fn"]
        if name == "seed_scores":
            msg["value"] = self.seed_scores.unsqueeze(1).to(fn.mean.dtype)
        elif name.startswith("o"):
            noise = self.of_slots if name == "o" else self.of_slots[:, [int(name.removeprefix("o_")) - 1]]
            msg["value"] = fn.mean + fn.stddev * noise.to(fn.mean.dtype)


def outputs(published):
    """Our values of published outputs; maps have every fourth row and column."""
    pair, images = published.pair, published.images
    guide = published.guide_trace()
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(images)
    rendering = pair.model.render({site: guide.nodes[site]["value"] for site in pair.model.slot_sites})
    terms = published.terms()
    maps = {
        "embedding": pair.guide.encoder(images).embedding,
        "log_m_k": published.with_noise(pair.guide.infer)(images).log_masks,
        "log_m_r_k": rendering.log_masks,
        "x_r_k": rendering.components,
        "recon": rendering.image,
    }
    return {name: values[..., ::4, ::4] for name, values in maps.items()} | {
        "slot_loc": published.slots_of(guide, "mean"),
        "slot_scale": published.slots_of(guide, "stddev"),
        "z": published.slots_of(guide, "value"),
        "prior_loc": published.slots_of(model, "mean"),
        "prior_scale": published.slots_of(model, "stddev"),
        "err": -terms.log_likelihood["x"],
        "kl": sum(terms.kl.values()),
        "total_loss": terms.mean_error() + terms.mean_kl(),
    }


def expected_outputs(published):
    expected = published.group("out")
    return expected | {"kl": expected["kl_l_k"].sum(1)}


@pytest.fixture(params=KINDS)
def published(request):
    return Published(request.param, torch.float64)


def assert_close(found, expected, name, error=1e-6):
    """Assert that no number differs by more than `error` times the largest number of the tensor."""
    assert found.shape == expected.shape, name
    size = expected.abs().max().item()
    assert (found - expected).abs().max().item() <= error * max(size, 1e-300), name


def test_outputs_in_float64(published):
    found, expected = outputs(published), expected_outputs(published)
    for name, values in found.items():
        # Maps are stored in float32.
        assert_close(values.double(), expected[name].double(), name)


@pytest.mark.parametrize("name", KINDS)
def test_outputs_in_float32(name):
    """To twice the rounding error of the published program itself."""
    published = Published(name, torch.float32)
    found, expected = outputs(published), expected_outputs(published)
    errors = published.facts["float32 rounding of the published code itself"]
    checked = errors.keys() & found.keys()
    assert checked >= {"embedding", "log_m_k", "slot_loc", "slot_scale", "log_m_r_k", "x_r_k", "recon", "err"}
    for name in checked:
        error = (found[name].double() - expected[name].double()).abs().max().item()
        assert found[name].dtype == torch.float32 and error <= 2 * errors[name], name


def test_each_slot_has_the_published_kl():
    published = Published("genesis_v2", torch.float64)
    assert_close(published.per_slot(published.terms()), published.numbers["out/kl_l_k"], "kl_l_k")


@pytest.mark.parametrize("name", KINDS)
def test_the_criterion_has_an_analytic_kl_as_an_option(name):
    published = Published(name, torch.float64)
    published.pair.criterion.analytic_kl = True
    kl = published.terms().kl
    slots = sum(kl[site] for site in published.pair.model.slot_sites)
    assert_close(slots, published.numbers["derived/kl_analytic_k"].sum(1), "kl_analytic_k")


def test_the_gaussian_likelihood(published):
    published.pair.model.likelihood = GaussianLikelihood(0.7).double()
    assert_close(-published.terms().log_likelihood["x"], published.numbers["derived/gaussian_err"], "gaussian_err")


@pytest.mark.parametrize("kind", ["grad", "grad_err", "grad_kl"])
def test_gradients(published, kind):
    """Of the loss of a training step, of its error and of its KL, by the weights that the oracle has."""
    terms = published.terms()
    loss = {"grad": published.pair.criterion.combine(terms), "grad_err": terms.mean_error(), "grad_kl": terms.mean_kl()}
    loss[kind].backward()
    found, expected = published.gradients(), published.group(kind)
    assert len(expected) >= 5
    for name, gradient in expected.items():
        assert_close(found[name], gradient, name)


def test_norms_of_all_gradients(published):
    """The published norms of the gradients of the loss, by every weight."""
    published.pair.criterion.combine(published.terms()).backward()
    found, norms = published.gradients(), published.facts["gradient norms"]["total"]
    assert set(found) == set(norms)
    for name, norm in norms.items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-9), name


def test_samples(published):
    """Slots one after another from the prior with the published noise, and their image."""
    model = published.with_noise(published.pair.model, of_slots="sample_eps")
    trace = poutine.trace(model).get_trace(num_scenes=1)
    rendering = published.pair.model.render(
        {site: trace.nodes[site]["value"] for site in published.pair.model.slot_sites}
    )
    found = {
        "sample_z": published.slots_of(trace, "value"),
        "sample_prior_loc": published.slots_of(trace, "mean"),
        "sample_prior_scale": published.slots_of(trace, "stddev"),
        "sample_log_m_k": rendering.log_masks[..., ::4, ::4],
        "sample_x_k": rendering.components[..., ::4, ::4],
        "sample_image": rendering.image[..., ::4, ::4],
    }
    for name, values in found.items():
        assert_close(values, published.numbers[f"out/{name}"].double(), name)


def test_the_target_of_the_presets_is_the_published_one():
    """0.5655 nats per pixel and channel with (1/2) log 2 pi, times the number of values."""
    config = preset("genesis-v2-mog-objects-room")
    criterion = build(config, (3, 64, 64))["model"].criterion
    assert criterion.target.nats == pytest.approx(0.5655 * 3 * 64**2, rel=1e-12)
    assert criterion.step_size == 1e-5 and (criterion.analytic_kl, criterion.num_kl_samples) == (False, 1)
    assert config.model.geco.target == pytest.approx(0.5655 - math.log(2 * math.pi) / 2)
