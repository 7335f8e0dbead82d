"""Without order every slot is drawn from one distribution, which the scene sets."""

import torch
from pyro import poutine
from tiny import NUM_SLOTS, SCENE_DIM, tiny_images, tiny_pair

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.networks.bag_of_words import BagOfWords


def test_every_place_gets_the_scene():
    scene = torch.randn(4, 2, 6)
    order = BagOfWords(3)(scene)
    assert order.shape == (4, 2, 3, 6)
    assert all(torch.equal(order[..., k, :], scene) for k in range(3))


def test_slots_are_alike_in_a_lom_of_words():
    pair = tiny_pair(slot_prior="bag-of-words")
    trace = poutine.trace(pair.model).get_trace(num_scenes=2)
    assert trace.nodes["h"]["value"].shape == (2, NUM_SLOTS, SCENE_DIM)
    for moment in (trace.nodes["z"]["fn"].mean, trace.nodes["z"]["fn"].stddev):
        torch.testing.assert_close(moment, moment[:, :1].expand_as(moment))
        assert (moment[0] != moment[1]).any()


def test_it_trains():
    pair = tiny_pair(slot_prior="bag-of-words")
    TraceScene_ELBO().loss_and_grads(*pair, tiny_images())
    parameters = [parameter for program in pair for parameter in program.parameters()]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in parameters)
