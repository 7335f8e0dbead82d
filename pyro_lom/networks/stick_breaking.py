"""Masks by stick breaking: from logits, as in GENESIS, or by clustering of pixels, as in GENESIS-v2."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32


def pixel_grid(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, "2 H W"]:
    """Return the row and column of every pixel, each in [-1, 1]."""
    axes = (torch.linspace(-1, 1, size, device=device) for size in (height, width))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def break_stick(logits: Float[Tensor, "*batch K 1 H W"]) -> Float[Tensor, "*batch K 1 H W"]:
    """Return log masks. Each mask takes a share of the scope, which is what the masks before it left of every pixel.

        m_k = s_k sigmoid(logit_k),    s_1 = 1,    s_k+1 = s_k sigmoid(-logit_k)

    The last mask is the last scope, and the last logit is not used (Engelcke et al., 2019).
    """
    logits = at_least_float32(logits)[..., :-1, :, :, :]
    log_scopes = F.logsigmoid(-logits).cumsum(-4)
    log_masks = F.logsigmoid(logits) + F.pad(log_scopes, (0, 0, 0, 0, 0, 0, 1, -1))
    return torch.cat([log_masks, log_scopes[..., -1:, :, :, :]], dim=-4)


class InstanceColouring(nn.Module):
    """Cluster pixels into K masks, sequentially, around K-1 randomly chosen pixels (Engelcke et al., 2021).

    The scope s is the share of each pixel that no mask contains yet. It starts at one:

        seed_k  = embedding at argmax(seed_scores * s)
        alpha_k = exp(-||embedding - seed_k||^2 / bandwidth)
        m_k     = s alpha_k,    s <- s (1 - alpha_k)

    The K-th mask is the last scope.
    """

    def __init__(self, num_slots: int):
        super().__init__()
        self.num_slots = num_slots
        self.log_bandwidth = nn.Parameter(torch.tensor(-math.log(num_slots * math.log(2))))

    def forward(
        self, embedding: Float[Tensor, "B E H W"], seed_scores: Float[Tensor, "*batch 1 H W"]
    ) -> Float[Tensor, "*batch K 1 H W"]:
        """Return log masks; `seed_scores`, uniform on (0, 1), determine the seeds of the clusters."""
        scores = seed_scores.flatten(-3)  # (*batch, N)
        pixels = at_least_float32(embedding).flatten(-2)  # (B, E, N)
        pixels = pixels.expand(*scores.shape[:-1], *pixels.shape[-2:])
        bandwidth = self.log_bandwidth.exp()
        log_scope = torch.zeros_like(scores)
        log_masks = []
        for _ in range(self.num_slots - 1):
            seed = (scores * log_scope.detach().exp()).argmax(-1)
            seed = seed[..., None, None].expand(*pixels.shape[:-1], 1)
            distance = (pixels - pixels.gather(-1, seed)).square().sum(-2)
            alpha = torch.exp(-distance / bandwidth)
            alpha = alpha + (alpha.clamp(0.01, 0.99) - alpha).detach()  # straight-through clamp keeps every log finite
            log_masks.append(log_scope + alpha.log())
            log_scope = log_scope + torch.log1p(-alpha)
        log_masks.append(log_scope)
        return torch.stack(log_masks, dim=-2).unflatten(-1, (1, *embedding.shape[-2:]))
