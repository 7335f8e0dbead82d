"""The autoregressive prior's guide: the orderless posterior, stopped, slot by slot."""

import pytest
import torch
from pyro import poutine
from tiny import NUM_SLOTS, SCENE_DIM, SLOT_DIM, tiny_images, tiny_pair
from torch.distributions import kl_divergence

from pyro_lom.distributions import diagonal_normal
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.matching import permute
from pyro_lom.types import OrderlessPosterior

B = 4
IMAGES = tiny_images(B)
SLOTS = [f"z_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture(params=["autoregressive-emorl", "scene-autoregressive-emorl"])
def pair(request):
    return tiny_pair(request.param)


@pytest.fixture
def posterior():
    return OrderlessPosterior(torch.randn(B, NUM_SLOTS, SLOT_DIM), 0.1 + torch.rand(B, NUM_SLOTS, SLOT_DIM))


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def test_slots_are_those_of_the_orderless_posterior_in_its_order(pair, posterior):
    trace = run(pair.guide, IMAGES, inferred=posterior)
    for k, site in enumerate(SLOTS):
        fn = trace.nodes[site]["fn"]
        assert (fn.batch_shape, fn.event_shape) == ((B, 1), (SLOT_DIM,))
        assert torch.equal(fn.mean[:, 0], posterior.loc[:, k]) and torch.equal(fn.stddev[:, 0], posterior.scale[:, k])
    drawn = torch.cat([trace.nodes[site]["value"] for site in SLOTS], dim=1)
    assert torch.equal(trace.nodes["_RETURN"]["value"], drawn)


def test_it_infers_what_the_objective_could_have_handed_over(pair):
    torch.manual_seed(2)
    handed = pair.guide(IMAGES, inferred=pair.guide.orderless_guide.infer(IMAGES))
    torch.testing.assert_close(handed, run(pair.guide, IMAGES).nodes["_RETURN"]["value"])


def test_the_order_of_slots_does_not_matter_to_the_scene(posterior):
    guide, shuffle = tiny_pair("scene-autoregressive-emorl").guide, torch.rand(B, NUM_SLOTS).argsort(-1)
    shuffled = OrderlessPosterior(permute(posterior.loc, shuffle), permute(posterior.scale, shuffle))
    first, second = (run(guide, IMAGES, inferred=p).nodes["s"]["fn"] for p in (posterior, shuffled))
    assert (first.batch_shape, first.event_shape) == ((B, 1), (SCENE_DIM,))
    torch.testing.assert_close(first.mean, second.mean)
    torch.testing.assert_close(first.stddev, second.stddev)


def test_no_gradient_reaches_the_orderless_posterior(pair, posterior):
    loc, scale = (part.clone().requires_grad_() for part in posterior[:2])
    loss = TraceScene_ELBO().differentiable_loss(
        pair.model, lambda images: pair.guide(images, inferred=OrderlessPosterior(loc, scale)), IMAGES
    )
    loss.backward()
    assert loc.grad is None and scale.grad is None


def test_kls_are_of_each_slot_given_those_before_it(pair, posterior):
    """KL(q(o_k) || p(z_k | z_1:k-1)) under samples of q, as A.5 adds it to the orderless model's ELBO."""
    guide = run(pair.guide, IMAGES, inferred=posterior)
    torch.manual_seed(2)
    terms = TraceScene_ELBO().terms(pair.model, lambda images: pair.guide(images, inferred=posterior), IMAGES)
    state = pair.model.recurrence.start(guide.nodes["s"]["value"] if "s" in guide.nodes else None)
    for k, site in enumerate(SLOTS):
        q = diagonal_normal(posterior.loc[:, k], posterior.scale[:, k])
        p = pair.model.slot_prior(state[0].reshape(-1, state[0].shape[-1]))
        torch.testing.assert_close(terms.kl[site], kl_divergence(q, p.expand([B])))
        state = pair.model.recurrence(guide.nodes[site]["value"], state)


def test_without_a_scene_latent_there_is_nothing_to_learn():
    assert not list(tiny_pair("autoregressive-emorl").guide.parameters())
    assert {name.split(".")[0] for name in tiny_pair("scene-autoregressive-emorl").guide.state_dict()} == {
        "scene_encoder",
        "scene_posterior",
    }
