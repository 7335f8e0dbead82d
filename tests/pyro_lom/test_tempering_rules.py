"""Each distribution has its rule of temperature, or stays as it is and is named in a warning."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributions as torch_dist
from pyro import poutine
from pyro.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    StickBreakingTransform,
    conditional_affine_autoregressive,
)
from torch.distributions import Categorical

from pyro_lom import tempering
from pyro_lom.tempering import temper, temperature

LOC, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
WEIGHTS = torch.tensor([0.3, 0.7])
CENTRES = torch.tensor([[-50.0, 0.0], [50.0, 0.0]])
TRIL = torch.tensor([[1.0, 0.0], [0.5, 2.0]])


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch):
    monkeypatch.setattr(tempering, "_warned", set())


CASES = {
    "normal": (dist.Normal(LOC, SCALE).to_event(1), dist.Normal(LOC, 0.5 * SCALE).to_event(1)),
    "two event dims": (
        dist.Normal(LOC.expand(3, 2), SCALE).to_event(2),
        dist.Normal(LOC.expand(3, 2), 0.5 * SCALE).to_event(2),
    ),
    "multivariate normal": (
        dist.MultivariateNormal(LOC, scale_tril=TRIL),
        dist.MultivariateNormal(LOC, scale_tril=0.5 * TRIL),
    ),
    "mixture": (
        dist.MixtureSameFamily(Categorical(WEIGHTS), dist.Normal(CENTRES, SCALE).to_event(1)),
        dist.MixtureSameFamily(Categorical(WEIGHTS), dist.Normal(CENTRES, 0.5 * SCALE).to_event(1)),
    ),
    "transformed": (
        dist.TransformedDistribution(dist.Normal(LOC, SCALE).to_event(1), [AffineTransform(3.0, 2.0, event_dim=1)]),
        dist.TransformedDistribution(
            dist.Normal(LOC, 0.5 * SCALE).to_event(1), [AffineTransform(3.0, 2.0, event_dim=1)]
        ),
    ),
    "masked": (dist.Normal(LOC, SCALE).mask(False), dist.Normal(LOC, 0.5 * SCALE).mask(False)),
    "of torch": (
        dist.Independent(torch_dist.Normal(LOC, SCALE), 1),
        dist.Independent(torch_dist.Normal(LOC, 0.5 * SCALE), 1),
    ),
    "delta": (dist.Delta(LOC, event_dim=1), dist.Delta(LOC, event_dim=1)),
}


@pytest.mark.parametrize(("wide", "narrow"), CASES.values(), ids=CASES)
def test_each_family_narrows_in_its_own_way(wide, narrow):
    tempered = temper(wide, 0.5)
    assert (tempered.batch_shape, tempered.event_shape) == (narrow.batch_shape, narrow.event_shape)
    values = narrow.sample((50,))
    torch.testing.assert_close(tempered.log_prob(values), narrow.log_prob(values))
    torch.manual_seed(2)
    samples = tempered.sample((7,))
    torch.manual_seed(2)
    torch.testing.assert_close(samples, narrow.sample((7,)))


@pytest.mark.parametrize("wide", [wide for wide, _ in CASES.values()], ids=CASES)
def test_temperature_one_changes_nothing(wide):
    values = wide.sample((20,))
    torch.testing.assert_close(temper(wide, 1.0).log_prob(values), wide.log_prob(values))


def test_mixture_weights_stay():
    mixture = CASES["mixture"][0].expand((1, 1))

    def prior():
        with pyro.plate("scenes", 4000, dim=-2):
            return pyro.sample("s", mixture)

    with temperature(0.5):
        right = prior()[..., 0] > 0
    assert right.float().mean().item() == pytest.approx(0.7, abs=0.04)


def test_unknown_families_are_refused_until_registered():
    class Skewed(dist.Exponential):
        pass

    with pytest.raises(
        NotImplementedError, match="^Skewed has no rule; register one: .*temper.register.Skewed, lambda"
    ):
        temper(Skewed(1.0), 0.5)
    temper.register(Skewed, lambda d, tau: Skewed(d.rate / tau))
    assert temper(Skewed(1.0), 0.5).mean == 0.5


def test_a_subclass_with_a_constructor_of_its_own_has_no_rule():
    class Named(dist.Normal):
        pass

    class Standard(dist.Normal):
        def __init__(self, width):
            super().__init__(torch.zeros(width), 1.0)

    assert type(temper(Named(LOC, SCALE), 0.5)) is Named
    with pytest.raises(NotImplementedError, match="^Standard has no rule"):
        temper(Standard(3), 0.5)


def test_a_distribution_is_not_changed_in_part():
    beta = dist.Beta(torch.ones(2), 1.0)
    for mixture in (
        dist.MaskedMixture(torch.tensor([False, True]), dist.Normal(LOC, SCALE), beta),
        dist.MixtureSameFamily(Categorical(WEIGHTS), beta),
    ):
        with pytest.raises(NotImplementedError, match="^Beta has no rule"):
            temper(mixture, 0.5)


# Every distribution of Pyro. A class that is in none of the four groups makes the first test fail.

ASYMMETRY, TWO, MASK = torch.tensor([0.5, 2.0]), torch.zeros(2), torch.tensor([False, True])
DIAGONAL = dist.Normal(CENTRES, SCALE).to_event(1)
# A distribution, the centre that deviations start from (or the centres of a mixture's components), and the inverse of
# a transform that is not affine.
SCALED = {
    "AVFMultivariateNormal": (dist.AVFMultivariateNormal(LOC, TRIL, torch.ones(2, 1, 2)), LOC),
    "AsymmetricLaplace": (dist.AsymmetricLaplace(LOC, SCALE, ASYMMETRY), LOC),
    "Cauchy": (dist.Cauchy(LOC, SCALE), LOC),
    "ExpandedDistribution": (dist.ExpandedDistribution(dist.Normal(LOC, SCALE), (3, 2)), LOC),
    "FoldedDistribution": (dist.FoldedDistribution(dist.Normal(LOC + 50, SCALE)), LOC + 50),
    "GaussianScaleMixture": (dist.GaussianScaleMixture(SCALE, WEIGHTS.log(), torch.tensor([1.0, 9.0])), TWO),
    "Gumbel": (dist.Gumbel(LOC, SCALE), LOC),
    "HalfCauchy": (dist.HalfCauchy(SCALE), TWO),
    "HalfNormal": (dist.HalfNormal(SCALE), TWO),
    "Independent": (dist.Independent(dist.Normal(LOC, SCALE), 1), LOC),
    "Laplace": (dist.Laplace(LOC, SCALE), LOC),
    "LogNormal": (dist.LogNormal(LOC, SCALE), LOC, ExpTransform().inv),
    "Logistic": (dist.Logistic(LOC, SCALE), LOC),
    "LogisticNormal": (dist.LogisticNormal(LOC, SCALE / 3), LOC, StickBreakingTransform().inv),
    "LowRankMultivariateNormal": (dist.LowRankMultivariateNormal(LOC, TRIL[:, :1], SCALE), LOC),
    "MaskedDistribution": (dist.MaskedDistribution(dist.Normal(LOC, SCALE), MASK), LOC),
    "MaskedMixture": (dist.MaskedMixture(MASK, dist.Normal(LOC, SCALE), dist.Laplace(LOC, SCALE)), LOC),
    "MixtureOfDiagNormals": (dist.MixtureOfDiagNormals(CENTRES, SCALE.expand(2, 2), WEIGHTS.log()), CENTRES),
    "MixtureOfDiagNormalsSharedCovariance": (
        dist.MixtureOfDiagNormalsSharedCovariance(CENTRES, SCALE, WEIGHTS.log()),
        CENTRES,
    ),
    "MixtureSameFamily": (dist.MixtureSameFamily(Categorical(WEIGHTS), DIAGONAL), CENTRES),
    "MultivariateNormal": (dist.MultivariateNormal(LOC, TRIL @ TRIL.T), LOC),
    "MultivariateStudentT": (dist.MultivariateStudentT(5.0, LOC, TRIL), LOC),
    "NanMaskedMultivariateNormal": (dist.NanMaskedMultivariateNormal(LOC, TRIL @ TRIL.T), LOC),
    "NanMaskedNormal": (dist.NanMaskedNormal(LOC, SCALE), LOC),
    "Normal": (dist.Normal(LOC[:1], SCALE), LOC[:1]),
    "OMTMultivariateNormal": (dist.OMTMultivariateNormal(LOC, TRIL), LOC),
    "SkewLogistic": (dist.SkewLogistic(LOC, SCALE, ASYMMETRY), LOC),
    "SoftAsymmetricLaplace": (dist.SoftAsymmetricLaplace(LOC, SCALE, ASYMMETRY, torch.tensor(3.0)), LOC),
    "SoftLaplace": (dist.SoftLaplace(LOC, SCALE), LOC),
    "Stable": (dist.Stable(1.5, ASYMMETRY - 1, SCALE, LOC), LOC),
    "StableWithLogProb": (dist.StableWithLogProb(1.5, 0.5, SCALE, LOC, coords="S"), LOC),
    "StudentT": (dist.StudentT(5.0, LOC, SCALE), LOC),
    "TransformedDistribution": (
        dist.TransformedDistribution(dist.StudentT(5.0, LOC, SCALE), [AffineTransform(3.0, -2.0)]),
        3 - 2 * LOC,
    ),
}
ONE, EYE, THIRDS = torch.ones(2), torch.eye(2), torch.full((3,), 1 / 3)
GAUSSIAN = dist.MultivariateNormal(TWO, EYE)
PAIR = dist.MultivariateNormal(torch.zeros(4), torch.eye(4))
STEP = dist.Normal(torch.zeros(2, 1, 1), 1.0).to_event(1)
SINE = dist.SineBivariateVonMises(0.0, 0.0, 1.0, 1.0, correlation=0.5)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    DEPRECATED = dist.LKJCorrCholesky(3, torch.tensor(1.0))
# Discrete distributions, and continuous ones that are no location-scale families over all real numbers or vectors.
UNCHANGED = {
    "AffineBeta": dist.AffineBeta(ONE, ONE, 3.0, 2.0),
    "Bernoulli": dist.Bernoulli(0.5),
    "Beta": dist.Beta(1.0, 1.0),
    "BetaBinomial": dist.BetaBinomial(1.0, 1.0, 9),
    "Binomial": dist.Binomial(9, 0.5),
    "Categorical": dist.Categorical(THIRDS),
    "Chi2": dist.Chi2(3.0),
    "CoalescentTimes": dist.CoalescentTimes(torch.zeros(3)),
    "CoalescentTimesWithRate": dist.CoalescentTimesWithRate(torch.zeros(3), torch.ones(5)),
    "ContinuousBernoulli": dist.ContinuousBernoulli(0.3),
    "Dirichlet": dist.Dirichlet(ONE),
    "DirichletMultinomial": dist.DirichletMultinomial(ONE, 9),
    "DiscreteHMM": dist.DiscreteHMM(TWO, torch.zeros(2, 2), dist.Categorical(torch.ones(2, 3))),
    "Empirical": dist.Empirical(torch.zeros(5), torch.zeros(5)),
    "Exponential": dist.Exponential(1.0),
    "ExtendedBetaBinomial": dist.ExtendedBetaBinomial(1.0, 1.0, 9),
    "ExtendedBinomial": dist.ExtendedBinomial(9, 0.5),
    "FisherSnedecor": dist.FisherSnedecor(3.0, 4.0),
    "Gamma": dist.Gamma(1.0, 1.0),
    "GammaGaussianHMM": dist.GammaGaussianHMM(dist.Gamma(1.0, 1.0), GAUSSIAN, EYE, GAUSSIAN, EYE, GAUSSIAN, duration=4),
    "GammaPoisson": dist.GammaPoisson(1.0, 1.0),
    "GaussianHMM": dist.GaussianHMM(GAUSSIAN, EYE, GAUSSIAN, EYE, GAUSSIAN, duration=4),
    "GaussianMRF": dist.GaussianMRF(GAUSSIAN, PAIR.expand([1]), PAIR.expand([1])),
    "GeneralizedPareto": dist.GeneralizedPareto(0.0, 1.0, 0.5),
    "Geometric": dist.Geometric(0.5),
    "GroupedNormalNormal": dist.GroupedNormalNormal(TWO, ONE, ONE, torch.tensor([0, 1])),
    "ImproperUniform": dist.ImproperUniform(dist.constraints.real, (), ()),
    "IndependentHMM": dist.IndependentHMM(
        dist.GaussianHMM(
            dist.Normal(torch.zeros(2, 1), 1.0).to_event(1), EYE[:1, :1], STEP, EYE[:1, :1], STEP, duration=4
        )
    ),
    "InverseGamma": dist.InverseGamma(1.0, 1.0),
    "Kumaraswamy": dist.Kumaraswamy(1.0, 1.0),
    "LKJ": dist.LKJ(3),
    "LKJCholesky": dist.LKJCholesky(3),
    "LKJCorrCholesky": DEPRECATED,
    "LinearHMM": dist.LinearHMM(GAUSSIAN, EYE, GAUSSIAN, EYE, GAUSSIAN, duration=4),
    "LogNormalNegativeBinomial": dist.LogNormalNegativeBinomial(9.0, torch.tensor(0.0), torch.tensor(1.0)),
    "Multinomial": dist.Multinomial(9, THIRDS),
    "NegativeBinomial": dist.NegativeBinomial(9, 0.5),
    "OneHotCategorical": dist.OneHotCategorical(THIRDS),
    "OneHotCategoricalStraightThrough": dist.OneHotCategoricalStraightThrough(THIRDS),
    "OneOneMatching": dist.OneOneMatching(torch.zeros(2, 2)),
    "OneTwoMatching": dist.OneTwoMatching(torch.zeros(4, 2)),
    "OrderedLogistic": dist.OrderedLogistic(torch.tensor(0.0), LOC.sort().values),
    "Pareto": dist.Pareto(1.0, 3.0),
    "Poisson": dist.Poisson(1.0),
    "ProjectedNormal": dist.ProjectedNormal(ONE),
    "Rejector": dist.Rejector(dist.Normal(0.0, 1.0), torch.zeros_like, torch.tensor(0.0)),
    "RelaxedBernoulli": dist.RelaxedBernoulli(ONE, probs=0.5),
    "RelaxedBernoulliStraightThrough": dist.RelaxedBernoulliStraightThrough(ONE, probs=0.5),
    "RelaxedOneHotCategorical": dist.RelaxedOneHotCategorical(torch.tensor(1.0), THIRDS),
    "RelaxedOneHotCategoricalStraightThrough": dist.RelaxedOneHotCategoricalStraightThrough(torch.tensor(1.0), THIRDS),
    "SineBivariateVonMises": SINE,
    "SineSkewed": dist.SineSkewed(SINE, torch.tensor([0.1, 0.2])),
    "SpanningTree": dist.SpanningTree(torch.zeros(3)),
    "TruncatedPolyaGamma": dist.TruncatedPolyaGamma(ONE),
    "Uniform": dist.Uniform(0.0, 1.0),
    "VonMises": dist.VonMises(0.0, 1.0),
    "VonMises3D": dist.VonMises3D(torch.ones(3)),
    "Weibull": dist.Weibull(1.0, 1.0),
    "Wishart": dist.Wishart(3.0, EYE),
    "ZeroInflatedDistribution": dist.ZeroInflatedDistribution(dist.Poisson(1.0), gate=torch.tensor(0.5)),
    "ZeroInflatedNegativeBinomial": dist.ZeroInflatedNegativeBinomial(9, probs=0.5, gate=torch.tensor(0.5)),
    "ZeroInflatedPoisson": dist.ZeroInflatedPoisson(1.0, gate=torch.tensor(0.5)),
}
# The class without a rule, where it is the base of the site's class.
BASES = {
    "AffineBeta": "Beta",
    "InverseGamma": "Gamma",
    "Kumaraswamy": "Uniform",
    "LKJ": "LKJCholesky",
    "Pareto": "Exponential",
    "RelaxedBernoulli": "LogitRelaxedBernoulli",
    "RelaxedBernoulliStraightThrough": "LogitRelaxedBernoulli",
    "RelaxedOneHotCategorical": "ExpRelaxedCategorical",
    "RelaxedOneHotCategoricalStraightThrough": "ExpRelaxedCategorical",
    "Weibull": "Exponential",
}
POINTS = {"Delta": dist.Delta(LOC), "Unit": dist.Unit(TWO)}
NOT_SAMPLED = {"CoalescentRateLikelihood", "ComposeTransformModule", "ConditionalDistribution", "ConditionalTransform"}
NOT_SAMPLED |= {"ConditionalTransformModule", "ConditionalTransformedDistribution", "Distribution"}
NOT_SAMPLED |= {"ExponentialFamily", "TorchDistribution", "TransformModule"}


def test_the_table_has_every_class_of_pyro_distributions_once():
    listed = [*SCALED, *UNCHANGED, *POINTS, *NOT_SAMPLED]
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in dist.__all__ if isinstance(getattr(dist, name), type)}
    for name, (distribution, *_) in SCALED.items():
        assert type(distribution) is getattr(dist, name)
    for name, distribution in (UNCHANGED | POINTS).items():
        assert type(distribution) is getattr(dist, name)


def deviations(samples, centres):
    """Return each sample's difference to the nearest of the centres, and the index of that centre."""
    differences = samples - centres.reshape(-1, *[1] * (samples.dim() - 1), centres.size(-1))
    nearest = differences.abs().sum(-1).argmin(0)
    return differences.gather(0, nearest[None, ..., None].expand_as(differences[:1]))[0], nearest


