"""The recurrent network of an autoregressive slot prior: any batch, from a scene or from none."""

import pytest
import torch

from pyro_lom.networks.recurrent_prior import SlotRecurrence

DS, DZ, WIDTH = 6, 4, 5


@pytest.mark.parametrize("batch", [(3,), (3, 1), (2, 3, 1)])
def test_any_batch_is_as_one_at_a_time(batch):
    network = SlotRecurrence(DZ, width=WIDTH, scene_dim=DS)
    scenes, slots = torch.randn(*batch, DS), torch.randn(*batch, DZ)
    state = network(slots, network.start(scenes))
    assert {part.shape for part in state} == {(*batch, WIDTH)}
    rows = zip(scenes.view(-1, DS), slots.view(-1, DZ), strict=True)
    alone = [network(slot, network.start(scene)) for scene, slot in rows]
    for together, single in zip(state, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(together.view(-1, WIDTH), torch.stack(single))


def test_without_a_scene_one_state_is_that_of_all():
    network, slots = SlotRecurrence(DZ, width=WIDTH), torch.randn(2, 3, DZ)
    start = network.start(None)
    assert {part.shape for part in start} == {(WIDTH,)}
    expanded = tuple(part.expand(2, 3, -1) for part in start)
    torch.testing.assert_close(network(slots, start), network(slots, expanded))


def test_the_state_carries_every_slot_before():
    network = SlotRecurrence(DZ, width=WIDTH)
    slots = torch.randn(3, DZ, requires_grad=True)
    state = network.start(None)
    for slot in slots:
        state = network(slot, state)
    state[0].sum().backward()
    assert (slots.grad.abs().sum(-1) > 0).all()


def test_what_reads_the_scene_starts_as_the_papers_networks_do():
    torch.manual_seed(0)
    linear = SlotRecurrence(256, width=WIDTH, scene_dim=256).project_scene[0]
    assert linear.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert not linear.bias.any() and not SlotRecurrence(DZ, width=WIDTH).first.any()


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_given_slots_are_read_one_after_another(batch):
    network = SlotRecurrence(DZ, width=WIDTH, scene_dim=DS)
    scenes, slots = torch.randn(*batch, DS), torch.randn(*batch, 4, DZ)
    state, expected = network.start(scenes), []
    for k in range(4):
        expected.append(state[0])
        state = network(slots[..., k, :], state)
    torch.testing.assert_close(network.read(scenes, slots), torch.stack(expected, dim=-2))


def test_inputs_may_be_wider_than_slots():
    network = SlotRecurrence(DZ, width=WIDTH, scene_dim=DS, token_dim=7)
    assert (network.cell.input_size, network.project_scene[0].out_features) == (7, 7)
    scene, slots = torch.randn(3, DS), torch.randn(3, 2, DZ)
    state = network.start(scene)
    expected, _ = network.cell(network.embed(slots[:, 0]), state)
    torch.testing.assert_close(network.read(scene, slots)[:, 1], expected)
