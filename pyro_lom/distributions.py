"""Small helpers around Pyro's distributions."""

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def positive(raw: Float[Tensor, "*shape"], floor: float = 1e-4) -> Float[Tensor, "*shape"]:
    """A standard deviation from a raw network output: softplus(raw) + floor, in float32 whatever the autocast."""
    return F.softplus(raw.float()) + floor


def diagonal_normal(loc: Float[Tensor, "*batch D"], scale: Float[Tensor, "*batch D"]) -> dist.Distribution:
    """N(loc, diag(scale^2)) with event shape (D,)."""
    return dist.Normal(loc.float(), scale).to_event(1)


class GaussianHead(nn.Module):
    """Two linear layers that map features to the loc and the softplus-activated scale of a diagonal normal (A.1)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.loc = nn.Linear(in_dim, out_dim)
        self.raw_scale = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> dist.Distribution:
        return diagonal_normal(self.loc(features), positive(self.raw_scale(features)))


def normal_of(raw: Float[Tensor, "*batch two_D"]) -> dist.Distribution:
    """A diagonal normal from EMORL's raw parameters: its loc, and what softplus makes its variance (plus 1e-5)."""
    loc, raw_variance = raw.chunk(2, dim=-1)
    return diagonal_normal(loc, (F.softplus(raw_variance.float()) + 1e-5).sqrt())


class RawHead(nn.Module):
    """Two linear layers that map features to what `normal_of` reads."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.loc = nn.Linear(in_dim, out_dim)
        self.raw_variance = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch two_out"]:
        return torch.cat([self.loc(features), self.raw_variance(features)], dim=-1)
