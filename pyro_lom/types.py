"""What travels between models, guides, metrics and figures.

Axis letters, the same everywhere: B scenes, K slots, C H W pixels, Ds and Dz the dimensions of scene and slot latents.
Networks take any number of leading axes (`*batch`) before those they name.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import tree_map


class Rendering(NamedTuple):
    """What slots look like: `image` = sum_k mask_k component_k (the mean of Eq. 3)."""

    image: Float[Tensor, "*batch C H W"]
    components: Float[Tensor, "*batch K C H W"]
    log_masks: Float[Tensor, "*batch K 1 H W"]  # exp sums to one over K at every pixel


class SlotMoments(NamedTuple):
    """prod_k N(loc_k, scale_k)."""

    loc: Float[Tensor, "*batch K Dz"]
    scale: Float[Tensor, "*batch K Dz"]


class OrderlessPosterior(NamedTuple):
    """q(o_1:K | x) = prod_k N(loc_k, scale_k), with what else the orderless guide found on its way."""

    loc: Float[Tensor, "*batch K Dz"]
    scale: Float[Tensor, "*batch K Dz"]
    log_masks: Float[Tensor, "*batch K 1 H W"] | None = None  # those that the encoder pooled features over
    # Of a guide that infers in steps: what came before loc and scale, in order: EMORL's q_1 to q_3, and refined ones.
    earlier: tuple[SlotMoments, ...] = ()

    def map(self, function: Callable[..., Tensor], *others: "OrderlessPosterior") -> "OrderlessPosterior":
        """The same with every tensor put through `function`, together with its counterparts in `others`."""
        return tree_map(lambda *parts: None if parts[0] is None else function(*parts), self, *others)

    def detach(self) -> "OrderlessPosterior":
        """The same numbers, with no gradient to the orderless guide (`stop_grad`, Sec. 3.3)."""
        return self.map(torch.Tensor.detach)


class LomInference(NamedTuple):
    """What the LOM guide found out about a batch, beside its sites `s` and `z`."""

    scene: Float[Tensor, "*batch 1 Ds"]
    slots: Float[Tensor, "*batch K Dz"]
    permutation: Int[Tensor, "*batch K"]  # permutation[..., k] is the orderless index put at place k
    orderless: OrderlessPosterior
