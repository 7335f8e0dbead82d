"""Sampling at a temperature: an effect handler that narrows what a model samples from (Sec. 4.1, Fig. 7)."""

from collections.abc import Collection
from functools import singledispatch

import pyro.distributions as dist
import torch.distributions as torch_dist
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample


class temperature(Messenger):
    """Multiply the standard deviation of every site that is sampled by `tau`; means and mixture weights stay.

        with temperature(0.8, hide=("x",)):
            image = model()
        samples = Predictive(temperature(0.8)(model), num_samples=4)()

    Sites that are observed, conditioned or replayed keep their values. Sites in `hide` are left alone, by default the
    image, whose standard deviation is the noise of a pixel. The traced log densities are those of the narrowed
    distributions: it is for generating, not for training.

    Raises:
        ValueError: `tau` is not positive.
        NotImplementedError: a site's distribution has no standard deviation that is known here; register a rule with
            `temper.register`.
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
    """The distribution with its standard deviation, its components' or its base's, multiplied by `tau`."""
    kind = type(distribution).__name__
    raise NotImplementedError(f"no temperature for {kind}: register one with pyro_lom.temperature.temper.register")


@temper.register(torch_dist.Normal)
def _(d, tau):
    return dist.Normal(d.loc, d.scale * tau)


@temper.register(torch_dist.MultivariateNormal)
def _(d, tau):
    return dist.MultivariateNormal(d.loc, scale_tril=d.scale_tril * tau)


@temper.register(torch_dist.Independent)
def _(d, tau):
    return temper(d.base_dist, tau).to_event(d.reinterpreted_batch_ndims)


@temper.register(torch_dist.MixtureSameFamily)
def _(d, tau):
    return dist.MixtureSameFamily(d.mixture_distribution, temper(d.component_distribution, tau))


@temper.register(torch_dist.TransformedDistribution)
def _(d, tau):
    return dist.TransformedDistribution(temper(d.base_dist, tau), d.transforms)


@temper.register(MaskedDistribution)
def _(d, tau):
    return temper(d.base_dist, tau).mask(d._mask)


@temper.register(dist.Delta)
def _(d, tau):
    return d
