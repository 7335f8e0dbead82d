"""Temperature multiplies standard deviations of what is sampled, and touches nothing else."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform
from pyro.infer import Predictive
from torch.distributions import Categorical

from pyro_lom.tempering import temper, temperature

LOC, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
WEIGHTS = torch.tensor([0.3, 0.7])
CENTRES = torch.tensor([[-50.0, 0.0], [50.0, 0.0]])
TRIL = torch.tensor([[1.0, 0.0], [0.5, 2.0]])


def model(num_scenes=1):
    with pyro.plate("scenes", num_scenes, dim=-2):
        scene = pyro.sample("s", dist.Normal(LOC, SCALE).to_event(1))
        with pyro.plate("slots", 3, dim=-1):
            slots = pyro.sample("z", dist.Normal(10 * scene, SCALE).to_event(1))
        image = pyro.deterministic("image", slots.sum(-2, keepdim=True), event_dim=1)
        return pyro.sample("x", dist.Normal(image, 0.7).to_event(1))


def std(samples):
    return samples.flatten(0, -2).std(0)


@pytest.mark.parametrize("tau", [0.1, 0.8, 1.0, 2.0])
def test_scales_are_multiplied_and_means_stay(tau):
    with temperature(tau):
        trace = poutine.trace(model).get_trace(20_000)
    scene, slots = trace.nodes["s"], trace.nodes["z"]
    torch.testing.assert_close(std(scene["value"]), tau * SCALE, rtol=0.03, atol=0)
    torch.testing.assert_close(std(slots["value"] - 10 * scene["value"]), tau * SCALE, rtol=0.03, atol=0)
    torch.testing.assert_close(scene["value"].mean((0, 1)), LOC, rtol=0, atol=0.1 * tau)
    for site in (scene, slots):
        torch.testing.assert_close(site["fn"].stddev, (tau * SCALE).expand(site["fn"].stddev.shape))
    torch.testing.assert_close(scene["fn"].mean, LOC.expand(scene["fn"].mean.shape))
    torch.testing.assert_close(slots["fn"].mean, (10 * scene["value"]).expand(slots["fn"].mean.shape))


def test_with_the_same_noise_a_deviation_shrinks_by_tau():
    torch.manual_seed(1)
    with temperature(0.25):
        narrow = poutine.trace(model).get_trace(4).nodes["s"]["value"]
    torch.manual_seed(1)
    wide = poutine.trace(model).get_trace(4).nodes["s"]["value"]
    torch.testing.assert_close(narrow - LOC, 0.25 * (wide - LOC))


@pytest.mark.parametrize(
    ("hide", "expected"),
    [(None, {"s": 0.5, "z": 0.5, "x": 1.0}), ((), {"s": 0.5, "z": 0.5, "x": 0.5}), (("z",), {"z": 1.0, "x": 0.5})],
    ids=["default", "nothing", "z"],
)
def test_hidden_sites_keep_their_noise_and_the_image_is_hidden_by_default(hide, expected):
    plain = poutine.trace(model).get_trace(2)
    with temperature(0.5) if hide is None else temperature(0.5, hide=hide):
        tempered = poutine.trace(model).get_trace(2)
    for name, factor in expected.items():
        torch.testing.assert_close(tempered.nodes[name]["fn"].stddev, factor * plain.nodes[name]["fn"].stddev)


@pytest.mark.parametrize("temperature_outside", [True, False])
@pytest.mark.parametrize("handler", ["condition", "replay", "do"])
def test_given_values_are_kept(handler, temperature_outside):
    value = torch.full((2, 1, 2), 123.0)
    if handler == "replay":
        trace = poutine.trace(poutine.condition(model, {"s": value})).get_trace(2)
        trace.nodes["s"]["is_observed"] = False

        def give(program):
            return poutine.replay(program, trace=trace)

    else:

        def give(program):
            return getattr(poutine, handler)(program, data={"s": value})

    program = temperature(0.5)(give(model)) if temperature_outside else give(temperature(0.5)(model))
    trace = poutine.trace(program).get_trace(2)
    mean = trace.nodes["z"]["fn"].mean
    torch.testing.assert_close(mean, (10 * value).expand(mean.shape))


def test_observations_and_plates_are_left_alone():
    def observing():
        with pyro.plate("subsampled", 10, subsample_size=3, dim=-1):
            pyro.sample("y", dist.Normal(torch.zeros(3), 1.0), obs=torch.arange(3.0))

    with temperature(0.5):
        trace = poutine.trace(observing).get_trace()
    assert torch.equal(trace.nodes["y"]["value"], torch.arange(3.0))
    assert (trace.nodes["y"]["fn"].stddev == 1).all()


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

    with pytest.raises(NotImplementedError, match="no temperature for Skewed: .*temper.register"):
        temper(Skewed(1.0), 0.5)
    temper.register(Skewed, lambda d, tau: Skewed(d.rate / tau))
    assert temper(Skewed(1.0), 0.5).mean == 0.5


@pytest.mark.parametrize("parallel", [False, True])
def test_it_works_inside_predictive(parallel):
    program = temperature(0.1)(model)
    samples = Predictive(program, num_samples=500, parallel=parallel)(2)
    assert samples["x"].shape == (500, 2, 1, 2)
    torch.testing.assert_close(std(samples["s"]), 0.1 * SCALE, rtol=0.15, atol=0)


@pytest.mark.parametrize("tau", [0.0, -0.5])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(ValueError, match=f"must be positive, not {tau}"):
        temperature(tau)
