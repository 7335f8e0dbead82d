"""Slot-order stability: one where each index keeps its kind, chance where the order is random."""

import math

import pytest
import torch

from pyro_lom.metrics.slot_order import portraits, slot_order_stability
from pyro_lom.types import Rendering

K = 4


def rendering(order):
    """Scenes of K stripes of different colours, a little apart; slot `order[b, k]` draws stripe k."""
    b = len(order)
    masks = torch.full((b, K, 1, 16, 16), 1e-6)
    components = torch.zeros(b, K, 3, 16, 16)
    for scene in range(b):
        for stripe, slot in enumerate(order[scene].tolist()):
            masks[scene, slot, :, :, 4 * stripe : 4 * stripe + 4] = 1
            components[scene, slot] = torch.tensor([stripe / K, 1 - stripe / K, 0.5]).view(3, 1, 1)
    components += 0.05 * torch.rand_like(components)
    masks = masks / masks.sum(1, keepdim=True)
    return Rendering((masks * components).sum(1), components, masks.log())


def test_a_fixed_order_is_one():
    assert slot_order_stability(*portraits(rendering(torch.tensor([[2, 0, 3, 1]] * 10)))) == 1


def test_a_random_order_is_chance():
    order = torch.rand(400, K).argsort(1)
    assert slot_order_stability(*portraits(rendering(order))) == pytest.approx(1 / K, abs=0.04)


def test_one_index_that_wanders_with_another():
    order = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2]] * 20)
    assert slot_order_stability(*portraits(rendering(order))) == 0.5


def test_slots_that_draw_nothing_do_not_count():
    small, draws = portraits(rendering(torch.tensor([[0, 1, 2, 3]] * 6)))
    assert draws.all()
    drawn = rendering(torch.tensor([[0, 1, 2, 3]] * 6))
    masks = drawn.log_masks.exp()
    masks[:, 0] += masks[:, 3]
    masks[:, 3] = 1e-9
    assert portraits(drawn._replace(log_masks=masks.log()))[1].tolist() == [[True, True, True, False]] * 6
    only_first = torch.zeros_like(draws)
    only_first[:, 0] = True
    assert slot_order_stability(small.flip(1), only_first) == 1


def test_what_is_degenerate():
    small, draws = torch.rand(5, 1, 8), torch.ones(5, 1, dtype=torch.bool)
    assert slot_order_stability(small, draws) == 1  # one slot
    assert math.isnan(slot_order_stability(small[:1], draws[:1]))
    assert math.isnan(slot_order_stability(small, ~draws))
