"""Functions and network layers that return Pyro distributions."""

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints, register_kl
from torch.distributions.utils import clamp_probs


def at_least_float32(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the tensor in float32 if it has half precision, as under autocast; otherwise return it unchanged."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def positive(raw: Float[Tensor, "*shape"], floor: float = 1e-4) -> Float[Tensor, "*shape"]:
    """Map a network output to a standard deviation: softplus(raw) + floor, in float32 even under autocast."""
    return F.softplus(at_least_float32(raw)) + floor


def bounded(scale: Float[Tensor, "*shape"], largest: float) -> Float[Tensor, "*shape"]:
    """Map standard deviations to below `largest`: scale / sqrt(1 + (scale / largest)^2). Small ones hardly change."""
    return scale * (1 + (scale / largest).square()).rsqrt()


def positive_root(raw: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Map a raw variance to a standard deviation as EMORL and SRI do: sqrt(softplus(min(raw, 80)) + 1e-5)."""
    return (F.softplus(at_least_float32(raw).clamp_max(80)) + 1e-5).sqrt()


def diagonal_normal(loc: Float[Tensor, "*batch D"], scale: Float[Tensor, "*batch D"]) -> dist.Distribution:
    """Return N(loc, diag(scale^2)) with event shape (D,)."""
    return dist.Normal(at_least_float32(loc), scale).to_event(1)


class GaussianHead(nn.Module):
    """Two linear layers that map features to a diagonal normal: its loc and its softplus-activated scale (A.1).

    Args:
        to_scale: maps the raw output of the second layer to the scale.
    """

    def __init__(self, in_dim: int, out_dim: int, *, to_scale: Callable[[Tensor], Tensor] = positive):
        super().__init__()
        self.to_scale = to_scale
        self.loc = nn.Linear(in_dim, out_dim)
        self.raw_scale = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> dist.Distribution:
        return diagonal_normal(self.loc(features), self.to_scale(self.raw_scale(features)))


def normal_of(raw: Float[Tensor, "*batch two_D"]) -> dist.Distribution:
    """Map EMORL's raw parameters [loc, raw_variance] to a diagonal normal."""
    loc, raw_variance = raw.chunk(2, dim=-1)
    return diagonal_normal(loc, positive_root(raw_variance))


def bounded_normal(raw: Float[Tensor, "*batch two_D"]) -> dist.Distribution:
    """Map raw parameters to a normal with loc in [-1, 1] and scale below 1: slot priors of GENESIS and v2."""
    loc, raw_scale = at_least_float32(raw).chunk(2, dim=-1)
    return diagonal_normal(loc.tanh(), (raw_scale + 4).sigmoid() + 1e-4)


class RawHead(nn.Module):
    """Two linear layers that map features to the raw parameters of `normal_of`."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.loc = nn.Linear(in_dim, out_dim)
        self.raw_variance = nn.Linear(in_dim, out_dim)

    def forward(self, features: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch two_out"]:
        return torch.cat([self.loc(features), self.raw_variance(features)], dim=-1)


class Computed(TorchDistribution):
    """A point that is computed when it is sampled. Where a handler provides its value, nothing is computed.

        pyro.sample("log_m", Computed(decode, batch_shape, event_shape), infer={"_deterministic": True})

    Replayed against a guide with the same site, a model thus receives what the guide computed from the same latents.
    As at the sites of `pyro.deterministic`, the log density is 0.
    """

    arg_constraints = {}
    has_rsample = True

    def __init__(self, compute: Callable[[], Tensor], batch_shape: Sequence[int], event_shape: Sequence[int]):
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=False)
        self._compute = compute

    def expand(self, batch_shape, _instance=None) -> "Computed":
        return Computed(self._compute, batch_shape, self.event_shape)

    def rsample(self, sample_shape=()) -> Tensor:
        return self._compute().expand(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(self.batch_shape)


class RelaxedBernoulli(TorchDistribution):
    """A Bernoulli whose samples are relaxed to numbers between 0 and 1, so that gradients reach its logits.

        sample = sigmoid((logits + log u - log(1 - u)) / relaxation),    u ~ Uniform(0, 1)

    The smaller the relaxation, the closer are samples to 0 or 1 (Maddison et al., 2017; Jang et al., 2017). All other
    quantities are those of the Bernoulli with probability p = sigmoid(logits), as published for GNM: mean, mode, KL,
    and the log density z log p + (1 - z) log(1 - p), which is no density of the relaxed samples.
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, relaxation: Tensor | float, *, validate_args: bool | None = None):
        self.logits, self.relaxation = logits, relaxation
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None) -> "RelaxedBernoulli":
        return RelaxedBernoulli(self.logits.expand(batch_shape), self.relaxation, validate_args=False)

    def rsample(self, sample_shape=()) -> Tensor:
        uniform = clamp_probs(torch.rand_like(self.logits.expand(*sample_shape, *self.batch_shape)))
        return ((self.logits + uniform.logit()) / self.relaxation).sigmoid()

    def log_prob(self, value: Tensor) -> Tensor:
        return value * self.logits - F.softplus(self.logits)

    @property
    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    @property
    def mode(self) -> Tensor:
        return (self.logits > 0).to(self.logits)


@register_kl(RelaxedBernoulli, RelaxedBernoulli)
def _kl_of_bernoullis(q, p) -> Tensor:
    return q.log_prob(q.mean) - p.log_prob(q.mean)


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
