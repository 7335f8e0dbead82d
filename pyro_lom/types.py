"""The data types that models, guides, metrics and figures exchange.

Axis letters: B scenes; K slots; C, H, W channels, height and width of images; Ds and Dz dimensions of scene and slot
latents. Networks accept any number of leading axes (`*batch`).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Rendering(NamedTuple):
    """Decoded latents. With slots, `image` = sum_k mask_k component_k (the mean of Eq. 3)."""

    image: Float[Tensor, "*batch C H W"]
    components: Float[Tensor, "*batch K C H W"] | None = None
    log_masks: Float[Tensor, "*batch K 1 H W"] | None = None  # exp sums to one over K at every pixel


class SlotMoments(NamedTuple):
    """prod_k N(loc_k, scale_k)."""

    loc: Float[Tensor, "*batch K Dz"]
    scale: Float[Tensor, "*batch K Dz"]


class OrderlessPosterior(NamedTuple):
    """q(o_1:K | x) = prod_k N(loc_k, scale_k), with the guide's intermediate results."""

    loc: Float[Tensor, "*batch K Dz"]
    scale: Float[Tensor, "*batch K Dz"]
    log_masks: Float[Tensor, "*batch K 1 H W"] | None = None  # of the encoder
    # Posteriors of earlier steps, in order: EMORL's q_1 to q_3, and its refined posteriors except the last.
    earlier: tuple[SlotMoments, ...] = ()
    samples: tuple[Float[Tensor, "*batch K Dz"], ...] = ()  # of the training loss, if it reuses those of inference

    def detach(self) -> "OrderlessPosterior":
        """Return the posterior without a gradient to the orderless guide (`stop_grad`, Sec. 3.3)."""
        return tree_map_only(Tensor, torch.Tensor.detach, self)

    def moments(self) -> "OrderlessPosterior":
        """Return the means and scales, without intermediate results."""
        return OrderlessPosterior(self.loc, self.scale)


class LomInference(NamedTuple):
    """The result of the LOM's guide: samples of `s` and `z`, and the order of the slots."""

    scene: Float[Tensor, "*batch 1 Ds"]
    slots: Float[Tensor, "*batch K Dz"]
    permutation: Int[Tensor, "*batch K"]  # permutation[..., k] is the orderless index at place k
    orderless: OrderlessPosterior
