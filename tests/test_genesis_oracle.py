"""GENESIS with the weights and the noise of the published program has its outputs, losses and gradients.

`oracles/genesis_v1.json` describes the numbers, which the published program computed in float64 on float32 weights.
"""

import json
from pathlib import Path

import pytest
import torch
from pyro import poutine
from safetensors.torch import load_file
from torch import nn

from experiments.systems.published import genesis
from guides.genesis import GenesisGuide, posterior_normal
from models.genesis import Genesis
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.likelihoods import GaussianLikelihood, MixtureLikelihood
from pyro_lom.networks.genesis import (
    ComponentDecoder,
    ComponentEncoder,
    ImageEncoder,
    MaskDecoder,
)
from pyro_lom.networks.recurrent_prior import RecurrentHead

FOLDER = Path(__file__).parent / "oracles"
ORACLE = load_file(FOLDER / "genesis_v1.lite.safetensors")
FACTS = json.loads((FOLDER / "genesis_v1.json").read_text(encoding="utf-8"))
K, MASK_DIM, COMPONENT_DIM, WIDTH, IMAGE_SHAPE = 4, 8, 2, 4, (3, 32, 32)


def published_names(state):
    """By our name, the published tensors that our tensor joins along its first axis."""
    marks = {name: torch.full_like(tensor, number).long() for number, (name, tensor) in enumerate(state.items())}
    names, joined = [*state], {name: [] for name in state}
    for name, mark in genesis(marks).items():
        joined[names[mark.flatten()[0]]].append(name)
    return joined


class Pair(nn.Module):
    """The pair of the fixture, with its weights."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        hidden = 8 * WIDTH
        self.model = Genesis(
            mask_prior=RecurrentHead(MASK_DIM, MASK_DIM, width=hidden),
            mask_decoder=MaskDecoder(MASK_DIM, 32, width=WIDTH),
            component_prior=nn.Sequential(
                *(nn.Linear(MASK_DIM, hidden), nn.ELU(), nn.Linear(hidden, hidden), nn.ELU()),
                nn.Linear(hidden, 2 * COMPONENT_DIM),
            ),
            component_decoder=ComponentDecoder(COMPONENT_DIM, 32, out_channels=3, width=WIDTH),
            likelihood=MixtureLikelihood(0.7),
            num_slots=K,
            mask_dim=MASK_DIM,
            component_dim=COMPONENT_DIM,
        )
        self.guide = GenesisGuide(
            self.model,
            encoder=ImageEncoder(IMAGE_SHAPE, width=WIDTH),
            first_mask=nn.Linear(hidden, 2 * MASK_DIM),
            mask_posterior=RecurrentHead(
                hidden + MASK_DIM, MASK_DIM, width=4 * WIDTH, to_distribution=posterior_normal
            ),
            component_encoder=ComponentEncoder(IMAGE_SHAPE, 2 * COMPONENT_DIM, width=WIDTH),
        )
        constants = {"model.first_loc", "model.first_scale", "model.likelihood.image_scale"}
        self.published = published_names(self.state_dict())
        state = {name: self.joined("weights", name) for name in self.state_dict() if name not in constants}
        assert set(self.load_state_dict(state, strict=False).missing_keys) == constants
        self.to(dtype)
        self.images = ORACLE["images"].to(dtype)

    def joined(self, kind, name):
        parts = [ORACLE[f"{kind}/{part}"] for part in self.published[name]]
        return parts[0] if name.endswith("num_batches_tracked") else torch.cat(parts)

    def traces(self):
        guide = poutine.trace(WithNoise("mask_eps", "comp_eps")(self.guide)).get_trace(self.images)
        return guide, poutine.trace(poutine.replay(self.model, trace=guide)).get_trace(self.images)

    def terms(self, **options):
        guide = WithNoise("mask_eps", "comp_eps")(self.guide)
        return TraceScene_ELBO(**options).terms(self.model, guide, self.images)


class WithNoise(poutine.messenger.Messenger):
    """Latents are loc + scale times the oracle's noise."""

    def __init__(self, masks, components):
        super().__init__()
        self.noise = {"mask": ORACLE[f"noise/{masks}"], "component": ORACLE[f"noise/{components}"]}

    def _pyro_sample(self, msg):
        if msg["name"].startswith("z_"):
            _, kind, number = msg["name"].split("_")
            noise = self.noise[kind][:, int(number) - 1].unsqueeze(1)
            msg["value"] = msg["fn"].mean + msg["fn"].stddev * noise


def joined_sites(trace, kind, of="value"):
    nodes = [trace.nodes[f"z_{kind}_{k}"] for k in range(1, K + 1)]
    return torch.cat([node["value"] if of == "value" else getattr(node["fn"], of) for node in nodes], dim=1)


