"""EfficientMORL's guide: stochastic slot attention, then refinement by the gradient of the ELBO."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from models.emorl import EfficientMorl
from pyro_lom.distributions import diagonal_normal, normal_of
from pyro_lom.likelihoods import observed
from pyro_lom.networks.compact_slot_attention import CompactSlotAttention
from pyro_lom.networks.pixel_encoders import CompactPixelEncoder
from pyro_lom.networks.slot_attention import RampEncoder, Refinement, StochasticSlotAttention
from pyro_lom.objective import LossPart
from pyro_lom.program import Program
from pyro_lom.types import OrderlessPosterior, SlotMoments

NUM_LAYERS = 3


class EfficientMorlGuide(Program):
    """q(o_1, o_2, o_3 | x) = prod_l prod_k N(o_lk; loc_lk(x), scale_lk(x))

        q_1, q_2, q_3 = three layers of slot attention over x, each fed with a sample of the one before
        o_3 ~ q_3
        o_2 ~ q_2
        o_1 ~ q_3 refined: moved `num_refinements` times by its gradient of log p(x | o_1) - KL(q || p(o_1 | o_2))

    The samples that inference feeds itself come from the auxiliary site `noise` (B, 1 | K, samples, Dz), standard
    normal, which is masked: given any noise, sites are independent and the bound holds.

    `infer` takes its gradients itself, and works where the caller has disabled them. The posterior's `earlier` ones are
    q_1, q_2, q_3 and those refined on the way.

    `compact` chooses small networks with short cuts, for small images and short trainings, over the published.
    """

    def __init__(
        self,
        model: EfficientMorl,
        *,
        image_shape: tuple[int, int, int],
        width: int,
        num_refinements: int = 2,
        compact: bool = False,
    ):
        super().__init__()
        self.borrow("model", model)
        self.num_refinements = num_refinements
        if compact:
            self.encoder = CompactPixelEncoder(image_shape, width=width)
            self.attention = CompactSlotAttention(model.slot_dim, num_channels=image_shape[0])
        else:
            self.encoder = RampEncoder(image_shape[0], width=width)
            self.attention = StochasticSlotAttention(model.slot_dim, width=width)
        self.refinement = Refinement(model.slot_dim, width=width)

    def forward(self, images: Float[Tensor, "B C H W"], *, orderless: OrderlessPosterior | None = None) -> Tensor:
        """Orderless slots o_1 (B, K, Dz); `orderless` hands over what `infer` found before."""
        with pyro.plate("scenes", len(images), dim=-2):
            orderless = self.infer(images) if orderless is None else orderless
            _, second, third, *_ = orderless.earlier
            with pyro.plate("slots", self.model.num_slots, dim=-1):
                pyro.sample("o_3", diagonal_normal(*third))
                pyro.sample("o_2", diagonal_normal(*second))
                return pyro.sample("o_1", diagonal_normal(orderless.loc, orderless.scale))

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Attend three times, then refine. A guide calls this within its plate `scenes`."""
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

    def loss_parts(self, orderless: OrderlessPosterior) -> list[LossPart]:
        """The published loss: the sum of w_i L_i, with w_i = (I + 3 - i) / (I + 1), over i = 0..I refinements.

        L_0 = -log p(x | o_3) + KL(q_3 || N(0, I)) + KL(q_2 || p(o_2 | o_3)) + KL(q_1 || p(o_1 | o_2))
        L_i = -log p(x | o_1) + KL(q_3 refined i times || p(o_1 | o_2))
        """
        first, second, third, *refined = orderless.earlier
        refined.append(SlotMoments(orderless.loc, orderless.scale))
        above = {name: diagonal_normal(*q).rsample() for name, q in (("o_3", third), ("o_2", second))}

        def guide(moments: SlotMoments):
            return partial(self, orderless=orderless._replace(loc=moments.loc, scale=moments.scale))

        def given_above(program):
            return poutine.block(poutine.condition(program, above), hide=[*above])

        programs = [(partial(self.model, decoded="o_3"), guide(first))]
        programs += [(given_above(self.model), given_above(guide(moments))) for moments in refined]
        total = len(programs)
        return [LossPart((total + 2 - i) / total, *programs[i]) for i in range(total)]

    def _gradient(self, raw, epsilon, prior, images) -> Tensor:
        """Of the negative ELBO of each scene, in the raw parameters of q(o_1); no graph outlives it."""
        with torch.inference_mode(False), torch.enable_grad():
            # Clones, as what a caller computed in inference mode can be part of no graph.
            raw, epsilon, loc, scale, images = (
                tensor.detach().clone() for tensor in (raw, epsilon, prior.mean, prior.stddev, images)
            )
            raw.requires_grad_()
            likelihood = self.model.likelihood(self.model.render(_sample(raw, epsilon)))
            kl = kl_divergence(normal_of(raw), diagonal_normal(loc, scale))
            return torch.autograd.grad(kl.sum() - likelihood.log_prob(observed(images)).sum(), raw)[0]


def _sample(
    raw: Float[Tensor, "*batch K two_Dz"], epsilon: Float[Tensor, "*batch K Dz"]
) -> Float[Tensor, "*batch K Dz"]:
    posterior = normal_of(raw)
    return posterior.mean + posterior.stddev * epsilon
