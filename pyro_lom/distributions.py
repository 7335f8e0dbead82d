"""Functions and network layers that return Pyro distributions."""

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the tensor in float32 if it has half precision, as under autocast; otherwise return it unchanged."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def positive(raw: Float[Tensor, "*shape"], floor: float = 1e-4) -> Float[Tensor, "*shape"]:
    """Map a network output to a standard deviation: softplus(raw) + floor, in float32 even under autocast."""
    return F.softplus(at_least_float32(raw)) + floor


def diagonal_normal(loc: Float[Tensor, "*batch D"], scale: Float[Tensor, "*batch D"]) -> dist.Distribution:
    """Return N(loc, diag(scale^2)) with event shape (D,)."""
    return dist.Normal(at_least_float32(loc), scale).to_event(1)


class GaussianHead(nn.Module):
    """Two linear layers that map features to a diagonal normal: its loc and its softplus-activated scale (A.1)."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.loc = nn.Linear(in_dim, out_dim)
        self.raw_scale = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> dist.Distribution:
        return diagonal_normal(self.loc(features), positive(self.raw_scale(features)))


def normal_of(raw: Float[Tensor, "*batch two_D"]) -> dist.Distribution:
    """Map EMORL's raw parameters [loc, raw_variance] to a diagonal normal with variance softplus(raw) + 1e-5."""
    loc, raw_variance = raw.chunk(2, dim=-1)
    return diagonal_normal(loc, (F.softplus(at_least_float32(raw_variance)) + 1e-5).sqrt())


class RawHead(nn.Module):
    """Two linear layers that map features to the raw parameters of `normal_of`."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.loc = nn.Linear(in_dim, out_dim)
        self.raw_variance = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch two_out"]:
        return torch.cat([self.loc(features), self.raw_variance(features)], dim=-1)


def mean(distribution: dist.Distribution) -> Tensor:
    """Return the mean of a distribution, or the mean of 256 samples if it has no formula, as a flow has none.

    Where the mean does not exist, as that of a Cauchy distribution, this is the mode.
    """
    try:
        value = distribution.mean
    except NotImplementedError:
        return distribution.sample((256,)).mean(0)
    try:
        return torch.where(value.isnan(), distribution.mode, value)
    except NotImplementedError:  # the mode of a mixture
        return value


def stddev(distribution: dist.Distribution) -> Tensor:
    """Return the standard deviation of a distribution, or of 256 samples if it has no formula."""
    try:
        return distribution.stddev
    except NotImplementedError:
        return distribution.sample((256,)).std(0)
