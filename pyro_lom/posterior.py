"""Posterior queries of a trained LOM: explaining images, completing scenes, and evaluating the density of slots.

`model` and `guide` are a LOM and its guide, with the sites `s` (B, 1 | Ds) and `z` (B, K | Dz). The functions call
`model(num_scenes=..., with_image=False)`, which samples s and z without decoding them, `model.render`, and
`guide.infer_scene(slots)`, which returns q(s | g(slots)).

Both are in evaluation mode. Wrong arguments raise a `UserError` (`pyro_lom/checks.py`). If a posterior has no formulas
for its moments, as a flow has none, they are the moments of 256 samples.
"""

import math
from functools import partial
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_lom.checks import check_evaluation, check_images, check_latents, check_lom
from pyro_lom.distributions import diagonal_normal, mean, stddev
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.metrics.log_likelihood import effective_sample_size, log_weights
from pyro_lom.program import Program
from pyro_lom.types import Rendering


class Explanation(NamedTuple):
    """Posterior means of the latents of images, and their rendering by the model."""

    scene: Float[Tensor, "B Ds"]
    slots: Float[Tensor, "B K Dz"]  # in the model's order
    permutation: Int[Tensor, "B K"]  # permutation[b, k] is the orderless index of the k-th slot
    rendering: Rendering  # the image, and the component and mask of each slot


@torch.no_grad()
def explain(model, guide, images: Float[Tensor, "B C H W"]) -> Explanation:
    """Infer s, z_1:K and the order of the slots from images, and render the slots."""
    check_lom(model, guide)
    check_images(images, model, guide)
    trace = poutine.trace(guide).get_trace(images)
    scene, slots = (mean(trace.nodes[site]["fn"]) for site in ("s", "z"))
    permutation = trace.nodes["_RETURN"]["value"].permutation
    return Explanation(scene.squeeze(-2), slots, permutation, model.render({"z": slots}))


@torch.no_grad()
def log_prob_of_slots(model, scene: Float[Tensor, "B Ds"], slots: Float[Tensor, "B K Dz"]) -> Float[Tensor, "B K"]:
    """Return the log density of each slot given the scene, log p(z_k | h_k) with h = f(s), in nats."""
    check_evaluation(model)
    check_latents(model, slots, scene=scene)
    given = poutine.condition(model, {"s": scene.unsqueeze(-2), "z": slots})
    trace = poutine.trace(given).get_trace(num_scenes=len(scene), with_image=False)
    return trace.nodes["z"]["fn"].log_prob(slots)


class keep_slots(Messenger):
    """Effect handler that observes some slots of a LOM and samples the others.

        with keep_slots(slots, mask):
            images = model(num_scenes=len(slots))
        samples = Predictive(keep_slots(slots, mask)(model), num_samples=4)(num_scenes=len(slots))

    If mask_k is True, z_k is observed with the value slots_k. Otherwise z_k is sampled from p(z_k | h_k), or has the
    value that another handler set, and is integrated out: the density is p(s) prod_kept p(z_k | h_k).
    """

    def __init__(self, slots: Float[Tensor, "*batch K Dz"], mask: Bool[Tensor, "*batch K"], site: str = "z"):
        super().__init__()
        self.slots, self.mask, self.site = slots, mask, site

    def _pyro_sample(self, msg) -> None:
        if msg["name"] == self.site:
            imagined = msg["fn"]() if msg["value"] is None else msg["value"]
            msg["value"] = torch.where(self.mask.unsqueeze(-1), self.slots, imagined)
            msg["mask"] = self.mask if msg["mask"] is None else self.mask & msg["mask"]
            msg["is_observed"] = True


class Completion(NamedTuple):
    """N completions of each scene, with bounds in nats per scene and a diagnostic of the inference."""

    scene: Float[Tensor, "N B Ds"]
    slots: Float[Tensor, "N B K Dz"]
    rendering: Rendering
    elbo_before: Float[Tensor, "B"]  # lower bound of log p(kept slots) with the amortised q(s)
    elbo_after: Float[Tensor, "B"]  # lower bound of log p(kept slots) with the optimised q(s)
    log_evidence: Float[Tensor, "B"]  # importance-weighted bound of log p(kept slots), the tightest of the three
    effective_sample_size: Float[Tensor, "B"]  # of the importance sampling, from 1 (worst) to num_samples (best)


