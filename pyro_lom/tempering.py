"""Sampling at a temperature: an effect handler that scales a model's standard deviations (Sec. 4.1, Fig. 7)."""

from collections.abc import Collection
from functools import singledispatch

import pyro.distributions as dist
import torch.distributions as torch_dist
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample


class temperature(Messenger):
    """Effect handler that multiplies the standard deviation of every sampled site by `tau`; means do not change.

        with temperature(0.8, hide=("x",)):
            image = model()
        samples = Predictive(temperature(0.8)(model), num_samples=4)()

    Mixture weights, observed, conditioned and replayed sites do not change, nor do sites in `hide`: by default the
    image, whose scale is pixel noise. Do not train with it: log densities belong to the scaled distributions.

    Raises:
        ValueError: `tau` is not positive.
        NotImplementedError: no rule is registered for a distribution's class; register one with `temper.register`.
    """

    def __init__(self, tau: float, hide: Collection[str] = ("x",)):
        super().__init__()
        if tau <= 0:
            raise ValueError(f"a temperature multiplies a standard deviation and must be positive, not {tau}")
        self.tau, self.hide = tau, hide

    def _pyro_sample(self, msg) -> None:
        if msg["value"] is None and msg["name"] not in self.hide and not site_is_subsample(msg):
            msg["fn"] = temper(msg["fn"], self.tau)


@singledispatch
def temper(distribution, tau: float):
    """Return `distribution` with its standard deviation, or its components' or base's, multiplied by `tau`."""
    kind = type(distribution).__name__
    raise NotImplementedError(f"no temperature for {kind}: register one with pyro_lom.tempering.temper.register")


temper.register(dist.Delta, lambda d, tau: d)
temper.register(torch_dist.Normal, lambda d, tau: dist.Normal(d.loc, d.scale * tau))
temper.register(
    torch_dist.MultivariateNormal, lambda d, tau: dist.MultivariateNormal(d.loc, scale_tril=d.scale_tril * tau)
)
temper.register(torch_dist.Independent, lambda d, tau: temper(d.base_dist, tau).to_event(d.reinterpreted_batch_ndims))
temper.register(
    torch_dist.MixtureSameFamily,
    lambda d, tau: dist.MixtureSameFamily(d.mixture_distribution, temper(d.component_distribution, tau)),
)
temper.register(
    torch_dist.TransformedDistribution,
    lambda d, tau: dist.TransformedDistribution(temper(d.base_dist, tau), d.transforms),
)
temper.register(MaskedDistribution, lambda d, tau: temper(d.base_dist, tau).mask(d._mask))
