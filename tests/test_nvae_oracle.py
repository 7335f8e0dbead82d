"""NVAE with the weights and the noise of the published program has its outputs, losses and gradients.

`oracles/nvae.json` describes the numbers, which the published program computed in float64 on float32 weights.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from safetensors.torch import load_file
from torch import nn

from experiments.config import Train
from experiments.systems.nvae import Nvae
from experiments.systems.published import nvae
from pyro_lom.distributions import mean, stddev
from pyro_lom.objective import PairLoss
from pyro_lom.tempering import temperature

FOLDER = Path(__file__).parent / "oracles"
ORACLE = load_file(FOLDER / "nvae.safetensors")
FACTS = json.loads((FOLDER / "nvae.json").read_text(encoding="utf-8"))
GROUPS = (1, 2, 4)
NUM_STEPS, STEP = 10_000, 901  # at which the weight of the KLs is 0.3
LEVELS = range(sum(GROUPS))


def make_loss(dtype=torch.float64, mode="eval"):
    """The loss of the fixture's pair, with its weights."""
    options = Nvae(width=4, groups=GROUPS, latent_channels=3)
    loss = PairLoss("model", options.build((3, 32, 32), Train(steps=NUM_STEPS))["model"])
    state = loss.state_dict()
    numbers = {name: torch.full_like(tensor, number).long() for number, (name, tensor) in enumerate(state.items())}
    loss.published = {[*state][number.flatten()[0]]: name for name, number in nvae(numbers).items()}
    for name, published in loss.published.items():
        if not name.endswith("num_batches_tracked"):
            state[name].copy_(ORACLE[f"{'buffers' if 'running' in name else 'weights'}/{published}"])
    assert len(loss.published) == len([*loss.published.values()]) >= sum(name.startswith("weights/") for name in ORACLE)
    loss.to(dtype).train(mode == "train")
    loss.elbo.num_updates.fill_(STEP)
    start_spectral_norms(loss)
    return loss


def start_spectral_norms(loss):
    """Give each convolution the vectors that the published program drew, and take all but the last 4 iterations."""
    norms, modules = loss.elbo.spectral_norms, {module: name for name, module in loss.named_modules()}
    order, places = FACTS["convolutions in order"], {}
    by_published = {
        loss.published[f"{modules[layer]}.weight"]: layer for batch in norms.batches.values() for layer in batch
    }
    for name in order:
        layer = by_published[f"{name}.weight"]
        shape = "x".join(map(str, layer.weight.flatten(1).shape))
        places.setdefault(shape, []).append(layer)
    for shape, batch in norms.batches.items():
        rows = [places[shape].index(layer) for layer in batch]
        for vector in "uv":
            drawn = ORACLE[f"noise/spectral/{vector}_{shape}"][rows]
            norms.get_buffer(f"{vector}_{shape}").copy_(nn.functional.normalize(drawn.double(), dim=1, eps=1e-3))
    norms.iterate(36 if loss.training else 40)


class WithNoise(Messenger):
    """Latents are loc + scale times the oracle's noise."""

    def __init__(self, kind="noise"):
        super().__init__()
        self.kind = kind

    def _pyro_sample(self, msg):
        if msg["name"].startswith("z_"):
            noise = ORACLE[f"{self.kind}/group_{int(msg['name'][2:]) - 1:02d}"].flatten(1).unsqueeze(1)
            msg["value"] = mean(msg["fn"]) + stddev(msg["fn"]) * noise.to(msg["fn"].mean)


def outputs(loss):
    images = ORACLE["images"].to(loss.model.first_features)
    model, guide, found = loss.model, loss.guide, {}
    encoded = guide.infer(images)
    with WithNoise():
        traced = poutine.trace(guide).get_trace(images, inferred=encoded)
    generated = poutine.trace(poutine.replay(model, trace=traced)).get_trace(images)
    for level in LEVELS:
        q, p = (trace.nodes[f"z_{level + 1}"]["fn"] for trace in (traced, generated))
        values = {"q_loc": mean(q), "q_scale": stddev(q), "p_loc": mean(p), "p_scale": stddev(p)}
        values |= {"z": traced.nodes[f"z_{level + 1}"]["value"]}
        shape = 2, 3, *model.shapes[level][1:]
        values = {name: value.expand(2, 1, -1).reshape(shape) for name, value in values.items()}
        found |= {f"group_{level:02d}/{name}": value for name, value in values.items()}
    return found | {"encoder_top": encoded[0], "mean": mean(generated.nodes["x"]["fn"]).squeeze(1)}


