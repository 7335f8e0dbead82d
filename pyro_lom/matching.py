"""Matching an orderless set of slots to the order of the prior (Sec. 3.2 step 4, Algorithm 1)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def greedy_matching(
    ordered: Float[Tensor, "*batch K Dz"], orderless: Float[Tensor, "*batch K Dz"]
) -> Int[Tensor, "*batch K"]:
    """Give each place, in turn, the nearest orderless slot that is still free (Algorithm 1).

        pi(i) = argmin_j ||ordered_i - orderless_j||_2  over  j not in pi(1), ..., pi(i-1)

    Returns the permutation: `permutation[..., k]` is the orderless index put at place k. It carries no gradient.
    """
    cost = torch.cdist(ordered.float(), orderless.float())
    index = torch.arange(cost.shape[-1], device=cost.device)
    places = []
    for i in range(cost.shape[-2]):
        nearest = cost[..., i, :].argmin(-1, keepdim=True)
        places.append(nearest)
        cost = torch.where(
            (index == nearest).unsqueeze(-2), torch.inf, cost
        )  # no one_hot: it would wait for the device
    return torch.cat(places, dim=-1)


@torch.no_grad()
def hungarian_matching(
    ordered: Float[Tensor, "*batch K Dz"], orderless: Float[Tensor, "*batch K Dz"]
) -> Int[Tensor, "*batch K"]:
    """The permutation with the smallest total L2 distance; runs on the CPU, one scene at a time."""
    from scipy.optimize import linear_sum_assignment  # 30 MB that greedy matching does without

    cost = torch.cdist(ordered.float(), orderless.float())
    cost = cost.nan_to_num(nan=torch.inf).clamp_max(1e30)  # SciPy refuses NaN; what diverged is reported elsewhere
    flat = cost.reshape(-1, *cost.shape[-2:]).cpu().numpy()
    places = torch.stack([torch.as_tensor(linear_sum_assignment(scene)[1]) for scene in flat])
    return places.reshape(cost.shape[:-1]).to(cost.device)


def permute(slots: Float[Tensor, "*batch K D"], permutation: Int[Tensor, "*batch K"]) -> Float[Tensor, "*batch K D"]:
    """Slots in a new order: place k receives slot `permutation[..., k]`."""
    return slots.gather(-2, permutation.unsqueeze(-1).expand_as(slots))


MATCHINGS = {"greedy": greedy_matching, "hungarian": hungarian_matching}
