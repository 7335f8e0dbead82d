"""GENESIS-v2's guide with one site for each slot."""

import pytest
import torch
from pyro import poutine
from tiny import NETWORKS, NUM_SLOTS, SLOT_DIM, tiny_images, tiny_pair
from torch.distributions import kl_divergence

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.types import OrderlessPosterior

B = 4
IMAGES = tiny_images(B)
SLOTS = [f"o_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture(params=NETWORKS)
def pair(request):
    return tiny_pair("genesis-v2-autoregressive", request.param)


@pytest.fixture
def posterior():
    return OrderlessPosterior(torch.randn(B, NUM_SLOTS, SLOT_DIM), 0.1 + torch.rand(B, NUM_SLOTS, SLOT_DIM))


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def test_sites_are_the_slots_in_the_order_of_the_posterior(pair, posterior):
    trace = run(pair.guide, IMAGES, inferred=posterior)
    assert trace.stochastic_nodes == ["scenes", *SLOTS]
    for k, site in enumerate(SLOTS):
        fn = trace.nodes[site]["fn"]
        assert (fn.batch_shape, fn.event_shape) == ((B, 1), (SLOT_DIM,))
        assert torch.equal(fn.mean[:, 0], posterior.loc[:, k]) and torch.equal(fn.stddev[:, 0], posterior.scale[:, k])
    drawn = torch.cat([trace.nodes[site]["value"] for site in SLOTS], dim=1)
    assert torch.equal(trace.nodes["_RETURN"]["value"], drawn)


def test_it_infers_what_the_objective_could_have_handed_over(pair):
    torch.manual_seed(2)
    handed = pair.guide(IMAGES, inferred=pair.guide.infer(IMAGES))
    torch.testing.assert_close(handed, run(pair.guide, IMAGES).nodes["_RETURN"]["value"])


def test_kls_are_of_each_slot_given_those_before_it(pair, posterior):
    guide = run(pair.guide, IMAGES, inferred=posterior)
    torch.manual_seed(2)
    terms = TraceScene_ELBO().terms(pair.model, lambda images: pair.guide(images, inferred=posterior), IMAGES)
    state = None
    for before, site in zip(SLOTS, SLOTS[1:], strict=False):
        prior, state = pair.model.slot_prior(guide.nodes[before]["value"], state)
        torch.testing.assert_close(terms.kl[site], kl_divergence(guide.nodes[site]["fn"], prior).squeeze(-1))


def test_one_loss_trains_every_parameter_of_model_and_guide(pair):
    TraceScene_ELBO().differentiable_loss(*pair, IMAGES).backward()
    parameters = [parameter for program in pair for parameter in program.parameters()]
    assert parameters and all(parameter.grad is not None for parameter in parameters)
