"""EfficientMORL's guide: stochastic slot attention, then refinement by the gradient of the loss."""

from collections.abc import Callable, Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
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
        o_1 ~ q_3 refined: moved `num_refinements` times by the gradient of the loss of the step before (`losses`)

    The auxiliary site `noise` (B, 1 | K, 6 + num_refinements, Dz) contains the standard normal noise of all samples in
    attention, gradients and losses, in the published order: of the slots before attention, of q_1, of q_2; of q_3,
    decoded; of q_3 and q_2, on which the priors below depend; of each refined posterior, decoded. It is masked, because
    the ELBO is a bound for every value of the noise.

    `infer` also works if the caller has disabled gradients. `OrderlessPosterior.earlier` contains q_1, q_2, q_3 and all
    refined posteriors except the last. `OrderlessPosterior.samples` contains the samples of the losses: of o_3 and o_2,
    on which priors depend, and the decoded slots of each step.

    Args:
        encoder: maps images to features of pixels (`RampEncoder`).
        attention: maps slots, raw parameters and pixels to new raw parameters. Its `start` returns the first raw
            parameters (`StochasticSlotAttention`).
        refinement: maps raw parameters and a gradient to new raw parameters (`Refinement`).
        num_refinements: number of steps of refinement (A.4.1).
        first_gradient_of_top: whether the first refinement follows the gradient of L_0 (`losses`), as published.
            Otherwise it follows the gradient of L_i at q_3, as later refinements do.
    """

    def __init__(
        self,
        model: EfficientMorl,
        *,
        encoder: nn.Module,
        attention: nn.Module,
        refinement: nn.Module,
        num_refinements: int = 2,
        first_gradient_of_top: bool = True,
    ):
        super().__init__()
        self.borrow("model", model)
        self.num_refinements = num_refinements
        self.first_gradient_of_top = first_gradient_of_top
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

    def infer(self, images: Float[Tensor, "B C H W"], *, error_weight: float = 1.0) -> OrderlessPosterior:
        """Run three layers of attention, then refine. Inside a guide, call this within the plate `scenes`.

        `error_weight` is the weight of the error in the gradients of refinement. Training and evaluation use 1, so that
        inference does not depend on the progress of training. The published training uses GECO's multiplier.
        """
        noise_shape = (len(images), 1, self.model.num_slots, 2 * NUM_LAYERS + self.num_refinements, self.model.slot_dim)
        standard = dist.Normal(images.new_zeros(noise_shape), images.new_ones(noise_shape)).to_event(3)
        noise = pyro.sample("noise", standard.mask(False), infer={"is_auxiliary": True}).squeeze(-4)
        *attending, of_decoded, of_third, of_second = noise[..., : 2 * NUM_LAYERS, :].unbind(-2)
        refining = noise[..., 2 * NUM_LAYERS :, :].unbind(-2)

        pixels, layers = self.encoder(images), []
        raw = self.attention.start(pixels, attending[0])
        for epsilon in attending:
            raw, log_masks = self.attention(_sample(raw, epsilon), raw, pixels)
            layers.append(raw)
        samples = [_sample(layers[2], of_third), _sample(layers[1], of_second), _sample(raw, of_decoded)]
        posteriors, hidden = [*layers], None
        loss, given = self._refined_loss, (of_decoded, samples[1])
        if self.first_gradient_of_top:
            loss, given = self._first_loss, (of_decoded, of_third, layers[1])
        for epsilon in refining:
            gradient = _gradient(partial(loss, error_weight=error_weight), raw, images, *given)
            raw, hidden = self.refinement(raw, gradient, hidden)
            posteriors.append(raw)
            samples.append(_sample(raw, epsilon))
            loss, given = self._refined_loss, (epsilon, samples[1])
        *steps, last = (SlotMoments(q.mean, q.stddev) for q in map(normal_of, posteriors))
        log_masks = log_masks.unflatten(-1, (1, *images.shape[-2:]))
        return OrderlessPosterior(*last, log_masks, tuple(steps), tuple(samples))

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
        moments = (*inferred.earlier, SlotMoments(inferred.loc, inferred.scale))
        first, second, third, *refined = (diagonal_normal(*each) for each in moments)
        above_third, above_second, *decoded = inferred.samples
        below = self.model.slot_prior(above_second)
        steps = [{"o_3": (third, self.model.top()), "o_2": (second, self.model.slot_prior(above_third))}]
        steps[0]["o_1"] = first, below
        steps += [{"o_1": (posterior, below)} for posterior in refined]
        for i, (slots, sites) in enumerate(zip(decoded, steps, strict=True)):
            yield (len(steps) + 2 - i) / len(steps), criterion.terms(*self._programs(slots, sites), images)

    def _programs(self, slots: Tensor, sites: dict[str, tuple[dist.Distribution, dist.Distribution]]):
        """Return a model in which x shows `slots`, and a guide; `sites` contains q and p of each latent site."""

        def guide(images):
            with pyro.plate("scenes", len(images), dim=-2), pyro.plate("slots", self.model.num_slots, dim=-1):
                for name, (posterior, _) in sites.items():
                    pyro.sample(name, posterior)

        def model(images):
            with pyro.plate("scenes", len(images), dim=-2):
                with pyro.plate("slots", self.model.num_slots, dim=-1):
                    for name, (_, prior) in sites.items():
                        pyro.sample(name, prior)
                pyro.sample("x", self._image(slots), obs=observed(images))

        return model, guide

    def _first_loss(self, raw, images, of_decoded, of_third, second, *, error_weight) -> Tensor:
        """L_0 without KL(q_1 || p(o_1 | o_2)), which does not depend on q_3; the raw parameters of q_3 are `raw`."""
        kl = kl_divergence(normal_of(raw), self.model.top())
        kl = kl + kl_divergence(normal_of(second), self.model.slot_prior(_sample(raw, of_third)))
        return self._weighed(kl, _sample(raw, of_decoded), images, error_weight)

    def _refined_loss(self, raw, images, of_decoded, above, *, error_weight) -> Tensor:
        """L_i; the raw parameters of q_3, refined i times, are `raw`."""
        kl = kl_divergence(normal_of(raw), self.model.slot_prior(above))
        return self._weighed(kl, _sample(raw, of_decoded), images, error_weight)

    def _weighed(self, kl: Tensor, slots: Tensor, images: Tensor, error_weight: float) -> Tensor:
        log_likelihood = self._image(slots).log_prob(observed(images))
        return (kl.sum() - error_weight * log_likelihood.sum()) / len(images)

    def _image(self, slots: Float[Tensor, "*batch K Dz"]) -> dist.Distribution:
        return self.model.likelihood(self.model.render({"o_1": slots}))


def _gradient(loss: Callable[..., Tensor], raw: Float[Tensor, "*batch K two_Dz"], *given: Tensor) -> Tensor:
    """Return the gradient of `loss(raw, *given)` in `raw`, without a graph."""
    with torch.inference_mode(False), torch.enable_grad():
        # The caller may have computed these in inference mode. Such tensors cannot be in a graph; clones can.
        raw, *given = (tensor.detach().clone() for tensor in (raw, *given))
        return torch.autograd.grad(loss(raw.requires_grad_(), *given), raw)[0]


def _sample(
    raw: Float[Tensor, "*batch K two_Dz"], epsilon: Float[Tensor, "*batch K Dz"]
) -> Float[Tensor, "*batch K Dz"]:
    posterior = normal_of(raw)
    return posterior.mean + posterior.stddev * epsilon
