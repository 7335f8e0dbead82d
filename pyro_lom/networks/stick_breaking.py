"""Instance colouring and stick-breaking: GENESIS-v2's way from pixel features to masks (Engelcke et al., 2021)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def pixel_grid(height: int, width: int) -> Float[Tensor, "2 H W"]:
    """Row and column of every pixel, each from -1 to 1."""
    return torch.stack(torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"))


class InstanceColouring(nn.Module):
    """Cluster pixels into K masks around K-1 randomly chosen pixels, one after another.

    Each pixel gets an embedding, a gated convolution of its features plus its coordinates (a semi-convolution). Then,
    with everything still unexplained in the scope s,

        seed_k  = embedding at argmax(seed_scores * s)
        alpha_k = exp(-||embedding - seed_k||^2 / bandwidth)
        m_k     = s alpha_k,    s <- s (1 - alpha_k)

    and the K-th mask takes what is left. With `pixel_colours` the raw channels of the image join the coordinates,
    scaled by a learned weight (a departure for short trainings).
    """

    def __init__(self, in_channels: int, *, num_slots: int, pixel_colours: bool, embedding_dim: int = 8):
        super().__init__()
        self.num_slots = num_slots
        self.embedding = nn.Conv2d(in_channels, embedding_dim, 1)
        self.gate = nn.Parameter(torch.zeros(()))
        self.log_bandwidth = nn.Parameter(torch.tensor(-math.log(num_slots * math.log(2))))
        self.colour_weight = nn.Parameter(torch.ones(())) if pixel_colours else None

    def embed(
        self, features: Float[Tensor, "B D H W"], images: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B embedding H W"]:
        embedding = self.gate * self.embedding(features)
        grid = pixel_grid(*images.shape[-2:]).to(embedding).expand(len(images), -1, -1, -1)
        if self.colour_weight is not None:
            grid = torch.cat([self.colour_weight * images, grid], dim=1)
        unused = embedding.shape[1] - grid.shape[1]
        return embedding + torch.cat([torch.zeros_like(embedding[:, :unused]), grid], dim=1)

    def forward(
        self,
        features: Float[Tensor, "B D H W"],
        images: Float[Tensor, "B C H W"],
        seed_scores: Float[Tensor, "*batch 1 H W"],
    ) -> Float[Tensor, "*batch K 1 H W"]:
        """Log masks; `seed_scores`, uniform on (0, 1), decide where the clusters start."""
        height, width = images.shape[-2:]
        embedding = self.embed(features, images).float().flatten(-2)  # (B, E, N)
        scores = seed_scores.flatten(-3)  # (*batch, N)
        embedding = embedding.expand(*scores.shape[:-1], *embedding.shape[-2:])
        bandwidth = self.log_bandwidth.exp()
        log_scope = torch.zeros_like(scores)
        log_masks = []
        for _ in range(self.num_slots - 1):
            seed = (scores * log_scope.detach().exp()).argmax(-1)
            seed = seed[..., None, None].expand(*embedding.shape[:-1], 1)
            distance = (embedding - embedding.gather(-1, seed)).square().sum(-2)
            alpha = torch.exp(-distance / bandwidth)
            alpha = alpha + (alpha.clamp(0.01, 0.99) - alpha).detach()  # straight-through: keep every log finite
            log_masks.append(log_scope + alpha.log())
            log_scope = log_scope + torch.log1p(-alpha)
        log_masks.append(log_scope)
        return torch.stack(log_masks, dim=-2).unflatten(-1, (1, height, width))
