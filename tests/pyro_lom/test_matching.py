"""Matchings are permutations, and greedy matching is Algorithm 1."""

import pytest
import torch

from pyro_lom.matching import greedy_matching, hungarian_matching, permute

either_matching = pytest.mark.parametrize("matching", [greedy_matching, hungarian_matching])


def algorithm_1(ordered, orderless):
    """The paper's pseudocode, word for word, on lists."""
    num_slots = len(ordered)
    cost = [[(ordered[i] - orderless[j]).norm().item() for j in range(num_slots)] for i in range(num_slots)]
    permutation = []
    for i in range(num_slots):
        best = min(range(num_slots), key=lambda j: cost[i][j])
        for row in cost:
            row[best] = float("inf")
        permutation.append(best)
    return permutation


@either_matching
@pytest.mark.parametrize("batch", [(), (5,), (3, 2), (2, 1, 3)], ids=str)
def test_it_is_a_permutation_in_any_batch(matching, batch):
    ordered, orderless = torch.randn(2, *batch, 7, 4)
    permutation = matching(ordered, orderless)
    assert (permutation.shape, permutation.dtype) == ((*batch, 7), torch.int64)
    assert torch.equal(permutation.sort(-1).values, torch.arange(7).expand(*batch, 7))
    alone = [matching(a, b) for a, b in zip(ordered.view(-1, 7, 4), orderless.view(-1, 7, 4), strict=True)]
    assert torch.equal(permutation.view(-1, 7), torch.stack(alone))


@pytest.mark.parametrize("spread", [1.0, 1e6])
@pytest.mark.parametrize("num_slots", [1, 2, 5, 9])
def test_greedy_matching_is_algorithm_1(num_slots, spread):
    ordered, orderless = spread * torch.randn(2, 20, num_slots, 3)
    expected = [algorithm_1(*scene) for scene in zip(ordered, orderless, strict=True)]
    assert greedy_matching(ordered, orderless).tolist() == expected


@either_matching
def test_it_undoes_a_shuffle_of_nearby_slots(matching):
    ordered = 10 * torch.eye(6).expand(8, 6, 6)  # far enough apart that the nearest is the best for all at once
    shuffle = torch.stack([torch.randperm(6) for _ in range(8)])
    orderless = permute(ordered + 0.1 * torch.randn(8, 6, 6), shuffle)
    assert torch.equal(matching(ordered, orderless), shuffle.argsort(-1))


def test_hungarian_matching_has_the_smallest_total_distance_and_greedy_serves_the_first_place():
    ordered, orderless = torch.randn(2, 50, 5, 2)
    costs, first = {}, {}
    for name, matching in {"greedy": greedy_matching, "hungarian": hungarian_matching}.items():
        distances = (ordered - permute(orderless, matching(ordered, orderless))).norm(dim=-1)
        costs[name], first[name] = distances.sum(-1), distances[:, 0]
    assert (costs["hungarian"] <= costs["greedy"] + 1e-5).all()
    assert (costs["hungarian"] < costs["greedy"] - 1e-3).any()
    assert (first["greedy"] <= first["hungarian"]).all()


@pytest.mark.parametrize("num_slots", [3, 4])
def test_hungarian_matching_is_the_best_of_all_permutations(num_slots):
    ordered, orderless = torch.randn(2, num_slots, 3)
    everyone = torch.cartesian_prod(*[torch.arange(num_slots)] * num_slots)
    permutations = everyone[everyone.sort(-1).values.eq(torch.arange(num_slots)).all(-1)]
    totals = (ordered - orderless[permutations]).norm(dim=-1).sum(-1)
    assert torch.equal(hungarian_matching(ordered, orderless), permutations[totals.argmin()])


@either_matching
def test_equal_slots_still_get_a_place_each(matching):
    slots = torch.ones(2, 4, 3)
    assert torch.equal(matching(slots, slots).sort(-1).values, torch.arange(4).expand(2, 4))


@either_matching
def test_it_accepts_what_carries_a_gradient(matching):
    ordered, orderless = torch.randn(2, 3, 4, 5, requires_grad=True)
    assert not matching(ordered, orderless).requires_grad


def test_place_k_receives_slot_permutation_k():
    slots = torch.randn(3, 2, 4, 5)
    permutation = torch.rand(3, 2, 4).argsort(-1)
    permuted = permute(slots, permutation)
    for index in torch.cartesian_prod(*map(torch.arange, (3, 2, 4))):
        s, b, k = index.tolist()
        assert torch.equal(permuted[s, b, k], slots[s, b, permutation[s, b, k]])
    assert torch.equal(permute(permuted, permutation.argsort(-1)), slots)


def spoilt(ordered, orderless, value):
    """Means of which some are huge, infinite or NaN, one kind in each scene."""
    ordered[0], orderless[0] = value * ordered[0], value * orderless[0]
    ordered[1, 2] = orderless[2, 1] = orderless[3, 0, 1] = ordered[4, 3, 2] = orderless[4, 3, 2] = value
    ordered[5], orderless[5] = value, -value
    return ordered, orderless


@either_matching
@pytest.mark.parametrize("value", [1e30, 3e38, torch.inf, torch.nan])
def test_it_is_a_permutation_for_means_that_no_float32_distance_has(matching, value):
    ordered, orderless = spoilt(*torch.randn(2, 7, 5, 4), value)
    permutation = matching(ordered, orderless)
    assert torch.equal(permutation.sort(-1).values, torch.arange(5).expand(7, 5))
    assert torch.equal(permutation[6], matching(ordered[6], orderless[6]))  # a scene without such means


@pytest.mark.parametrize("factor", [1e15, 1e19, 1e30, 1e37])
def test_greedy_matching_is_nearest_first_where_squares_exceed_float32(factor):
    ordered, orderless = factor * torch.randn(2, 20, 6, 4)
    assert torch.equal(greedy_matching(ordered, orderless), greedy_matching(ordered.double(), orderless.double()))
    expected = [algorithm_1(*scene) for scene in zip(ordered.double(), orderless.double(), strict=True)]
    assert greedy_matching(ordered, orderless).tolist() == expected


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@either_matching
def test_a_slot_that_is_not_finite_is_matched_when_no_other_is_left(matching, value):
    ordered = torch.randn(5, 4)
    orderless = permute(ordered, torch.tensor([4, 0, 3, 1, 2]))
    orderless[1, 2] = value  # it would have been the last place's nearest
    found = matching(ordered[[1, 2, 3, 4, 0]], orderless)
    assert found.tolist() == [3, 4, 2, 0, 1]


@pytest.mark.parametrize("largest", [1.0, 1e30])
def test_float64_is_not_rounded_to_float32(largest):
    ordered = largest * torch.ones(2, 3, dtype=torch.float64)
    orderless = ordered * (1 + torch.tensor([[2e-12], [1e-12]], dtype=torch.float64))
    assert greedy_matching(ordered, orderless).tolist() == [1, 0]
    assert greedy_matching(ordered.float(), orderless.float()).tolist() == [0, 1]  # equal: the lowest index