@pytest.mark.parametrize("tau", [0.5, 2.0])
@pytest.mark.parametrize("name", SCALED)
def test_deviations_from_the_location_are_multiplied_by_tau(name, tau):
    wide, centres, *inverse = SCALED[name]
    narrow = temper(wide, tau)
    assert (narrow.batch_shape, narrow.event_shape) == (wide.batch_shape, wide.event_shape)
    found = []
    for distribution, seed in ((wide, 1), (narrow, 1), (narrow, 2)):
        torch.manual_seed(seed)
        samples = distribution.sample((20_000,))
        found.append(deviations(inverse[0](samples) if inverse else samples, centres))
    (before, which), (after, kept), (independent, _) = found
    assert torch.equal(which, kept)  # the component of a mixture
    torch.testing.assert_close(after, tau * before, rtol=1e-3, atol=1e-3)
    quartiles = torch.tensor([0.25, 0.75])
    spread = (independent.quantile(quartiles, 0).diff(dim=0) / before.quantile(quartiles, 0).diff(dim=0)).flatten()
    torch.testing.assert_close(spread, torch.full_like(spread, tau), rtol=0.07, atol=0)


CANNOT_EXPAND = {"AVFMultivariateNormal", "OMTMultivariateNormal", "SoftAsymmetricLaplace"}  # errors of Pyro


