"""Questions to a trained LOM: what is in a scene, what goes with some of its objects, how likely an edited one is.

`model` and `guide` are a LOM and its guide: sites `s` (B, 1 | Ds) and `z` (B, K | Dz); `model.draw_slots()`, the story
without its image; `model.render(slots)`; and `guide.infer_scene(slots)`, which is q(s | g(slots)).
"""

import math
from typing import NamedTuple

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_lom.distributions import diagonal_normal
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.metrics.log_likelihood import effective_sample_size, log_weights
from pyro_lom.program import Program
from pyro_lom.types import Rendering


class Explanation(NamedTuple):
    """What the guide finds in images: posterior means, and what the model draws for them."""

    scene: Float[Tensor, "B Ds"]
    slots: Float[Tensor, "B K Dz"]  # in the model's order
    permutation: Int[Tensor, "B K"]  # permutation[b, k] is the orderless index put at place k
    rendering: Rendering  # image, and a component and a mask for each slot


@torch.no_grad()
def explain(model, guide, images: Float[Tensor, "B C H W"]) -> Explanation:
    """s, z_1:K, the order of the slots, and each slot's mask and colours."""
    trace = poutine.trace(guide).get_trace(images)
    slots = trace.nodes["z"]["fn"].mean
    scene = trace.nodes["s"]["fn"].mean.squeeze(-2)
    return Explanation(scene, slots, trace.nodes["_RETURN"]["value"].permutation, model.render(slots))


@torch.no_grad()
def log_prob_of_slots(model, scene: Float[Tensor, "B Ds"], slots: Float[Tensor, "B K Dz"]) -> Float[Tensor, "B K"]:
    """log p(z_k | h_k), h = f(s): how well each slot fits a scene, in nats."""
    given = poutine.condition(_without_image(model, len(scene)), {"s": scene.unsqueeze(-2), "z": slots})
    return poutine.trace(given).get_trace().nodes["z"]["fn"].log_prob(slots)


class keep_slots(Messenger):
    """Hold some slots of a LOM where they are; the model imagines the others.

        with keep_slots(slots, mask):
            images = model(num_scenes=len(slots))
        samples = Predictive(keep_slots(slots, mask)(model), num_samples=4)(num_scenes=len(slots))

    Where `mask` is True, z_k is observed to be slots_k. Elsewhere it is drawn from p(z_k | h_k), and adds nothing to
    the log density: that is p(s) prod_kept p(z_k | h_k), with the imagined slots integrated out. A slot that another
    handler gave a value is imagined to have it.
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
    """Scenes around kept slots, and how far to trust them; N completions of each, all in nats per scene."""

    scene: Float[Tensor, "N B Ds"]
    slots: Float[Tensor, "N B K Dz"]
    rendering: Rendering
    elbo_before: Float[Tensor, "B"]  # of log p(kept slots), under the amortised guess of s
    elbo_after: Float[Tensor, "B"]  # and when it was refined
    log_evidence: Float[Tensor, "B"]  # log p(kept slots), importance-weighted: the tightest of the three bounds
    effective_sample_size: Float[Tensor, "B"]  # from 1, which is poor, to num_samples


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
    """Infer scenes from the slots where `mask` is True alone, and imagine the others.

        q(s) = q(s | g(kept and imagined slots))                     amortised, see below
        q(s) = argmax E_q[log p(kept slots | s)] - KL(q(s) || p(s))  by `num_steps` of Adam, scene by scene
        s    ~ p(s | kept slots)    by importance resampling of `num_samples` of q(s)
        z_k  ~ p(z_k | h_k)         where `mask` is False

    g knows whole scenes only, so the first guess imagines slots for s, then s for slots, in turn; it is the best of
    several that start from samples of p(s). With every slot kept it is the guide's, and `log_evidence` scores a scene:
    it is a lower bound of log p(z_1:K).
    """
    kept = keep_slots(slots, mask)(_without_image(model, len(slots)))
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
        rendering = model.render(completed)
    return Completion(
        scene,
        completed,
        rendering,
        elbo_before=weights_before.mean(0),
        elbo_after=weights.mean(0),
        log_evidence=weights.logsumexp(0) - math.log(num_samples),
        effective_sample_size=effective_sample_size(weights),
    )


@torch.no_grad()
def _first_guess(kept, guide, num_starts: int = 16, num_rounds: int = 10) -> "_SceneGuess":
    """The start with the highest log p(s, kept slots) after some rounds, scene by scene."""
    with pyro.plate("starts", num_starts, dim=-3):
        trace = poutine.trace(kept).get_trace()
    for _ in range(num_rounds):
        q = guide.infer_scene(trace.nodes["z"]["value"])
        trace = poutine.trace(poutine.condition(kept, {"s": q.mean.unsqueeze(-2)})).get_trace()
    trace.compute_log_prob()
    fit = sum(trace.nodes[name]["log_prob"].sum(-1) for name in ("s", "z"))  # (starts, B)
    best = fit.argmax(0), torch.arange(fit.shape[1], device=fit.device)
    return _SceneGuess(q.mean[best], q.stddev[best])


class _SceneGuess(Program):
    """q(s) = N(loc, diag(scale^2)) of a few given scenes, with parameters of its own."""

    def __init__(self, loc: Float[Tensor, "B Ds"], scale: Float[Tensor, "B Ds"]):
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(loc.clone()), nn.Parameter(scale.log())

    def forward(self) -> Float[Tensor, "B 1 Ds"]:
        with pyro.plate("scenes", len(self.loc), dim=-2):
            return pyro.sample("s", diagonal_normal(self.loc.unsqueeze(-2), self.log_scale.exp().unsqueeze(-2)))


def _without_image(model, num_scenes: int):
    """The program p(s) p(z | h): decoding is most of a model's work, and says nothing of s and z."""

    def program():
        with pyro.plate("scenes", num_scenes, dim=-2):
            return model.draw_slots()

    return program


@torch.no_grad()
def _draw(model, guess, num_samples: int) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B Ds"]]:
    """Scenes of a guess, and their log weights."""
    traces = [poutine.trace(guess).get_trace() for _ in range(num_samples)]
    weights = [log_weights(model, poutine.replay(guess, trace=trace)) for trace in traces]
    return torch.stack(weights), torch.stack([trace.nodes["s"]["value"].squeeze(-2) for trace in traces])
