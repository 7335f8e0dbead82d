"""SRI (Emami et al., 2022), the LOM's published successor: an autoregressive slot prior that starts from the scene."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.autoregressive import sample_in_turn
from pyro_lom.likelihoods import compose, observed
from pyro_lom.program import Model
from pyro_lom.scene_priors import StandardNormal
from pyro_lom.types import Rendering


class Sri(Model):
    """p(x, z_1:K, s) = p(s) prod_k p(z_k | z_1:k-1, s) p(x | z_1:K)

        s    ~ N(0, I)                   the scene
        z_k  ~ p(z_k | z_1:k-1, s)       one slot after another, by an LSTM that starts from s
        x    ~ mixture of the slots      or another `likelihood`

    Sites `s` (B, 1 | Ds), `z_1` to `z_K`, each (B, 1 | Dz), and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2.

    Args:
        decoder: maps a slot to C+1 channels, colours and a mask logit.
        likelihood: maps a rendering to p(x | z), as the modules of `pyro_lom/likelihoods.py` do.
        num_slots, slot_dim, scene_dim: K, Dz and Ds.
        recurrence: maps slots and a state to the next state (`SlotRecurrence`).
        slot_prior: maps the recurrence's output to p(z_k | z_1:k-1, s), a distribution of event shape (Dz,).
    """

    scene_sites = ("s",)

    def __init__(
        self,
        decoder: nn.Module,
        *,
        likelihood: nn.Module,
        num_slots: int,
        slot_dim: int,
        scene_dim: int,
        recurrence: nn.Module,
        slot_prior: nn.Module,
    ):
        super().__init__()
        self.num_slots, self.slot_dim, self.scene_dim = num_slots, slot_dim, scene_dim
        self.slot_sites = tuple(f"z_{k}" for k in range(1, num_slots + 1))
        self.decoder = decoder
        self.likelihood = likelihood
        self.scene_prior = StandardNormal(scene_dim)
        self.recurrence = recurrence
        self.slot_prior = slot_prior

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            scene = pyro.sample("s", self.scene_prior())
            _, slots = sample_in_turn(self.slot_sites, scene, self.recurrence, self.slot_prior)
            rendering = self.render(dict(zip(self.slot_sites, slots, strict=True)))
            return pyro.sample("x", self.likelihood(rendering), obs=observed(images))

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the slots `z_1` to `z_K`, each (*batch, 1, Dz), into masks and components, and compose them."""
        return compose(self.decoder(torch.cat([latents[site] for site in self.slot_sites], dim=-2)))
