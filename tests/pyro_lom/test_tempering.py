"""Temperature multiplies standard deviations of what is sampled, and touches nothing else."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import AffineTransform
from pyro.infer import Predictive
from pyro.infer.reparam import LocScaleReparam, SymmetricStableReparam, TransformReparam
from pyro.infer.reparam.strategies import AutoReparam
from pyro.poutine.messenger import Messenger

from pyro_lom import tempering
from pyro_lom.errors import UserError
from pyro_lom.tempering import temperature

LOC, SCALE = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])


def model(num_scenes=1):
    with pyro.plate("scenes", num_scenes, dim=-2):
        scene = pyro.sample("s", dist.Normal(LOC, SCALE).to_event(1))
        with pyro.plate("slots", 3, dim=-1):
            slots = pyro.sample("z", dist.Normal(10 * scene, SCALE).to_event(1))
        image = pyro.deterministic("image", slots.sum(-2, keepdim=True), event_dim=1)
        return pyro.sample("x", dist.Normal(image, 0.7).to_event(1))


def std(samples):
    return samples.flatten(0, -2).std(0)


@pytest.fixture(autouse=True)
def nothing_warned_of(monkeypatch):
    monkeypatch.setattr(tempering, "_warned", set())


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


@pytest.mark.parametrize("parallel", [False, True])
def test_it_works_inside_predictive(parallel):
    program = temperature(0.1)(model)
    samples = Predictive(program, num_samples=500, parallel=parallel)(2)
    assert samples["x"].shape == (500, 2, 1, 2)
    torch.testing.assert_close(std(samples["s"]), 0.1 * SCALE, rtol=0.15, atol=0)


def test_a_missing_rule_warns_once_per_class_whatever_the_filters():
    def sampling():
        for step in range(2):
            pyro.sample(f"k{step}", dist.Poisson(3.0))
            pyro.sample(f"p{step}", dist.Beta(1.0, 1.0).expand([2]).to_event(1))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            with temperature(0.5):
                sampling()
    assert [str(warning.message).split(":")[0] for warning in caught] == [
        "temperature does not change site 'k0' (Poisson)",
        "temperature does not change site 'p0' (Independent)",
    ]


def test_discrete_deterministic_and_factor_sites_keep_their_values():
    def mixture():
        kind = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        twice = pyro.deterministic("twice", 2.0 * kind)
        pyro.factor("f", torch.tensor(-3.0))
        pyro.sample("s", dist.Normal(twice, 1.0))

    tempered = poutine.enum(temperature(0.5)(mixture), first_available_dim=-1)
    with pytest.warns(UserWarning, match=r"'c' \(Categorical\)"):
        trace = poutine.trace(tempered).get_trace()
    assert trace.nodes["c"]["value"].tolist() == [0, 1] and trace.nodes["twice"]["value"].tolist() == [0.0, 2.0]
    assert trace.nodes["f"]["fn"].log_factor == -3
    assert trace.nodes["s"]["fn"].mean.tolist() == [0.0, 2.0] and (trace.nodes["s"]["fn"].stddev == 0.5).all()


def many(distribution):
    def sampling():
        with pyro.plate("scenes", 20_000, dim=-2), pyro.plate("dims", 2, dim=-1):
            return pyro.sample("s", distribution)

    return sampling


AFFINE = dist.TransformedDistribution(dist.Normal(LOC, SCALE), [AffineTransform(3.0, 2.0)])


@pytest.mark.parametrize("temperature_outside", [True, False])
@pytest.mark.parametrize(
    ("distribution", "config", "centre"),
    [
        (dist.Normal(LOC, SCALE), {"s": LocScaleReparam(0.0)}, LOC),
        (dist.StudentT(4.0, LOC, SCALE), {"s": LocScaleReparam(0.3)}, LOC),
        (dist.Gumbel(LOC, SCALE), {"s": LocScaleReparam()}, LOC),
        (dist.Normal(LOC, SCALE), AutoReparam(), LOC),
        (AFFINE, {"s": TransformReparam()}, 3 + 2 * LOC),
        (dist.LogNormal(LOC, SCALE), {"s": TransformReparam()}, LOC),
        (dist.Stable(1.5, 0.0, SCALE, LOC), {"s": SymmetricStableReparam()}, LOC),
    ],
    ids=["non-centred", "partly-centred", "learned", "auto", "affine", "log-normal", "stable"],
)
@pytest.mark.filterwarnings("ignore:temperature does not change site 's_(uniform|exponential)'")
def test_reparam_and_temperature_commute(distribution, config, centre, temperature_outside):
    model = many(distribution)
    if temperature_outside:
        program = temperature(0.5)(poutine.reparam(model, config=config))
    else:
        program = poutine.reparam(temperature(0.5)(model), config=config)
    trace = poutine.trace(program).get_trace()
    assert any(name.startswith("s_") for name in trace.nodes)
    found, expected = trace.nodes["s"]["value"].detach(), distribution.sample((20_000,))
    if isinstance(distribution, dist.LogNormal):
        found, expected = found.log(), expected.log()
    quartiles = torch.tensor([0.25, 0.75])
    spread = (found - centre).quantile(quartiles, 0) / (expected - centre).quantile(quartiles, 0)
    torch.testing.assert_close(spread, torch.full_like(spread, 0.5), rtol=0.1, atol=0)


@pytest.mark.parametrize("config", [{}, {"s": LocScaleReparam(0.0)}], ids=["plain", "reparam"])
def test_nested_temperatures_multiply(config):
    model = many(dist.Normal(LOC, SCALE))
    programs = [
        poutine.reparam(temperature(0.5)(temperature(0.4)(model)), config=config),
        temperature(0.5)(poutine.reparam(temperature(0.4)(model), config=config)),
        temperature(0.4)(temperature(0.5)(poutine.reparam(model, config=config))),
    ]
    for program in programs:
        torch.testing.assert_close(program().std(0), 0.2 * SCALE, rtol=0.03, atol=0)


def test_a_hidden_site_stays_hidden_from_an_outer_reparam():
    program = temperature(0.5, hide=("s",))(many(dist.Normal(LOC, SCALE)))
    samples = poutine.reparam(program, config={"s": LocScaleReparam(0.0)})()
    torch.testing.assert_close(samples.std(0), SCALE, rtol=0.03, atol=0)


def test_a_handler_is_as_new_after_an_error():
    class Failing(Messenger):
        def _pyro_sample(self, msg):
            raise KeyError(msg["name"])

    program = temperature(0.5)(lambda: pyro.sample("s", dist.Normal(LOC, SCALE).expand([20_000, 2])))
    with pytest.raises(KeyError), Failing():
        program()
    torch.testing.assert_close(program().std(0), 0.5 * SCALE, rtol=0.03, atol=0)


def test_a_posterior_that_an_outer_handler_samples_instead_keeps_its_scale():
    class Posterior(Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] == "s":
                sites = [("first", LOC[0], SCALE[0]), ("second", LOC[1], SCALE[1])]
                values = [pyro.sample(name, dist.Normal(loc, scale).expand([20_000])) for name, loc, scale in sites]
                msg["value"] = torch.stack(values, -1)

    with Posterior():
        samples = temperature(0.5)(lambda: pyro.sample("s", dist.Normal(0.0, 1.0).expand([20_000, 2])))()
    torch.testing.assert_close(samples.std(0), SCALE, rtol=0.03, atol=0)


@pytest.mark.parametrize("tau", [0.0, -0.5, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_is_refused(tau):
    with pytest.raises(UserError, match=rf"^temperature\({tau}\): .* must be positive and finite$"):
        temperature(tau)