@pytest.mark.parametrize("name", sorted(SCALED.keys() - CANNOT_EXPAND - {"ExpandedDistribution"}))
def test_an_expanded_masked_batch_of_events_has_the_same_shape_and_scale(name):
    wide, centres, *inverse = SCALED[name]
    wide = wide.expand((50, 3, *wide.batch_shape)).mask(torch.tensor(True)).to_event(1 + len(wide.batch_shape))
    narrow = temper(wide, 0.5)
    assert (narrow.batch_shape, narrow.event_shape) == (wide.batch_shape, wide.event_shape)
    found = []
    for distribution in (wide, narrow):
        torch.manual_seed(1)
        samples = distribution.sample()
        found.append(deviations(inverse[0](samples) if inverse else samples, centres)[0])
    torch.testing.assert_close(found[1], 0.5 * found[0], rtol=1e-3, atol=1e-3)


def test_the_base_of_a_conditional_flow_is_scaled():
    transform = conditional_affine_autoregressive(2, context_dim=1, hidden_dims=[4])
    flow = dist.ConditionalTransformedDistribution(dist.Normal(LOC, SCALE).to_event(1), [transform])
    wide = flow.condition(torch.ones(7, 1))
    narrow = temper(wide, 0.5)
    assert narrow.transforms == wide.transforms and narrow.batch_shape == wide.batch_shape
    torch.testing.assert_close(narrow.base_dist.stddev, 0.5 * wide.base_dist.stddev)
    assert torch.equal(narrow.base_dist.mean, wide.base_dist.mean)


