"""SRI's guide: the LOM's five steps, with samples as the scene encoder's input and a rollout as the prior's order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from models.autoregressive import sample_in_turn
from models.sri import Sri
from pyro_lom.distributions import diagonal_normal, mean, positive_root
from pyro_lom.matching import greedy_matching, permute
from pyro_lom.program import Guide
from pyro_lom.types import LomInference, OrderlessPosterior


class SriGuide(Guide):
    """q(s | o_1:K) prod_k q(z_k | o_1:K, s)

        o_k    ~ N(o_k; x)                          a sample of the orderless posterior, without a gradient
        s      ~ N(g(o_1:K))                        the scene, independent of the order of its slots
        r_k    ~ p(z_k | r_1:k-1, s)                a rollout of the model's prior
        pi     = match(means of the rollout, means of the orderless slots)
        z_k    ~ N(loc_pi(k), w(LSTM(s, loc_pi(1):pi(k-1))))

    The samples o and r are masked auxiliary sites, because the ELBO is a bound for all their values: `o` (B, 1 | K, Dz)
    and `rollout_1` to `rollout_K`, each (B, 1 | Dz). The published loss also contains the KLs from q(z_k) to the
    distributions of the rollout (`pyro_lom/geco.py: FreeNatsELBO`).

    Args:
        model: its prior is rolled out.
        orderless_guide: a guide whose `infer` returns an `OrderlessPosterior`. It is borrowed. Its own ELBO trains its
            parameters; this pair's loss has no gradient to them.
        scene_encoder: g, maps orderless samples to features of the scene (`RelationSceneEncoder`).
        scene_posterior: maps these features to q(s), a distribution of event shape (Ds,).
        recurrence: maps a scene and aligned means to features of each slot's scale (`SlotRecurrence`).
        scale_head: w, maps these features to raw variances.
        matching: maps the rollout's means and the orderless means to a permutation, as Algorithm 1 does.
    """

    def __init__(
        self,
        model: Sri,
        orderless_guide: nn.Module | None = None,
        *,
        scene_encoder: nn.Module,
        scene_posterior: nn.Module,
        recurrence: nn.Module,
        scale_head: nn.Module,
        matching: Callable[[Tensor, Tensor], Tensor] = greedy_matching,
    ):
        super().__init__()
        self.borrow("model", model)
        self.borrow("orderless_guide", orderless_guide)
        self.scene_encoder = scene_encoder
        self.scene_posterior = scene_posterior
        self.recurrence = recurrence
        self.scale_head = scale_head
        self.match = matching

    @property
    def rollouts(self) -> dict[str, str]:
        """The site of the rollout for each slot site."""
        return {site: site.replace("z", "rollout") for site in self.model.slot_sites}

    def forward(self, images: Float[Tensor, "B C H W"], *, inferred: OrderlessPosterior | None = None) -> LomInference:
        """Sample scenes and ordered slots. `inferred` is the orderless posterior of `images` if already computed."""
        model = self.model
        with pyro.plate("scenes", len(images), dim=-2):
            # 1. Estimate the orderless slot posterior, stop its gradient, and sample.
            orderless = (self.infer(images) if inferred is None else inferred).detach()
            with _auxiliary():
                samples = pyro.sample("o", _scene_of(orderless))
            # 2. Estimate the scene posterior.
            scene = pyro.sample("s", self.scene_posterior(self.scene_encoder(samples)))
            # 3. Roll out the prior: each slot is given the prior's own samples before it.
            with _auxiliary():
                priors, _ = sample_in_turn(self.rollouts.values(), scene, model.recurrence, model.slot_prior)
            # 4. Align the orderless slot posterior to the rollout.
            permutation = self.match(torch.cat([mean(prior) for prior in priors], dim=-2), orderless.loc)
            aligned = permute(orderless.loc, permutation)
            # 5. Estimate the ordered slot posterior: the aligned means, with order-aware scales.
            scale = positive_root(self.scale_head(self.recurrence.read(scene.squeeze(-2), aligned)))
            each = zip(model.slot_sites, aligned.split(1, dim=-2), scale.split(1, dim=-2), strict=True)
            slots = [pyro.sample(site, diagonal_normal(loc, scale)) for site, loc, scale in each]
        return LomInference(scene, torch.cat(slots, dim=-2), permutation, orderless)

    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        """Return the orderless posterior of the borrowed guide."""
        return self.orderless_guide.infer(images)

    def log_masks(self, inferred: OrderlessPosterior) -> Float[Tensor, "B K 1 H W"] | None:
        """Return the log masks of the borrowed guide, or None if `inferred` has none."""
        return inferred.log_masks


def _scene_of(orderless: OrderlessPosterior) -> dist.Distribution:
    """Return the orderless posterior of all slots of a scene, of batch shape (B, 1) and event shape (K, Dz)."""
    return diagonal_normal(orderless.loc.unsqueeze(-3), orderless.scale.unsqueeze(-3)).to_event(1)


@contextmanager
def _auxiliary() -> Iterator[None]:
    """Enter a context in which sites have no log density and no counterpart in the model."""
    with poutine.mask(mask=False), poutine.infer_config(config_fn=lambda site: {"is_auxiliary": True}):
        yield