def losses(loss):
    images, found = ORACLE["images"].to(loss.model.first_features), {}
    terms = loss.elbo.terms(loss.model, WithNoise()(loss.guide), images)
    kls = torch.stack([terms.kl[f"z_{level + 1}"] for level in LEVELS])
    gammas = loss.elbo.balance(terms)
    found = {f"group_{level:02d}/kl": kl for level, kl in enumerate(kls)}
    found |= {"nll_of_sigma_0.7": -terms.log_likelihood["x"], "kl_means": kls.mean(1), "kl_coefficients": gammas}
    found |= {"balanced_kl": loss.elbo.kl_weight * gammas @ kls, "unbalanced_kl": kls.sum(0)}
    penalty = loss.elbo.penalty(loss.model, loss.guide)
    return found | {"total_loss": loss.elbo.combine(terms) + penalty}


def assert_close(found, expected, tolerance=1e-6):
    """Equal to 1e-6 of the tensor's size; the oracle stores float32."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance * expected.abs().max().item())


MODES = pytest.mark.parametrize("mode", ["eval", "train"])
FOLDERS = {"eval": "out", "train": "train"}


@cache
def found_in_float64(mode):
    return outputs(make_loss(mode=mode)) | losses(make_loss(mode=mode))


@MODES
def test_outputs_and_losses(mode):
    for name, value in found_in_float64(mode).items():
        assert_close(value, ORACLE[f"{FOLDERS[mode]}/{name}"])


@MODES
def test_outputs_and_losses_in_float32(mode):
    """To twice the error of the published program itself, or 4 units in the last place of the largest number."""
    loss, expected = make_loss(torch.float32, mode), found_in_float64(mode)
    for name, value in (outputs(loss) | losses(make_loss(torch.float32, mode))).items():
        error, size = ((part.abs().max().item()) for part in (value.double() - expected[name], expected[name]))
        assert error <= max(2 * FACTS["float32_deviation"][f"{FOLDERS[mode]}/{name}"], 5e-7 * size), name


def test_spectral_norms():
    loss = make_loss()
    assert_close(loss.elbo.spectral_norms(), ORACLE["out/spectral_norms"])
    loss.elbo.spectral_norms.iterate(2000)
    assert_close(loss.elbo.spectral_norms(), ORACLE["out/spectral_norms_exact"], 1e-4)


def test_gradients_and_running_statistics_of_a_training_step():
    loss = make_loss(mode="train")
    losses(loss)["total_loss"].backward()
    parameters, state, found = dict(loss.named_parameters()), loss.state_dict(), {}
    for name, published in loss.published.items():
        if name in parameters:
            found[f"train/gradients/{published}"] = parameters[name].grad
        found[f"train/after_step/{published}"] = state[name]
    stored = [name for name in ORACLE if name.startswith(("train/gradients/", "train/after_step/"))]
    assert len(stored) > 15
    for name in stored:
        assert_close(found[name], ORACLE[name])


@pytest.mark.parametrize("tau", [0.7, 1.0])
def test_samples_at_a_temperature(tau):
    model = make_loss().model
    with poutine.trace() as tracer, WithNoise("noise/sample"), temperature(tau):
        model(num_scenes=2)
    for level in LEVELS:
        stored = ORACLE[f"out/sample/temperature_{tau}/group_{level:02d}/z"]
        assert_close(tracer.trace.nodes[f"z_{level + 1}"]["value"].view_as(stored), stored)
    assert_close(mean(tracer.trace.nodes["x"]["fn"]).squeeze(1), ORACLE[f"out/sample/temperature_{tau}/mean"])


def test_readjusted_batch_statistics():
    loss = make_loss()
    model = loss.model.train()
    with torch.no_grad(), WithNoise("noise/sample"), temperature(0.7):
        model(num_scenes=2)
    state, stored = loss.state_dict(), [name for name in ORACLE if name.startswith("out/sample/readjusted/")]
    ours = {published: name for name, published in loss.published.items()}
    for name in stored:
        assert_close(state[ours[name.removeprefix("out/sample/readjusted/")]], ORACLE[name])
    assert len(stored) == 6
