"""The Latent Object Model's inference, in the paper's five steps (Sec. 3.2, Fig. 2)."""

import pyro
import pyro.distributions as dist
from jaxtyping import Float
from torch import Tensor, nn

from models.lom import LatentObjectModel
from pyro_lom.distributions import GaussianHead, diagonal_normal, positive
from pyro_lom.matching import MATCHINGS, permute
from pyro_lom.networks.transformers import PosteriorOrder, SceneEncoder, xavier_
from pyro_lom.program import Program
from pyro_lom.types import LomInference, OrderlessPosterior


class LatentObjectGuide(Program):
    """q(s | g(o_1:K)) prod_k q(z_pi(k) | h'_pi(k), x)                              (Eqs. 4-5)

        s      ~ N(g(o_1:K))                        what the scene is, whatever the order of its slots
        pi     = match(means of p(z | f(s)), o)     the place of each slot
        h'_k   = f'(o_pi(1):pi(k-1), s)
        z_k    ~ N(o_pi(k), w(h'_k))                borrowed means, order-aware scales

    Args:
        model: the LOM; only its prior is read, to match against.
        orderless_guide: a guide with `infer(images) -> OrderlessPosterior`. It is borrowed: its parameters belong to
            its own ELBO, and no gradient reaches them from here.
        num_encoder_blocks: self-attention blocks in g (A.1 has 3, the ablations' Model 0 has 2).
        num_blocks: self-attention blocks in f'.
        width: features of a token in g and f'; the slot dimension in the paper.
        mlp_ratio: hidden units of the perceptrons of g and f' per feature; 1 in the paper.
        matching: "greedy" (Algorithm 1) or "hungarian".
        scene_pooling: what g reads off its outputs, "sum" (Fig. 5a) or "token" (Fig. 5b).
        order_aware_scales: whether z_k has a scale of its own, w(h'_k), or keeps that of o_pi(k) (A.5, Model 5), which
            leaves nothing for f' to do.
        shared_order_nets: whether f' has the weights of the model's f (A.5, Model 6).
    """

    def __init__(
        self,
        model: LatentObjectModel,
        orderless_guide: nn.Module | None = None,
        *,
        num_encoder_blocks: int = 3,
        num_blocks: int = 2,
        width: int | None = None,
        mlp_ratio: int = 1,
        matching: str = "greedy",
        scene_pooling: str = "sum",
        order_aware_scales: bool = True,
        shared_order_nets: bool = False,
    ):
        super().__init__()
        self.borrow("model", model)
        self.borrow("orderless_guide", orderless_guide)
        scene_dim, slot_dim = model.scene_dim, model.slot_dim
        width = width or slot_dim
        self.match = MATCHINGS[matching]
        self.scene_encoder = SceneEncoder(
            slot_dim,
            scene_dim,
            width=width,
            num_blocks=num_encoder_blocks,
            mlp_ratio=mlp_ratio,
            pooling=scene_pooling,
        )
        self.scene_posterior = xavier_(GaussianHead(scene_dim, scene_dim))
        self.order_net = self.scale_head = None
        if order_aware_scales:
            self.order_net = PosteriorOrder(
                scene_dim,
                slot_dim,
                width=width,
                num_blocks=num_blocks,
                mlp_ratio=mlp_ratio,
                shared=model.order_net if shared_order_nets else None,
            )
            self.scale_head = xavier_(nn.Linear(width, slot_dim))

    def forward(self, images: Float[Tensor, "B C H W"], *, orderless: OrderlessPosterior | None = None) -> LomInference:
        """Infer scenes and ordered slots; `orderless` hands over what the orderless guide found before."""
        with pyro.plate("scenes", len(images), dim=-2):
            # 1. Estimate the orderless slot posterior, and stop its gradient (Sec. 3.3).
            orderless = (self.orderless_guide.infer(images) if orderless is None else orderless).detach()
            # 2. Estimate the scene posterior (Eq. 4).
            scene = pyro.sample("s", self.infer_scene(orderless.loc.unsqueeze(-3)))
            # 3. Estimate the scene-conditioned ordered slot prior (Eq. 2).
            prior = self.model.slot_prior(self.model.order_net(scene.squeeze(-2)))
            # 4. Align the orderless slot posterior to it (Algorithm 1).
            permutation = self.match(prior.mean, orderless.loc)
            aligned = permute(orderless.loc, permutation)
            # 5. Estimate the ordered slot posterior: the aligned means, with order-aware scales (Eq. 5).
            if self.order_net is None:
                scale = permute(orderless.scale, permutation)
            else:
                posterior_order = self.order_net(scene.squeeze(-2), aligned)
                scale = positive(self.scale_head(posterior_order))
            with pyro.plate("slots", self.model.num_slots, dim=-1):
                slots = pyro.sample("z", diagonal_normal(aligned, scale))
        return LomInference(scene, slots, permutation, orderless)

    def infer_scene(self, slots: Float[Tensor, "*batch K Dz"]) -> dist.Distribution:
        """q(s | g(slots)) of batch shape (*batch), whatever the order of the slots (Eq. 4)."""
        return self.scene_posterior(self.scene_encoder(slots))
