"""An autoregressive prior over the slots of an orderless model: Models 7 and 8 of A.5, alternatives to the LOM."""

from collections.abc import Iterable

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from pyro_lom.likelihoods import compose, observed
from pyro_lom.program import Model
from pyro_lom.types import Rendering


def sample_in_turn(
    sites: Iterable[str], scene: Float[Tensor, "*batch 1 Ds"] | None, recurrence: nn.Module, slot_prior: nn.Module
) -> tuple[list[dist.Distribution], list[Float[Tensor, "*batch 1 Dz"]]]:
    """Sample one slot after another at `sites`; return p(z_k | z_1:k-1, s) and z_k for each."""
    state, priors, slots = recurrence.start(scene), [], []
    for site in sites:
        if slots:
            state = recurrence(slots[-1], state)
        priors.append(slot_prior(state[0]))
        slots.append(pyro.sample(site, priors[-1]))
    return priors, slots


class AutoregressiveModel(Model):
    """p(x, z_1:K, s) = p(s) prod_k p(z_k | z_1:k-1, s) p(x | z_1:K)                  (A.5)

        s    ~ p(s)                      Model 8; Model 7 has no scene latent
        z_k  ~ p(z_k | z_1:k-1, s)       one slot after another, by a recurrent network that starts from s
        x    ~ N(sum_k m_k x_k, sigma)   Eq. 3, with the orderless model's decoder

    Sites `s` (B, 1 | Ds), `z_1` to `z_K`, each (B, 1 | Dz), and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2.

    Args:
        orderless_model: its decoder and its likelihood are borrowed. Its own ELBO trains them. This pair's ELBO has no
            gradient to them, so only the KLs train this pair.
        recurrence: maps slots and a state to the next state (`SlotRecurrence`).
        slot_prior: maps the recurrence's output to p(z_k | z_1:k-1, s).
        scene_prior: a module that returns p(s), a Pyro distribution of event shape (Ds,); no scene latent by default.
    """

    def __init__(
        self,
        orderless_model: nn.Module,
        *,
        recurrence: nn.Module,
        slot_prior: nn.Module,
        scene_prior: nn.Module | None = None,
    ):
        super().__init__()
        self.num_slots, self.slot_dim = orderless_model.num_slots, orderless_model.slot_dim
        self.slot_sites = tuple(f"z_{k}" for k in range(1, self.num_slots + 1))
        self.scene_sites = () if scene_prior is None else ("s",)
        self.borrow("decoder", orderless_model.decoder)
        self.borrow("likelihood", orderless_model.likelihood)
        self.scene_prior = scene_prior
        self.recurrence = recurrence
        self.slot_prior = slot_prior

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            scene = None if self.scene_prior is None else pyro.sample("s", self.scene_prior())
            _, slots = sample_in_turn(self.slot_sites, scene, self.recurrence, self.slot_prior)
            rendering = self.render(dict(zip(self.slot_sites, slots, strict=True)))
            return pyro.sample("x", self.likelihood(rendering), obs=observed(images))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the slots `z_1` to `z_K`, each (*batch, 1, Dz), with the orderless model's decoder; compose them."""
        slots = torch.cat([latents[site] for site in self.slot_sites], dim=-2)
        weights = {name: tensor.detach() for name, tensor in self.decoder.named_parameters()}
        return compose(functional_call(self.decoder, weights, slots))