def outputs(pair):
    guide, model = pair.traces()
    masks = joined_sites(guide, "mask")
    rendering = pair.model.render({name: guide.nodes[name]["value"] for name in pair.model.slot_sites})
    terms = pair.terms(analytic_kl=False, num_kl_samples=1)
    kls = {
        short: torch.stack([terms.kl[f"z_{kind}_{k}"] for k in range(1, K + 1)], dim=1)
        for short, kind in (("m", "mask"), ("l", "component"))
    }
    found = {
        "image_features": pair.guide.infer(pair.images),
        "mask_logits": pair.model.mask_decoder(masks)[..., ::4, ::4],
        "log_m_k": guide.nodes["log_m"]["value"].squeeze(1)[..., ::4, ::4],
        "x_r_k": rendering.components[..., ::4, ::4],
        "recon": rendering.image[..., ::4, ::4],
        "err": -terms.log_likelihood["x"],
        "kl_m_k": kls["m"],
        "kl_l_k": kls["l"],
        "total_loss": terms.mean_error() + terms.mean_kl(),
    }
    for short, kind in (("mask", "mask"), ("comp", "component")):
        found |= {f"{short}_z": joined_sites(guide, kind)}
        for of, name in (("mean", "loc"), ("stddev", "scale")):
            found |= {f"{short}_{name}": joined_sites(guide, kind, of)}
            found |= {f"{short}_prior_{name}": joined_sites(model, kind, of)}
    return found


def assert_close(found, expected, tolerance=1e-6):
    """Equal to 1e-6 of the tensor's size, or as precisely as the oracle stores it, which for maps is float32."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * expected.abs().max().item())


MODES = pytest.mark.parametrize("mode", ["eval", "train"])


@MODES
def test_outputs(mode):
    found = outputs(Pair().train(mode == "train"))
    folder = {"eval": "out", "train": "train"}[mode]
    expected = {name.split("/")[1] for name in ORACLE if name.startswith(f"{folder}/") and "sample" not in name}
    assert set(found) == expected - {"after"}
    for name, value in found.items():
        assert_close(value, ORACLE[f"{folder}/{name}"])


@MODES
def test_outputs_in_float32(mode):
    """To four times the rounding error of the published program itself."""
    found, expected = outputs(Pair(torch.float32).train(mode == "train")), outputs(Pair().train(mode == "train"))
    for name, rounding in FACTS["float32 rounding of the published code itself"][mode].items():
        error = (found[name].double() - expected[name]).abs().max().item()
        assert error <= 4 * rounding, name


@MODES
@pytest.mark.parametrize("part", ["grad", "grad_err", "grad_kl"])
def test_gradients(mode, part):
    """Some are stored, and of all others the norms; those of biases before a normalisation are 0 but for rounding."""
    pair = Pair().train(mode == "train")
    terms = pair.terms(analytic_kl=False, num_kl_samples=1)
    loss = {"grad_err": terms.mean_error(), "grad_kl": terms.mean_kl()}
    loss.get(part, terms.mean_error() + terms.mean_kl()).backward()
    kind = f"train_{part}" if mode == "train" else part
    norms = {name: norm or 0.0 for name, norm in FACTS["gradient norms"][kind].items()}  # None: not in this loss
    stored, largest = 0, max(norms.values())
    for name, parameter in pair.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norm = sum(norms[one] ** 2 for one in pair.published[name]) ** 0.5
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-12 * largest), name
        if all(f"{kind}/{one}" in ORACLE for one in pair.published[name]):
            assert_close(gradient, pair.joined(kind, name))
            stored += 1
    assert stored == sum(name.startswith(f"{kind}/") for name in ORACLE) > 4


def test_a_training_step_moves_running_statistics_once():
    """The guide decodes the masks, and the model takes them over."""
    pair = Pair().train()
    pair.terms()
    names = [name for name in pair.state_dict() if "running" in name]
    assert len(names) == 20
    for name in names:
        assert_close(pair.state_dict()[name], pair.joined("train/after", name))
    counted = [value for name, value in pair.state_dict().items() if name.endswith("num_batches_tracked")]
    before = [pair.joined("weights", name) for name in pair.state_dict() if name.endswith("num_batches_tracked")]
    assert [new - old for new, old in zip(counted, before, strict=True)] == [1] * 10


def test_analytic_kls():
    kl = Pair().eval().terms().kl
    for short, kind in (("m", "mask"), ("l", "component")):
        found = torch.stack([kl[f"z_{kind}_{k}"] for k in range(1, K + 1)], dim=1)
        assert_close(found, ORACLE[f"derived/kl_analytic_{short}_k"])


def test_error_of_a_gaussian_likelihood():
    pair = Pair().eval()
    pair.model.likelihood = GaussianLikelihood(0.7).double()
    assert_close(-pair.terms().log_likelihood["x"], ORACLE["derived/gaussian_err"])


def test_samples_are_those_of_the_prior_that_was_trained():
    """The published program samples from another prior: it leaves out the tanh of the loc."""
    pair = Pair().eval()
    model = WithNoise("sample_mask_eps", "sample_comp_eps")(pair.model)
    trace = poutine.trace(model).get_trace(num_scenes=2)
    rendering = pair.model.render({name: trace.nodes[name]["value"] for name in pair.model.slot_sites})
    found = {
        "mask_z": joined_sites(trace, "mask"),
        "comp_z": joined_sites(trace, "component"),
        "log_m_k": trace.nodes["log_m"]["value"].squeeze(1)[..., ::4, ::4],
        "x_k": rendering.components[..., ::4, ::4],
        "image": trace.nodes["x"]["fn"].mean.squeeze(1)[..., ::4, ::4],
    }
    for name, value in found.items():
        assert_close(value, ORACLE[f"derived/sample_{name}"])
    assert (found["image"] - ORACLE["out/sample_image"]).abs().max() > 0.1
