"""Sampling at a temperature: an effect handler that scales a model's standard deviations (Sec. 4.1, Fig. 7)."""

import math
import warnings
from collections.abc import Collection
from copy import copy
from functools import singledispatch

import pyro.distributions as dist
import torch.distributions as torch_dist
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample

from pyro_lom.distributions import Computed, RelaxedBernoulli
from pyro_lom.errors import UserError

_warned: set[str] = set()  # Python forgets which warnings it has shown when a filter changes, which libraries often do


class temperature(Messenger):
    """Effect handler that multiplies the scale of every sampled site by `tau` and keeps its location.

        with temperature(0.8, hide=("x",)):
            image = model()
        samples = Predictive(temperature(0.8)(model), num_samples=4)()

    The standard deviation of a location-scale family is multiplied by `tau`, and its mean does not change; a skewed
    family, such as Gumbel, keeps its parameter `loc` instead of its mean. Mixtures and transformed distributions are
    scaled in their components and bases (see `temper`). Discrete sites and sites of other families do not change: the
    first site of each class without a rule raises a warning that shows how to register one.

    Observed, conditioned and replayed sites do not change, nor do sites in `hide`: by default the image, whose scale is
    pixel noise. If `reparam` is inside of the handler, `hide` takes the names of the new sites, such as `s_decentered`.
    Do not train with the handler: log densities belong to the scaled distributions.

    Raises:
        UserError: `tau` is not a positive number.
    """

    def __init__(self, tau: float, hide: Collection[str] = ("x",)):
        super().__init__()
        if not 0 < tau < math.inf:
            raise UserError(f"temperature({tau}): tau multiplies standard deviations and must be positive and finite")
        self.tau, self.hide = tau, hide
        self._site = None

    def __exit__(self, *error) -> None:
        self._site = None
        super().__exit__(*error)

    def _pyro_sample(self, msg) -> None:
        if self._site is not None:
            return  # an outer `reparam` builds the site in progress, which is already scaled, from this site
        self._site = msg
        if msg["value"] is not None or msg["name"] in self.hide or site_is_subsample(msg):
            return
        try:
            msg["fn"] = temper(msg["fn"], self.tau)
        except NotImplementedError as error:
            reason = str(error)
            if reason not in _warned:
                kind = type(msg["fn"]).__name__
                warnings.warn(f"temperature does not change site {msg['name']!r} ({kind}): {reason}", stacklevel=2)
                _warned.add(reason)

    def _pyro_post_sample(self, msg) -> None:
        if msg is self._site:
            self._site = None


@singledispatch
def temper(distribution, tau: float):
    """Return `distribution` with its scale multiplied by `tau`; its shape and its location parameter do not change.

    Rules exist for location-scale families over all real numbers or vectors, and for mixtures and transforms of them.
    A mixture keeps its weights, and each of its components is scaled. A transformed distribution keeps its transforms,
    and its base is scaled: an affine transform therefore keeps its mean. A point (`Delta`, `Unit`, `Computed`)
    and a `RelaxedBernoulli` have no scale and are returned as they are. Other families, such as discrete or bounded
    ones, have no rule.

    Raises:
        NotImplementedError: no rule is registered for the class of the distribution, of its base or of a component.
    """
    kind = type(distribution).__name__
    raise NotImplementedError(
        f"{kind} has no rule; register one: "
        f"from pyro_lom.tempering import temper; temper.register({kind}, lambda d, tau: ...)"
    )


# The location-scale families, by the parameters of their constructors; those in _POWERS are multiplied by tau**power.
_POWERS = {"scale": 1, "scale_tril": 1, "coord_scale": 1, "cov_factor": 1, "cov_diag": 2}
_FAMILIES = {
    "loc scale": (
        *(torch_dist.Normal, torch_dist.Laplace, torch_dist.Cauchy, torch_dist.Gumbel),
        *(dist.Logistic, dist.SoftLaplace),
    ),
    "df loc scale": (torch_dist.StudentT,),
    "loc scale asymmetry": (dist.AsymmetricLaplace, dist.SkewLogistic),
    "loc scale asymmetry softness": (dist.SoftAsymmetricLaplace,),
    "stability skew scale loc coords": (dist.Stable,),
    "loc scale_tril": (torch_dist.MultivariateNormal, dist.OMTMultivariateNormal),
    "loc scale_tril control_var": (dist.AVFMultivariateNormal,),
    "df loc scale_tril": (dist.MultivariateStudentT,),
    "loc cov_factor cov_diag": (torch_dist.LowRankMultivariateNormal,),
    "locs coord_scale component_logits": (dist.MixtureOfDiagNormals, dist.MixtureOfDiagNormalsSharedCovariance),
    "coord_scale component_scale component_logits": (dist.GaussianScaleMixture,),
}


def _register(family: type, names: list[str]) -> None:
    def rule(d, tau):
        if type(d).__init__ is not family.__init__:  # a subclass, whose constructor may have other parameters
            return temper.dispatch(object)(d, tau)
        parameters = {name: getattr(d, name) for name in names}
        scales = {name: parameters[name] * tau**power for name, power in _POWERS.items() if name in names}
        return type(d)(**parameters | scales)

    temper.register(family, rule)


def _with_base(d, tau):
    tempered = copy(d)
    tempered.base_dist = temper(d.base_dist, tau)
    return tempered


for _names, _families in _FAMILIES.items():
    for _family in _families:
        _register(_family, _names.split())
for _family in (torch_dist.Independent, torch_dist.TransformedDistribution, MaskedDistribution, ExpandedDistribution):
    temper.register(_family, _with_base)


def _with_components(d, tau):
    tempered = copy(d)
    tempered._component_distribution = temper(d.component_distribution, tau)
    return tempered


temper.register(torch_dist.MixtureSameFamily, _with_components)
temper.register(
    dist.MaskedMixture, lambda d, tau: dist.MaskedMixture(d.mask, temper(d.component0, tau), temper(d.component1, tau))
)
for _family in (dist.Delta, dist.Unit, Computed, RelaxedBernoulli):
    temper.register(_family, lambda d, tau: d)
