"""Slot-order stability: whether a slot index draws the same kind of object in every scene (Fig. 3d).

The slots of two scenes are matched one-to-one so that matched slots draw the most similar parts of the images.
Stability is the share of slots that are matched to their own index.
"""

import torch
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_lom.types import Rendering

MIN_AREA = 0.005  # a slot draws something if its mask is the largest on at least this share of the pixels


def portraits(rendering: Rendering) -> tuple[Float[Tensor, "B K D"], Bool[Tensor, "B K"]]:
    """Return the mask and masked colours of each slot, shrunk to 8x8, and whether the slot draws something."""
    masks = rendering.log_masks.exp()
    drawn = torch.cat([masks, masks * rendering.components], dim=-3)
    small = torch.nn.functional.adaptive_avg_pool2d(drawn.flatten(0, 1), 8).unflatten(0, drawn.shape[:2])
    largest = masks.squeeze(-3).argmax(1)
    share = torch.stack([(largest == k).float().mean((1, 2)) for k in range(masks.shape[1])], dim=1)
    return small.flatten(2), share >= MIN_AREA


def slot_order_stability(portraits: Float[Tensor, "B K D"], draws: Bool[Tensor, "B K"]) -> float:
    """Share of slots that are matched to their own index in the next scene, in [0, 1]; 1 / K by chance.

    The matching minimises the sum of L2 distances. Only slots that draw something are counted.

    Returns:
        The share, or nan with fewer than two scenes or if no slot draws anything.
    """
    if len(portraits) < 2 or not draws.any():
        return float("nan")
    cost = torch.cdist(portraits, portraits.roll(-1, dims=0)).cpu().numpy()
    matched = torch.stack([torch.as_tensor(linear_sum_assignment(pair)[1]) for pair in cost])
    own = matched == torch.arange(cost.shape[-1])
    return own[draws.cpu()].double().mean().item()
