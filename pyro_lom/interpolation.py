"""Interpolations and random walks of scene latents (A.7)."""

import torch
from jaxtyping import Float
from torch import Tensor


def slerp(
    start: Float[Tensor, "*batch Ds"], end: Float[Tensor, "*batch Ds"], num: int
) -> Float[Tensor, "num *batch Ds"]:
    """Interpolate spherically from `start` to `end` at `num` points, including both ends.

    Each end is first scaled to the norm sqrt(Ds), near which the samples of a standard normal concentrate (A.7):

        s(t) = [sin((1-t) w) start + sin(t w) end] / sin w,    w the angle between them
    """
    radius = start.shape[-1] ** 0.5
    start, end = (radius * torch.nn.functional.normalize(x, dim=-1) for x in (start, end))
    cosine = (start * end).sum(-1, keepdim=True) / radius**2
    angle = cosine.clamp(-1 + 1e-6, 1 - 1e-6).acos()
    t = torch.linspace(0, 1, num, device=start.device).view(-1, *[1] * start.ndim)
    return (torch.sin((1 - t) * angle) * start + torch.sin(t * angle) * end) / torch.sin(angle)


def random_walk(start: Float[Tensor, "*batch Ds"], num: int, step: float) -> Float[Tensor, "num *batch Ds"]:
    """Draw a random walk of `num` scenes from `start`, with stationary distribution N(0, I); `step` is in (0, 1].

    s_t+1 = sqrt(1 - step^2) s_t + step e,    e ~ N(0, I)
    """
    scenes = [start]
    for _ in range(num - 1):
        scenes.append((1 - step**2) ** 0.5 * scenes[-1] + step * torch.randn_like(start))
    return torch.stack(scenes)
