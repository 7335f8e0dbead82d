"""Matching of orderless slots to the order of the prior (Sec. 3.2 step 4, Algorithm 1).

A matching maps the prior's means and the orderless means to a permutation: `permutation[..., k]` is the index of the
orderless slot at place k. It has no gradient, and it is a permutation for all inputs: distances that are NaN, or
larger than a float32, count as the largest float32. A slot with NaN is therefore matched last.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pyro_lom.distributions import at_least_float32

_LARGEST = torch.finfo(torch.float32).max


@torch.no_grad()
def greedy_matching(
    ordered: Float[Tensor, "*batch K Dz"], orderless: Float[Tensor, "*batch K Dz"]
) -> Int[Tensor, "*batch K"]:
    """Match each place, in turn, to the nearest orderless slot that is still free (Algorithm 1).

        pi(i) = argmin_j ||ordered_i - orderless_j||_2  over  j not in pi(1), ..., pi(i-1)

    If distances are equal, the slot with the lowest index is matched.
    """
    cost = _distances(ordered, orderless)
    index = torch.arange(cost.shape[-1], device=cost.device)
    places = []
    for i in range(cost.shape[-2]):
        nearest = cost[..., i, :].argmin(-1, keepdim=True)
        places.append(nearest)
        # one_hot would synchronise with the device.
        cost = torch.where((index == nearest).unsqueeze(-2), torch.inf, cost)
    return torch.cat(places, dim=-1)


@torch.no_grad()
def hungarian_matching(
    ordered: Float[Tensor, "*batch K Dz"], orderless: Float[Tensor, "*batch K Dz"]
) -> Int[Tensor, "*batch K"]:
    """Return the permutation with the smallest total L2 distance (A.2). It runs on the CPU, scene by scene."""
    from scipy.optimize import linear_sum_assignment  # 30 MB, which greedy matching does not need

    cost = _distances(ordered, orderless)
    flat = cost.double().reshape(-1, *cost.shape[-2:]).cpu().numpy()
    places = torch.stack([torch.as_tensor(linear_sum_assignment(scene)[1]) for scene in flat])
    return places.reshape(cost.shape[:-1]).to(cost.device)


def permute(slots: Float[Tensor, "*batch K D"], permutation: Int[Tensor, "*batch K"]) -> Float[Tensor, "*batch K D"]:
    """Return the slots in a new order: slot `permutation[..., k]` is at place k."""
    return slots.gather(-2, permutation.unsqueeze(-1).expand_as(slots))


def _distances(
    ordered: Float[Tensor, "*batch K Dz"], orderless: Float[Tensor, "*batch K Dz"]
) -> Float[Tensor, "*batch K K"]:
    """Return L2 distances up to one factor per scene, which is 1 unless squares of the values may exceed float32."""
    ordered, orderless = at_least_float32(ordered), at_least_float32(orderless)
    largest = torch.maximum(*(means.nan_to_num(0.0, 0.0, 0.0).abs().amax((-2, -1)) for means in (ordered, orderless)))
    factor = (largest / 1e15).clamp_min(1.0)[..., None, None]
    return torch.cdist(ordered / factor, orderless / factor).nan_to_num(nan=_LARGEST, posinf=_LARGEST)
