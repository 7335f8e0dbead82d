"""An autoregressive slot prior over an orderless model's slots: the LOM's alternative in A.5, Models 7 and 8."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from pyro_lom.distributions import GaussianHead
from pyro_lom.likelihoods import compose, observed
from pyro_lom.networks.recurrent_prior import SlotRecurrence
from pyro_lom.networks.transformers import xavier_
from pyro_lom.program import Program
from pyro_lom.types import Rendering


class AutoregressiveModel(Program):
    """p(x, z_1:K, s) = p(s) prod_k p(z_k | z_1:k-1, s) p(x | z_1:K)                  (A.5)

        s    ~ p(s)                      Model 8; Model 7 has no scene latent
        z_k  ~ p(z_k | z_1:k-1, s)       one slot after another, by a recurrent network that starts from s
        x    ~ N(sum_k m_k x_k, sigma)   Eq. 3, with the orderless model's decoder

    Sites `s` (B, 1 | Ds), `z_1` to `z_K`, each (B, 1 | Dz), and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2.

    Args:
        orderless_model: its decoder and its likelihood are borrowed: its own ELBO trains them, and no gradient
            reaches them from here. So this pair's ELBO is trained by its KLs alone.
        width: units of the recurrent network.
        scene_prior: a module that returns p(s), a Pyro distribution of event shape (Ds,); no scene latent by default.
        scene_dim: Ds, where there is one.
    """

    def __init__(
        self,
        orderless_model: nn.Module,
        *,
        width: int,
        scene_prior: nn.Module | None = None,
        scene_dim: int | None = None,
    ):
        super().__init__()
        self.num_slots, self.slot_dim, self.scene_dim = orderless_model.num_slots, orderless_model.slot_dim, scene_dim
        self.slot_sites = tuple(f"z_{k}" for k in range(1, self.num_slots + 1))
        self.borrow("decoder", orderless_model.decoder)
        self.borrow("likelihood", orderless_model.likelihood)
        self.scene_prior = scene_prior
        self.recurrence = SlotRecurrence(self.slot_dim, width=width, scene_dim=scene_dim)
        self.slot_prior = xavier_(GaussianHead(width, self.slot_dim))

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Images, observed when given and `num_scenes` sampled ones otherwise, of shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            state = self.recurrence.start(None if self.scene_prior is None else pyro.sample("s", self.scene_prior()))
            slots = []
            for site in self.slot_sites:
                if slots:
                    state = self.recurrence(slots[-1], state)
                slots.append(pyro.sample(site, self.slot_prior(state[0])))
            rendering = self.render(torch.cat(slots, dim=-2))
            return pyro.sample("x", self.likelihood(rendering), obs=observed(images))

    def render(self, slots: Float[Tensor, "*batch K Dz"]) -> Rendering:
        """Decode slots into masks and components by the orderless model's decoder, as it stands; compose them."""
        weights = {name: tensor.detach() for name, tensor in self.decoder.named_parameters()}
        return compose(functional_call(self.decoder, weights, slots))
