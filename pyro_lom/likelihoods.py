"""Image likelihoods p(x | z_1:K).

An image belongs to a scene and to no slot in particular: its place along the plate `slots` is an axis of length one, so
the site `x` has batch shape (B, 1) and event shape (C, H, W).
"""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.types import Rendering


class GaussianLikelihood(nn.Module):
    """p(x | z) = prod_i N(sum_k m_ik x_ik, sigma^2): blind to the order of the slots (Eq. 3).

    `image_scale` is sigma, one number for every pixel and channel, for images in [0, 1].
    """

    def __init__(self, image_scale: float):
        super().__init__()
        self.register_buffer("image_scale", torch.tensor(image_scale))

    def forward(self, rendering: Rendering) -> dist.Distribution:
        return dist.Normal(rendering.image.float().unsqueeze(-4), self.image_scale).to_event(3)


class MixtureLikelihood(nn.Module):
    """p(x | z) = prod_i sum_k m_ik N(x_ik, sigma^2), i over pixels and channels: the default of GENESIS-v2 and EMORL.

    Slots compete for each value, and to split a plain background among them costs what it does not cost under
    `GaussianLikelihood` (Sec. 3.1). Its mean is the same, and it is as blind to their order.
    """

    def __init__(self, image_scale: float):
        super().__init__()
        self.register_buffer("image_scale", torch.tensor(image_scale))

    def forward(self, rendering: Rendering) -> dist.Distribution:
        log_masks = rendering.log_masks.expand_as(rendering.components)
        which, colours = (part.float().movedim(-4, -1).unsqueeze(-5) for part in (log_masks, rendering.components))
        slots = dist.Normal(colours, self.image_scale)
        return dist.MixtureSameFamily(dist.Categorical(logits=which), slots).to_event(3)


LIKELIHOODS: dict[str, type[nn.Module]] = {"gaussian": GaussianLikelihood, "mixture": MixtureLikelihood}


def observed(images: Float[Tensor, "B C H W"] | None) -> Float[Tensor, "B 1 C H W"] | None:
    """Images as observations of the site `x`; None stays None, and `x` is sampled."""
    return None if images is None else images.unsqueeze(-4)


def compose(raw: Float[Tensor, "*batch K channels H W"]) -> Rendering:
    """Turn decoded channels into a scene: sigmoid colours, masks from a softmax over slots, and their sum (Eq. 3).

    The last channel of `raw` is the mask's logit, the others are the colours'.
    """
    components = raw[..., :-1, :, :].float().sigmoid()
    log_masks = raw[..., -1:, :, :].float().log_softmax(-4)
    return Rendering((log_masks.exp() * components).sum(-4), components, log_masks)
