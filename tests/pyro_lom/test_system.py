"""A system is pairs by name: what each guide receives, and which pair is the result."""

import pytest
import torch
from tiny import ALONE, NETWORKS, SYSTEMS, WITH_SLOTS, tiny_images, tiny_system
from torch.utils._pytree import tree_leaves

from pyro_lom.errors import UserError
from pyro_lom.system import infer, result

IMAGES = tiny_images()


def evaluated(system):
    for pair in system.values():
        pair.model.eval()
        pair.guide.eval()
    return system


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_last_pair_is_the_result(name):
    system = tiny_system(name)
    assert result(system) is [*system.values()][-1]
    assert [*system] == (["model"] if name in ALONE else ["orderless", "ordered"])
    assert [pair.reads for pair in system.values()] == [None, "orderless"][: len(system)]


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("name", WITH_SLOTS)
def test_every_guide_receives_what_it_can_be_called_with(name, networks):
    system = evaluated(tiny_system(name, networks))
    received = infer(system, IMAGES)
    assert [*received] == [*system]
    for pair, inferred in zip(system.values(), received.values(), strict=True):
        assert not any(part.requires_grad for part in tree_leaves(inferred) if isinstance(part, torch.Tensor))
        pair.guide(IMAGES, inferred=inferred)
        masks = pair.guide.log_masks(inferred)
        assert (masks is None) == (pair.reads is not None)
        if masks is not None:
            torch.testing.assert_close(masks.exp().sum(1), torch.ones(2, 1, 32, 32))


def test_a_posterior_that_two_pairs_need_is_inferred_once():
    system, calls = evaluated(tiny_system()), []
    system["orderless"].guide.encoder.register_forward_hook(lambda *_: calls.append(1))
    received = infer(system, IMAGES)
    assert torch.equal(received["orderless"].loc, received["ordered"].loc) and len(calls) == 1


def test_of_one_pair_what_it_reads_is_inferred_as_well():
    system = evaluated(tiny_system())
    assert set(infer(system, IMAGES, ["orderless"])) == {"orderless"}
    torch.manual_seed(1)
    expected = system["orderless"].guide.pass_on(system["orderless"].guide.infer(IMAGES))
    torch.manual_seed(1)
    torch.testing.assert_close(infer(system, IMAGES, ["ordered"])["ordered"], expected)


def test_what_is_not_used_may_train():
    system = tiny_system()
    system["orderless"].model.eval()
    system["orderless"].guide.eval()
    assert set(infer(system, IMAGES)) == {"orderless", "ordered"}
    system["orderless"].guide.train()
    with pytest.raises(UserError, match=r"GenesisV2Guide is in training mode: call \.eval\(\)"):
        infer(system, IMAGES, ["ordered"])


def test_wrong_images_are_refused():
    system = evaluated(tiny_system())
    with pytest.raises(UserError, match="to 255, but GenesisV2 takes .*: pass images / 255"):
        infer(system, 255 * IMAGES / IMAGES.max())
