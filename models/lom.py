"""The Latent Object Model's generative story (Sec. 3.1)."""

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import GaussianHead
from pyro_lom.likelihoods import compose, observed
from pyro_lom.networks.transformers import PriorOrder, xavier_
from pyro_lom.program import Program
from pyro_lom.scene_priors import StandardNormal
from pyro_lom.types import Rendering


class LatentObjectModel(Program):
    """p(x, z_1:K, s) = p(s) prod_k p(z_k | h_k) p(x | z_1:K)                      (Eqs. 1-3)

        s   ~ p(s)                     what the scene is
        h   = f(s)                     which object each slot must draw, deterministic
        z_k ~ p(z_k | h_k)             independent given h
        x   ~ N(sum_k m_k x_k, sigma)

    Sites `s` (B, 1 | Ds), `h` (B, K | width; deterministic), `z` (B, K | Dz) and `x` (B, 1 | C, H, W), in plates
    `scenes` at dim -2 and `slots` at dim -1.

    Args:
        decoder: maps a slot to C+1 channels, colours and a mask logit.
        num_slots, slot_dim, scene_dim: K, Dz and Ds.
        scene_prior: a module that returns p(s), a Pyro distribution of event shape (Ds,); N(0, I) by default.
        order_net: f, a module that maps scenes (B, Ds) to h_1:K (B, K, width); a causal Transformer by default.
        likelihood: maps a rendering to p(x | z), as those of `pyro_lom/likelihoods.py` do.
        num_blocks: self-attention blocks in f.
        width: features of a token in f; the slot dimension in the paper.
        mlp_ratio: hidden units of f's perceptrons per feature; 1 in the paper.
        num_rendered: while training, decode and score the images of this many scenes of a batch, drawn at random; all
            by default. KLs need no decoder and use every scene.
    """

    slot_sites = ("z",)

    def __init__(
        self,
        decoder: nn.Module,
        *,
        num_slots: int,
        slot_dim: int,
        scene_dim: int,
        likelihood: nn.Module,
        num_blocks: int = 2,
        width: int | None = None,
        mlp_ratio: int = 1,
        scene_prior: nn.Module | None = None,
        order_net: nn.Module | None = None,
        num_rendered: int | None = None,
    ):
        super().__init__()
        width = width or slot_dim
        self.num_slots, self.slot_dim, self.scene_dim = num_slots, slot_dim, scene_dim
        self.num_rendered = num_rendered
        self.decoder = decoder
        self.likelihood = likelihood
        self.scene_prior = StandardNormal(scene_dim) if scene_prior is None else scene_prior
        if order_net is None:
            order_net = PriorOrder(
                scene_dim, num_slots=num_slots, width=width, num_blocks=num_blocks, mlp_ratio=mlp_ratio
            )
        self.order_net = order_net
        self.slot_prior = xavier_(GaussianHead(width, slot_dim))

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Images, observed when given and `num_scenes` sampled ones otherwise, of shape (B, 1, C, H, W)."""
        num_scenes = num_scenes if images is None else len(images)
        scenes = pyro.plate("scenes", num_scenes, dim=-2)
        with scenes:
            slots = self.draw_slots()
        if self.training and images is not None and self.num_rendered is not None:
            num_rendered = min(self.num_rendered, num_scenes)
            scenes = pyro.plate("rendered", num_scenes, subsample_size=num_rendered, dim=-2, device=images.device)
        with scenes:
            slots = pyro.subsample(slots, event_dim=1)
            images = images if images is None else pyro.subsample(observed(images), event_dim=3)
            return pyro.sample("x", self.likelihood(self.render(slots)), obs=images)  # Eq. 3

    def draw_slots(self) -> Float[Tensor, "*batch K Dz"]:
        """The story without its image: s, h_1:K and z_1:K. It is called within the plate `scenes`."""
        scene = pyro.sample("s", self.scene_prior())
        with pyro.plate("slots", self.num_slots, dim=-1):
            prior_order = pyro.deterministic("h", self.order_net(scene.squeeze(-2)), event_dim=1)  # Eq. 2
            return pyro.sample("z", self.slot_prior(prior_order))

    def render(self, slots: Float[Tensor, "*batch K Dz"]) -> Rendering:
        """Decode slots into masks and components, and compose them."""
        return compose(self.decoder(slots))
