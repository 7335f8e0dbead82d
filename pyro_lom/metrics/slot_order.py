"""Slot-order stability: does a slot index draw the same kind of thing from scene to scene (Fig. 3d)?

Take two scenes and forget the order of their slots. Pair each slot of one with a slot of the other so that what they
draw is as alike as can be. Stability is the share of slots that find their own index again.
"""

import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_lom.types import Rendering

MIN_AREA = 0.005  # a slot that has the largest mask on fewer of the pixels draws nothing
_SIDE = 8


def portraits(rendering: Rendering) -> tuple[Float[Tensor, "B K D"], Bool[Tensor, "B K"]]:
    """What each slot draws, in small: its mask and its masked colours, shrunk to 8x8; and whether it draws anything."""
    masks = rendering.log_masks.exp()
    drawn = torch.cat([masks, masks * rendering.components], dim=-3)
    small = torch.nn.functional.adaptive_avg_pool2d(drawn.flatten(0, 1), _SIDE).unflatten(0, drawn.shape[:2])
    largest = masks.squeeze(-3).argmax(1)
    share = torch.stack([(largest == k).float().mean((1, 2)) for k in range(masks.shape[1])], dim=1)
    return small.flatten(2), share >= MIN_AREA


def slot_order_stability(portraits: Float[Tensor, "B K D"], draws: Bool[Tensor, "B K"]) -> float:
    """Share of slots that match their own index in the next scene, in [0, 1]; by chance 1 / K.

    The matching is the assignment of the smallest summed L2 distance. Only slots that draw something are counted.

    Returns:
        nan with fewer than two scenes, or if no slot draws anything.
    """
    if len(portraits) < 2 or not draws.any():
        return float("nan")
    cost = torch.cdist(portraits, portraits.roll(-1, dims=0)).cpu().numpy()
    matched = torch.stack([torch.as_tensor(linear_sum_assignment(pair)[1]) for pair in cost])
    own = matched == torch.arange(cost.shape[-1])
    return own[draws.cpu()].double().mean().item()
