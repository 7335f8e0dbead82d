"""The handler `modes` sets sites to their modes, and no others."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_lom import temperature
from pyro_lom.distributions import RelaxedBernoulli
from pyro_lom.modes import modes


def model():
    s = pyro.sample("s", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    z = pyro.sample("z", dist.Normal(s, 1.0).to_event(1))
    present = pyro.sample("present", RelaxedBernoulli(z, 0.5).to_event(1))
    return s, z, present


def test_later_sites_take_the_modes_given_the_earlier_values():
    with modes("z", "present"):
        s, z, present = model()
    assert torch.equal(z, s) and torch.equal(present, (s > 0).float()) and s.any()


def test_sites_with_values_do_not_change():
    given = {"z": torch.tensor([1.0, -1.0])}
    with modes("z", "present"):
        assert torch.equal(poutine.condition(model, given)()[1], given["z"])


def test_it_works_with_other_handlers_and_tools():
    for program in (temperature(0.5)(modes("z")(model)), modes("z")(temperature(0.5)(model))):
        s, z, _ = program()
        assert torch.equal(z, s)
    samples = Predictive(modes("z")(model), num_samples=5)()
    assert torch.equal(samples["z"], samples["s"]) and samples["s"].std() > 0
