"""GENESIS-v2's own slot prior: slot after slot, the first from N(0, I)."""

import pytest
import torch
from pyro import poutine
from tiny import IMAGE_SHAPE, NETWORKS, NUM_SLOTS, SLOT_DIM, tiny_images, tiny_pair

from pyro_lom.networks.recurrent_prior import RecurrentHead
from pyro_lom.tempering import temperature

B = 4
SLOTS = [f"o_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture(params=NETWORKS)
def model(request):
    return tiny_pair("genesis-v2-autoregressive", request.param).model


def trace_of(model, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(model).get_trace(*args, **kwargs)


def prior_of(trace, site):
    return trace.nodes[site]["fn"].mean, trace.nodes[site]["fn"].stddev


def test_without_images_it_draws_scenes_slot_after_slot(model):
    trace = trace_of(model, num_scenes=B)
    assert trace.stochastic_nodes == ["scenes", *SLOTS, "x"]
    for site in SLOTS:
        assert (trace.nodes[site]["fn"].batch_shape, trace.nodes[site]["fn"].event_shape) == ((B, 1), (SLOT_DIM,))
    assert trace.nodes["_RETURN"]["value"].shape == (B, 1, *IMAGE_SHAPE)


def test_images_are_observed(model):
    images = tiny_images(B)
    trace = trace_of(model, images)
    assert trace.nodes["x"]["is_observed"] and torch.equal(trace.nodes["x"]["value"], images.unsqueeze(1))


def test_the_first_slot_is_standard_normal(model):
    mean, stddev = prior_of(trace_of(model, num_scenes=B), "o_1")
    assert not mean.any() and (stddev == 1).all()


@pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_the_prior_of_a_slot_depends_on_those_before_it_alone(model, moved, handler):
    given = {site: torch.randn(B, 1, SLOT_DIM) for site in SLOTS}
    other = given | {SLOTS[moved]: given[SLOTS[moved]] + 1}
    first, second = (trace_of(handler(model, data), num_scenes=B) for data in (given, other))
    for part in (0, 1):
        changed = [not torch.equal(prior_of(first, site)[part], prior_of(second, site)[part]) for site in SLOTS]
        assert changed == [k > moved for k in range(NUM_SLOTS)]


def test_temperature_narrows_every_slot_about_its_mean(model):
    model = poutine.condition(model, {site: torch.randn(B, 1, SLOT_DIM) for site in SLOTS[:-1]})
    mean, stddev = prior_of(trace_of(model, num_scenes=B), SLOTS[-1])
    with temperature(0.5):
        narrow_mean, narrow_stddev = prior_of(trace_of(model, num_scenes=B), SLOTS[-1])
    torch.testing.assert_close(narrow_mean, mean)
    torch.testing.assert_close(narrow_stddev, 0.5 * stddev)


class TestRecurrentHead:
    """Means are in (-1, 1), and standard deviations in (0, 1), near 1 at the start."""

    def test_ranges(self):
        prior, state = RecurrentHead(SLOT_DIM, SLOT_DIM, width=5), None
        for _ in range(3):
            distribution, state = prior(100 * torch.randn(B, 1, SLOT_DIM), state)
            assert distribution.mean.abs().max() < 1
            assert 0.9 < distribution.stddev.min() and distribution.stddev.max() < 1

    def test_any_batch_is_as_one_at_a_time(self):
        prior, slots = RecurrentHead(SLOT_DIM, SLOT_DIM, width=5), torch.randn(2, 3, 1, SLOT_DIM)
        first, state = prior(slots)
        second, _ = prior(slots + 1, state)
        assert {part.shape for part in state} == {(2, 3, 1, 5)}
        _, state = prior(slots[1, 2])
        torch.testing.assert_close(prior(slots[1, 2] + 1, state)[0].mean, second.mean[1, 2])
        assert (first.mean != second.mean).any()
