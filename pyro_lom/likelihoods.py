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
