"""Programs are plain modules that stock SVI really trains, without Pyro's parameter store."""

import copy
import itertools

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.program import Program

DATA = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0)) + 2
ELBOS = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceScene_ELBO": TraceScene_ELBO,
}


class Model(Program):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 3)

    def forward(self, data):
        with pyro.plate("scenes", len(data), dim=-2):
            latent = pyro.sample("s", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(latent), 0.5).to_event(1), obs=data)


class Guide(Program):
    def __init__(self, model):
        super().__init__()
        self.borrow("model", model)
        self.encoder = nn.Linear(3, 2)
        self.raw_scale = nn.Parameter(torch.zeros(2))

    def forward(self, data):
        with pyro.plate("scenes", len(data), dim=-2):
            pyro.sample("s", dist.Normal(self.encoder(data), self.raw_scale.exp()).to_event(1))


def make_pair():
    model = Model()
    return model, Guide(model)


def weights(*modules):
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def loss_of(pair):
    torch.manual_seed(5)
    return Trace_ELBO(num_particles=20).loss(*pair, DATA)


@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
def test_stock_svi_trains_every_parameter_and_leaves_the_store_empty(elbo):
    pair = make_pair()
    before, loss_before = weights(*pair), loss_of(pair)
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.03}), elbo())
    for _ in range(30):
        svi.step(DATA)
    assert all(not torch.equal(old, new) for old, new in zip(before, weights(*pair), strict=True))
    assert loss_of(pair) < 0.8 * loss_before
    assert not list(pyro.get_param_store().keys())


def test_svi_steps_as_torch_does():
    pair, twin = make_pair(), make_pair()
    for module, other in zip(pair, twin, strict=True):
        other.load_state_dict(module.state_dict())
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    optimizer = torch.optim.Adam([*twin[0].parameters(), *twin[1].parameters()], lr=0.03)
    for seed in range(3):
        torch.manual_seed(seed)
        svi.step(DATA)
        torch.manual_seed(seed)
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(*twin, DATA).backward()
        optimizer.step()
    torch.testing.assert_close(weights(*pair), weights(*twin))


def test_training_one_instance_does_not_move_another():
    pair, other = make_pair(), make_pair()
    addresses = [{p.data_ptr() for module in p_ for p in module.parameters()} for p_ in (pair, other)]
    assert not set.intersection(*addresses)
    before = weights(*other)
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    svi.step(DATA)
    svi.step(DATA)
    assert all(map(torch.equal, before, weights(*other)))


def test_frozen_parameters_stay():
    model, guide = make_pair()
    model.requires_grad_(False)
    before = weights(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    svi.step(DATA)
    assert all(map(torch.equal, before, weights(model)))


def test_parameters_are_announced_only_to_those_who_listen_for_them():
    model, _ = make_pair()
    assert not poutine.trace(model).get_trace(DATA).param_nodes
    with poutine.trace(param_only=True) as listener:
        model(DATA)
    assert len(listener.trace.param_nodes) == len(list(model.parameters()))
    heard = {listener.trace.nodes[name]["value"].unconstrained() for name in listener.trace.param_nodes}
    assert heard == set(model.parameters())


def test_a_borrowed_module_is_neither_registered_nor_copied():
    model, guide = make_pair()
    assert guide.model is model
    assert not [name for name in guide.state_dict() if "decoder" in name]
    assert not set(model.parameters()) & set(guide.parameters())
    assert model not in guide.modules()


def test_copies_made_together_stay_together():
    model, guide = copy.deepcopy(make_pair())
    assert guide.model is model
    before = weights(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO()).step(DATA)
    assert not any(itertools.starmap(torch.equal, zip(before, weights(guide.model), strict=True)))