@pytest.mark.parametrize(
    "name",
    "AsymmetricLaplace Gumbel HalfNormal Laplace Logistic LowRankMultivariateNormal MultivariateNormal "
    "MultivariateStudentT SoftAsymmetricLaplace SoftLaplace StudentT".split(),
)
def test_the_standard_deviation_in_closed_form_is_multiplied_by_tau(name):
    wide = SCALED[name][0]
    assert wide.stddev.isfinite().all()
    getattr(wide, "covariance_matrix", None)  # a cached value of `wide`, which must not reach the result
    torch.testing.assert_close(temper(wide, 0.3).stddev, 0.3 * wide.stddev)


MIXTURES = {name for name, (_, centres, *_) in SCALED.items() if centres.dim() > 1}
NOT_AFFINE = {"LogNormal", "LogisticNormal", "MaskedDistribution"}


@pytest.mark.parametrize("name", sorted(SCALED.keys() - MIXTURES - NOT_AFFINE))
def test_the_log_density_is_that_of_the_scaled_deviations(name):
    wide, centre = SCALED[name]
    samples = wide.sample()
    density = temper(wide, 0.3).log_prob(centre + 0.3 * (samples - centre))
    expected = wide.log_prob(samples) - math.prod(wide.event_shape) * math.log(0.3)
    torch.testing.assert_close(density, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_site_without_a_rule_stays_and_a_warning_shows_how_to_register_one(name):
    def sampling():
        pyro.sample("s", UNCHANGED[name])

    kind = BASES.get(name, name)
    line = rf"'s' \({name}\): {kind} has no rule; register one: from pyro_lom.tempering import temper; temper.register"
    with pytest.warns(UserWarning, match=rf"^temperature does not change site {line}\({kind}, lambda d, tau: "):
        # `condition` gives the value after `temperature`: not every class can be sampled
        trace = poutine.trace(poutine.condition(temperature(0.5)(sampling), {"s": TWO})).get_trace()
    assert trace.nodes["s"]["fn"] is UNCHANGED[name]


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_points_have_no_scale(point):
    assert temper(point, 0.5) is point
