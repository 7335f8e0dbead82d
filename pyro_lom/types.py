"""What travels between models, guides, metrics and figures.

Axis letters, the same everywhere: B scenes, K slots, C H W pixels, Ds and Dz the dimensions of scene and slot latents.
Networks take any number of leading axes (`*batch`) before those they name.
"""

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Rendering(NamedTuple):
    """What slots look like: `image` = sum_k mask_k component_k (the mean of Eq. 3)."""

    image: Float[Tensor, "*batch C H W"]
    components: Float[Tensor, "*batch K C H W"]
    log_masks: Float[Tensor, "*batch K 1 H W"]  # exp sums to one over K at every pixel


class OrderlessPosterior(NamedTuple):
    """q(o_1:K | x) = prod_k N(loc_k, scale_k), with the masks that the encoder pooled features over, if it has any."""

    loc: Float[Tensor, "*batch K Dz"]
    scale: Float[Tensor, "*batch K Dz"]
    log_masks: Float[Tensor, "*batch K 1 H W"] | None = None

    def detach(self) -> "OrderlessPosterior":
        """The same numbers, with no gradient to the orderless guide (`stop_grad`, Sec. 3.3)."""
        return OrderlessPosterior(*(None if part is None else part.detach() for part in self))


class LomInference(NamedTuple):
    """What the LOM guide found out about a batch, beside its sites `s` and `z`."""

    scene: Float[Tensor, "*batch 1 Ds"]
    slots: Float[Tensor, "*batch K Dz"]
    permutation: Int[Tensor, "*batch K"]  # permutation[..., k] is the orderless index put at place k
    orderless: OrderlessPosterior
