"""The generative model p of the Latent Object Model (Sec. 3.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import GaussianHead
from pyro_lom.likelihoods import compose, observed
from pyro_lom.networks.transformers import PriorOrder, xavier_
from pyro_lom.program import Model
from pyro_lom.scene_priors import StandardNormal
from pyro_lom.types import Rendering


class LatentObjectModel(Model):
    """p(x, z_1:K, s) = p(s) prod_k p(z_k | h_k) p(x | z_1:K)                      (Eqs. 1-3)

        s   ~ p(s)                     the scene
        h   = f(s)                     the object of each slot, deterministic
        z_k ~ p(z_k | h_k)             independent given h
        x   ~ N(sum_k m_k x_k, sigma)

    Sites `s` (B, 1 | Ds), `h` (B, K | width; deterministic), `z` (B, K | Dz) and `x` (B, 1 | C, H, W), in plates
    `scenes` at dim -2 and `slots` at dim -1.

    Args:
        decoder: maps a slot to C+1 channels, colours and a mask logit.
        likelihood: maps a rendering to p(x | z), as the modules of `pyro_lom/likelihoods.py` do.
        num_slots, slot_dim, scene_dim: K, Dz and Ds.
        scene_prior: a module that returns p(s), a Pyro distribution of event shape (Ds,); N(0, I) by default.
        order_net: f, maps scenes (B, Ds) to h_1:K (B, K, width); the paper's Transformer by default.
        slot_prior: maps h_1:K to p(z_k | h_k), a distribution of event shape (Dz,); two linear layers by default.
        num_rendered: number of scenes per training batch, drawn at random, whose images are decoded and scored while
            gradients are recorded; all by default. KLs need no decoder and use every scene.
    """

    scene_sites, slot_sites = ("s",), ("z",)

    def __init__(
        self,
        decoder: nn.Module,
        *,
        likelihood: nn.Module,
        num_slots: int,
        slot_dim: int,
        scene_dim: int,
        scene_prior: nn.Module | None = None,
        order_net: nn.Module | None = None,
        slot_prior: nn.Module | None = None,
        num_rendered: int | None = None,
    ):
        super().__init__()
        self.num_slots, self.slot_dim, self.scene_dim = num_slots, slot_dim, scene_dim
        self.num_rendered = num_rendered
        self.decoder = decoder
        self.likelihood = likelihood
        self.scene_prior = StandardNormal(scene_dim) if scene_prior is None else scene_prior
        self.order_net = order_net or PriorOrder(scene_dim, num_slots=num_slots, width=slot_dim)
        self.slot_prior = slot_prior or xavier_(GaussianHead(slot_dim, slot_dim))

    def forward(
        self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1, with_image: bool = True
    ) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W).

        With `with_image=False`, nothing is decoded, which is faster, and the slots (B, K, Dz) are returned.
        """
        scenes = pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2)
        with scenes:
            scene = pyro.sample("s", self.scene_prior())  # s ~ p(s), Eq. 1
            with pyro.plate("slots", self.num_slots, dim=-1):
                prior_order = pyro.deterministic("h", self.order_net(scene.squeeze(-2)), event_dim=1)  # h = f(s), Eq. 2
                slots = pyro.sample("z", self.slot_prior(prior_order))  # z_k ~ p(z_k | h_k), Eq. 2
        if not with_image:
            return slots
        with self._rendered(scenes, slots, images) as (slots, images):
            return pyro.sample("x", self.likelihood(self.render({"z": slots})), obs=images)  # x ~ p(x | z_1:K), Eq. 3

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the slots `z` (*batch, K, Dz) into masks m_k and components x_k, and compose them (Eq. 3)."""
        return compose(self.decoder(latents["z"]))

    @contextmanager
    def _rendered(self, scenes: pyro.plate, slots: Tensor, images: Tensor | None) -> Iterator[tuple]:
        """Enter the plate of the scenes to decode; yield their slots and images.

        A training step decodes `num_rendered` scenes. Without gradients, as in `Predictive`, it decodes all.
        """
        is_training_step = self.training and torch.is_grad_enabled() and images is not None
        if is_training_step and self.num_rendered is not None:
            size = min(self.num_rendered, len(images))
            scenes = pyro.plate("rendered", len(images), subsample_size=size, dim=-2, device=images.device)
        with scenes:
            images = images if images is None else pyro.subsample(observed(images), event_dim=3)
            yield pyro.subsample(slots, event_dim=1), images
