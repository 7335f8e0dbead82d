"""Image likelihoods p(x | z_1:K).

The site `x` has batch shape (B, 1) and event shape (C, H, W). An image belongs to a scene and not to a slot, so the
axis of the plate `slots` has length one.
"""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32
from pyro_lom.types import Rendering


class GaussianLikelihood(nn.Module):
    """p(x | z) = prod_i N(sum_k m_ik x_ik, sigma^2), which is invariant to the order of the slots (Eq. 3).

    `image_scale` is sigma, one number for every pixel and channel, for images in [0, 1].
    """

    def __init__(self, image_scale: float):
        super().__init__()
        self.register_buffer("image_scale", torch.tensor(image_scale))

    def forward(self, rendering: Rendering) -> dist.Distribution:
        return dist.Normal(at_least_float32(rendering.image).unsqueeze(-4), self.image_scale).to_event(3)


class MixtureLikelihood(nn.Module):
    """p(x | z) = prod_i sum_k m_ik N(x_ik, sigma^2), i over pixels and channels, as published for GENESIS-v2 and EMORL.

    Unlike `GaussianLikelihood`, it penalises a uniform background that is split among slots, because slots compete for
    each value (Sec. 3.1). Its mean equals the mean of `GaussianLikelihood`. It is invariant to the order of the slots.
    """

    def __init__(self, image_scale: float):
        super().__init__()
        self.register_buffer("image_scale", torch.tensor(image_scale))

    def forward(self, rendering: Rendering) -> dist.Distribution:
        parts = rendering.log_masks.expand_as(rendering.components), rendering.components
        which, colours = (at_least_float32(part).movedim(-4, -1).unsqueeze(-5) for part in parts)
        slots = dist.Normal(colours, self.image_scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=which), slots).to_event(3)


def observed(images: Float[Tensor, "B C H W"] | None) -> Float[Tensor, "B 1 C H W"] | None:
    """Return images in the shape of the site `x`, or None for None: `x` is then sampled."""
    return None if images is None else images.unsqueeze(-4)


def compose(raw: Float[Tensor, "*batch K channels H W"]) -> Rendering:
    """Compute colours (sigmoid), masks (softmax over slots) and the image (Eq. 3) from decoded channels.

    The last channel of `raw` contains the logits of the masks. The other channels contain the logits of the colours.
    """
    components = at_least_float32(raw[..., :-1, :, :]).sigmoid()
    log_masks = at_least_float32(raw[..., -1:, :, :]).log_softmax(-4)
    return weighted(components, log_masks)


def weighted(components: Float[Tensor, "*batch K C H W"], log_masks: Float[Tensor, "*batch K 1 H W"]) -> Rendering:
    """Compute the image: the sum of the components, weighted by their masks (Eq. 3)."""
    return Rendering((log_masks.exp() * components).sum(-4), components, log_masks)
