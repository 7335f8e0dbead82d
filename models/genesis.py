"""GENESIS (Engelcke et al., 2019): an autoregressive prior over masks, and components given the masks' latents."""

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import Computed, at_least_float32, bounded_normal, diagonal_normal
from pyro_lom.likelihoods import observed, weighted
from pyro_lom.networks.stick_breaking import break_stick
from pyro_lom.program import Model
from pyro_lom.types import Rendering


class Genesis(Model):
    """p(x, zm_1:K, zc_1:K) = prod_k p(zm_k | zm_1:k-1) prod_k p(zc_k | zm_k) p(x | zm_1:K, zc_1:K)

        zm_k  ~ p(zm_k | zm_1:k-1)           mask latents, one after another; the first is N(0, I)
        m_1:K = break_stick(decoder(zm))     each mask takes a share of what the masks before it left
        zc_k  ~ p(zc_k | zm_k)               component latents, independent given the mask latents
        x     ~ sum_k m_k N(x_k, sigma)      at each pixel and channel; or another `likelihood`

    Sites `z_mask_1` to `z_mask_K` (B, 1 | Dm), `log_m` (B, 1 | K, 1, H, W; deterministic), `z_component_1` to
    `z_component_K` (B, 1 | Dc) and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2. A slot is [zm_k, zc_k].

    Replayed against the guide, the model takes the masks at `log_m` from the guide, which has decoded them.

    Args:
        mask_prior: maps zm_k-1 and a state to p(zm_k | zm_1:k-1) and the next state (`RecurrentHead`).
        mask_decoder: maps mask latents to the logits of masks; its `size` is the height and width of images.
        component_prior: maps zm_k to raw parameters of p(zc_k | zm_k).
        component_decoder: maps component latents to the logits of colours.
        likelihood: maps a rendering to p(x | zm, zc), as the modules of `pyro_lom/likelihoods.py` do.
        num_slots, mask_dim, component_dim: K, Dm and Dc.
    """

    def __init__(
        self,
        *,
        mask_prior: nn.Module,
        mask_decoder: nn.Module,
        component_prior: nn.Module,
        component_decoder: nn.Module,
        likelihood: nn.Module,
        num_slots: int,
        mask_dim: int,
        component_dim: int,
    ):
        super().__init__()
        self.num_slots, self.slot_dim = num_slots, mask_dim + component_dim
        self.mask_dim, self.component_dim = mask_dim, component_dim
        self.mask_sites = tuple(f"z_mask_{k}" for k in range(1, num_slots + 1))
        self.component_sites = tuple(f"z_component_{k}" for k in range(1, num_slots + 1))
        self.slot_sites = self.mask_sites + self.component_sites
        self.mask_prior, self.mask_decoder = mask_prior, mask_decoder
        self.component_prior, self.component_decoder = component_prior, component_decoder
        self.likelihood = likelihood
        self.register_buffer("first_loc", torch.zeros(mask_dim))
        self.register_buffer("first_scale", torch.ones(mask_dim))

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            prior, state, masks = diagonal_normal(self.first_loc, self.first_scale), None, []
            for site in self.mask_sites:
                if masks:
                    prior, state = self.mask_prior(masks[-1], state)
                masks.append(pyro.sample(site, prior))
            masks = torch.cat(masks, dim=-2)
            log_masks = self.sample_masks(masks)
            priors = self.component_prior(masks).split(1, dim=-2)
            components = [
                pyro.sample(site, bounded_normal(raw)) for site, raw in zip(self.component_sites, priors, strict=True)
            ]
            rendering = self._compose(log_masks, torch.cat(components, dim=-2))
            return pyro.sample("x", self.likelihood(rendering), obs=observed(images))

    def sample_masks(self, masks: Float[Tensor, "*batch K Dm"]) -> Float[Tensor, "*batch K 1 H W"]:
        """Return the log masks at the site `log_m`; they are decoded unless a handler, such as replay, provides them.

        Call this within the plate `scenes`.
        """
        shapes = (*masks.shape[:-2], 1), (self.num_slots, 1, self.mask_decoder.size, self.mask_decoder.size)
        point = Computed(lambda: self._decode_masks(masks).unsqueeze(-5), *shapes)
        return pyro.sample("log_m", point, infer={"_deterministic": True}).squeeze(-5)

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Decode the latents of the slot sites, each (*batch, 1, Dm) or (*batch, 1, Dc), and compose them."""
        masks, components = self.join(latents).split([self.mask_dim, self.component_dim], dim=-1)
        return self._compose(self._decode_masks(masks), components)

    def join(self, latents: dict[str, Tensor]) -> Float[Tensor, "*batch K Dz"]:
        """Return slots [zm_k, zc_k], of Dz = Dm + Dc numbers."""
        parts = ([latents[site] for site in sites] for sites in (self.mask_sites, self.component_sites))
        return torch.cat([torch.cat(part, dim=-2) for part in parts], dim=-1)

    def split(self, slots: Float[Tensor, "*batch K Dz"]) -> dict[str, Tensor]:
        """Return slots by site; the inverse of `join`."""
        parts = slots.split([self.mask_dim, self.component_dim], dim=-1)
        return dict(zip(self.slot_sites, (slot for part in parts for slot in part.split(1, dim=-2)), strict=True))

    def _decode_masks(self, masks: Float[Tensor, "*batch K Dm"]) -> Float[Tensor, "*batch K 1 H W"]:
        return break_stick(self.mask_decoder(masks))

    def _compose(
        self, log_masks: Float[Tensor, "*batch K 1 H W"], components: Float[Tensor, "*batch K Dc"]
    ) -> Rendering:
        return weighted(at_least_float32(self.component_decoder(components)).sigmoid(), log_masks)