@torch.inference_mode(False)
@torch.enable_grad()
def complete(
    model,
    guide,
    slots: Float[Tensor, "B K Dz"],
    mask: Bool[Tensor, "B K"],
    *,
    num_steps: int = 150,
    learning_rate: float = 0.03,
    num_samples: int = 64,
    num_completions: int = 4,
) -> Completion:
    """Infer each scene from the slots where `mask` is True, and sample the other slots.

        q(s) = q(s | g(kept and sampled slots))                      amortised, see below
        q(s) = argmax E_q[log p(kept slots | s)] - KL(q(s) || p(s))  by `num_steps` of Adam, scene by scene
        s    ~ p(s | kept slots)    by importance resampling of `num_samples` samples of q(s)
        z_k  ~ p(z_k | h_k)         where `mask` is False

    g requires all K slots. The amortised q(s) therefore alternates between sampling the other slots given s and
    inferring s from all slots. It starts from several samples of p(s) and keeps the best result. If all slots are kept,
    the amortised q(s) is the guide's, and `log_evidence` is a lower bound of log p(z_1:K).

    The results have no gradients. The caller may have disabled gradients.

    Raises:
        UserError: an argument is wrong, or the model was made in `torch.inference_mode`.
    """
    check_lom(model, guide)
    check_evaluation(model, guide)
    check_latents(model, slots, mask=mask)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UserError(
            "the model was made or loaded in torch.inference_mode, without gradients: load it outside of it"
        )
    slots, mask = slots.detach().clone(), mask.clone()  # tensors of inference mode cannot be in a graph; clones can
    kept = keep_slots(slots, mask)(partial(model, num_scenes=len(slots), with_image=False))
    guess = _first_guess(kept, guide)
    weights_before, _ = _draw(kept, guess, num_samples)
    elbo, parameters = TraceScene_ELBO(), list(guess.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=num_steps)
    for _ in range(num_steps):
        optimizer.zero_grad()
        elbo.differentiable_loss(kept, guess).backward(inputs=parameters)
        optimizer.step()
        decay.step()
    weights, scenes = _draw(kept, guess, num_samples)

    chosen = torch.distributions.Categorical(logits=weights.T).sample((num_completions,))
    scene = scenes[chosen, torch.arange(len(slots), device=chosen.device)]
    with torch.no_grad():
        completed = poutine.trace(poutine.condition(kept, {"s": scene.unsqueeze(-2)})).get_trace().nodes["z"]["value"]
        rendering = model.render({"z": completed})
    bounds = weights_before.mean(0), weights.mean(0), weights.logsumexp(0) - math.log(num_samples)
    return Completion(scene, completed, rendering, *bounds, effective_sample_size(weights))


@torch.no_grad()
def _first_guess(kept, guide, num_starts: int = 16, num_rounds: int = 10) -> "_SceneGuess":
    """Return the amortised q(s) of the start with the highest log p(s, kept slots) after `num_rounds`, per scene."""
    with pyro.plate("starts", num_starts, dim=-3):
        trace = poutine.trace(kept).get_trace()
    for _ in range(num_rounds):
        q = guide.infer_scene(trace.nodes["z"]["value"])
        loc = mean(q)
        trace = poutine.trace(poutine.condition(kept, {"s": loc.unsqueeze(-2)})).get_trace()
    trace.compute_log_prob()
    fit = sum(trace.nodes[name]["log_prob"].sum(-1) for name in ("s", "z"))  # (starts, B)
    best = fit.argmax(0), torch.arange(fit.shape[1], device=fit.device)
    scale = stddev(q)[best].clamp_min(1e-4)  # the samples of a flow can be all equal
    # A family without a standard deviation, such as Cauchy, starts with the prior's.
    return _SceneGuess(loc[best], torch.where(scale.isfinite(), scale, 1.0))


class _SceneGuess(Program):
    """q(s) = N(loc, diag(scale^2)), with one loc and one scale per scene as trainable parameters."""

    def __init__(self, loc: Float[Tensor, "B Ds"], scale: Float[Tensor, "B Ds"]):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.clone()), nn.Parameter(scale.log())

    def forward(self) -> Float[Tensor, "B 1 Ds"]:
        with pyro.plate("scenes", len(self.loc), dim=-2):
            return pyro.sample("s", diagonal_normal(self.loc.unsqueeze(-2), self.log_scale.exp().unsqueeze(-2)))


@torch.no_grad()
def _draw(model, guess, num_samples: int) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B Ds"]]:
    """Return the log importance weights of samples of q(s), and the samples."""
    traces = [poutine.trace(guess).get_trace() for _ in range(num_samples)]
    weights = [log_weights(model, poutine.replay(guess, trace=trace)) for trace in traces]
    return torch.stack(weights), torch.stack([trace.nodes["s"]["value"].squeeze(-2) for trace in traces])
