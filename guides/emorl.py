"""EfficientMORL's guide: stochastic slot attention, then refinement by the gradient of the ELBO."""

from collections.abc import Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import kl_divergence

from models.emorl import EfficientMorl
from pyro_lom.distributions import diagonal_normal, normal_of
from pyro_lom.elbo import Terms
from pyro_lom.likelihoods import observed
from pyro_lom.program import Guide
from pyro_lom.types import OrderlessPosterior, SlotMoments

NUM_LAYERS = 3


class EfficientMorlGuide(Guide):
    """q(o_1, o_2, o_3 | x) = prod_l prod_k N(o_lk; loc_lk(x), scale_lk(x))

        q_1, q_2, q_3 = three layers of slot attention over x; each reads a sample of the layer before
        o_3 ~ q_3
        o_2 ~ q_2
        o_1 ~ q_3 refined: moved `num_refinements` times by its gradient of log p(x | o_1) - KL(q || p(o_1 | o_2))

    The auxiliary site `noise` (B, 1 | K, samples, Dz) contains the standard normal noise of the samples that attention
    and refinement read. It is masked, because the ELBO is a bound for every value of the noise.

    `infer` also works if the caller has disabled gradients. `OrderlessPosterior.earlier` contains q_1, q_2, q_3 and all
    refined posteriors except the last.

    Args:
        encoder: maps images to features of pixels (`RampEncoder`).
        attention: maps slots, raw parameters and pixels to new raw parameters (`StochasticSlotAttention`).
        refinement: maps raw parameters and a gradient to new raw parameters (`Refinement`).
        num_refinements: number of steps of refinement (A.4.1).
    """

    def __init__(
        self,
        model: EfficientMorl,
        *,
        encoder: nn.Module,
        attention: nn.Module,
        refinement: nn.Module,
        num_refinements: int = 2,
    ):
        super().__init__()
        self.borrow("model", model)
        self.num_refinements = num_refinements
        self.encoder = encoder
        self.attention = attention
        self.refinement = refinement

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: OrderlessPosterior | None = None) -> Tensor:
        """Sample orderless slots o_1 (B, K, Dz). `inferred` is the result of `infer(images)` if already computed."""
        with pyro.plate("scenes", len(images), dim=-2):
            orderless = self.infer(images) if inferred is None else inferred
            _, second, third, *_ = orderless.earlier
            with pyro.plate("slots", self.model.num_slots, dim=-1):
                pyro.sample("o_3", diagonal_normal(*third))
                pyro.sample("o_2", diagonal_normal(*second))
                return pyro.sample("o_1", diagonal_normal(orderless.loc, orderless.scale))

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Run three layers of attention, then refine. Inside a guide, call this within the plate `scenes`."""
        noise_shape = (len(images), 1, self.model.num_slots, NUM_LAYERS + self.num_refinements, self.model.slot_dim)
        standard = dist.Normal(images.new_zeros(noise_shape), images.new_ones(noise_shape)).to_event(3)
        noise = pyro.sample("noise", standard.mask(False), infer={"is_auxiliary": True}).squeeze(-4)
        attending, refining = noise.split((NUM_LAYERS, self.num_refinements), dim=-2)

        pixels, posteriors = self.encoder(images), []
        raw = self.attention.initial.expand(*attending.shape[:-2], -1)
        for epsilon in attending.unbind(-2):
            slots = _sample(raw, epsilon)
            raw, log_masks = self.attention(slots, raw, pixels)
            posteriors.append(raw)
        prior, hidden = self.model.slot_prior(slots), None  # of o_1, under a sample of q_2
        for epsilon in refining.unbind(-2):
            gradient = self._gradient(raw, epsilon, prior, images)
            raw, hidden = self.refinement(raw, gradient, hidden)
            posteriors.append(raw)
        *steps, last = (SlotMoments(q.mean, q.stddev) for q in map(normal_of, posteriors))
        return OrderlessPosterior(*last, log_masks.unflatten(-1, (1, *images.shape[-2:])), tuple(steps))

    def pass_on(self, inferred: OrderlessPosterior) -> OrderlessPosterior:
        """Return the means and scales, which a LOM reads."""
        return inferred.moments()

    def log_masks(self, inferred: OrderlessPosterior) -> Float[Tensor, "B K 1 H W"] | None:
        """Return the log masks of the last layer of attention."""
        return inferred.log_masks

    def losses(
        self, criterion, images: Float[Tensor, "B C H W"], inferred: OrderlessPosterior
    ) -> Iterator[tuple[float, Terms]]:
        """Yield w_i = (I + 3 - i) / (I + 1) and the terms of L_i for i = 0..I refinements: the published loss.

        L_0 = -log p(x | o_3) + KL(q_3 || N(0, I)) + KL(q_2 || p(o_2 | o_3)) + KL(q_1 || p(o_1 | o_2))
        L_i = -log p(x | o_1) + KL(q_3 refined i times || p(o_1 | o_2))
        """
        first, second, third, *refined = inferred.earlier
        refined.append(SlotMoments(inferred.loc, inferred.scale))
        above = {name: diagonal_normal(*q).rsample() for name, q in (("o_3", third), ("o_2", second))}

        def guide(moments: SlotMoments):
            return partial(self, inferred=inferred._replace(loc=moments.loc, scale=moments.scale))

        def given_above(program):
            return poutine.block(poutine.condition(program, above), hide=[*above])

        programs = [(partial(self.model, decoded="o_3"), guide(first))]
        programs += [(given_above(self.model), given_above(guide(moments))) for moments in refined]
        total = len(programs)
        for i, (p, q) in enumerate(programs):
            yield (total + 2 - i) / total, criterion.terms(p, q, images)

    def _gradient(self, raw, epsilon, prior, images) -> Tensor:
        """Return the gradient of each scene's negative ELBO in the raw parameters of q(o_1), without a graph."""
        with torch.inference_mode(False), torch.enable_grad():
            # The caller may have computed these in inference mode. Such tensors cannot be in a graph; clones can.
            raw, epsilon, loc, scale, images = (
                tensor.detach().clone() for tensor in (raw, epsilon, prior.mean, prior.stddev, images)
            )
            raw.requires_grad_()
            likelihood = self.model.likelihood(self.model.render({"o_1": _sample(raw, epsilon)}))
            kl = kl_divergence(normal_of(raw), diagonal_normal(loc, scale))
            return torch.autograd.grad(kl.sum() - likelihood.log_prob(observed(images)).sum(), raw)[0]


def _sample(
    raw: Float[Tensor, "*batch K two_Dz"], epsilon: Float[Tensor, "*batch K Dz"]
) -> Float[Tensor, "*batch K Dz"]:
    posterior = normal_of(raw)
    return posterior.mean + posterior.stddev * epsilon
