"""DCI on codes whose scores are known, and what the published script gets wrong."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from pyro_lom.errors import UserError
from pyro_lom.metrics.dci import _structure, dci, in_order_of_attributes, match_objects

N = 600


@pytest.fixture
def factors():
    rng = np.random.default_rng(0)
    return {"x": rng.uniform(size=N), "size": rng.integers(0, 3, N), "hue": rng.uniform(size=N).astype(np.float32)}


def columns(factors):
    return np.stack([values.astype(np.float32) for values in factors.values()], axis=1)


def test_one_dimension_a_factor_is_perfect(factors):
    scores = dci(columns(factors)[:, [2, 0, 1]], factors)
    assert min(scores) > 0.97


def test_mixed_dimensions_are_informative_but_entangled(factors):
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    codes = ((columns(factors) - 0.5) @ rotation).astype(np.float32)
    scores = dci(codes, factors)
    assert scores.informativeness > 0.7
    assert scores.disentanglement < 0.6 and scores.completeness < 0.6


def test_noise_says_nothing(factors):
    codes = np.random.default_rng(2).normal(size=(N, 4)).astype(np.float32)
    scores = dci(codes, {name: factors[name] for name in ("x", "hue")})
    assert scores.informativeness < 0.05 and scores.disentanglement < 0.3


@pytest.mark.parametrize("order", [["x", "size"], ["size", "x"]])
def test_each_factor_has_its_own_kind_of_predictor(factors, order):
    """The published script takes the kind of the first for all, and finds no regressor ever exactly right."""
    scores = dci(columns(factors), {name: factors[name] for name in order})
    assert scores.informativeness > 0.97


def test_scores_are_those_of_entropies():
    importance = np.random.default_rng(3).uniform(size=(4, 3))
    disentanglement, completeness = _structure(importance)
    of_codes = [1 - entropy(row, base=3) for row in importance]
    assert disentanglement == pytest.approx(np.average(of_codes, weights=importance.sum(1)))
    assert completeness == pytest.approx(np.mean([1 - entropy(column, base=4) for column in importance.T]))


def test_dead_dimensions_do_not_count():
    importance = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert _structure(importance) == pytest.approx((1.0, 1.0))


def test_codes_that_tell_nothing_score_nothing(factors):
    assert dci(np.ones((N, 4), np.float32), {"x": factors["x"], "hue": factors["hue"]}) == (0, 0, 0)


def test_factors_that_are_no_numbers_are_refused(factors):
    codes = columns(factors)
    factors["hue"][7] = np.nan
    with pytest.raises(UserError, match="^DCI needs finite factors: factors/hue is NaN or infinite for some object$"):
        dci(codes, factors)


def test_factors_that_never_vary_are_left_out(factors):
    constant = {"present": np.ones(N)}
    assert dci(columns(factors), factors | constant) == dci(columns(factors), factors)
    with pytest.raises(UserError, match="^DCI needs a factor that differs between objects"):
        dci(columns(factors), constant)


def test_one_factor_has_no_disentanglement_to_speak_of(factors):
    scores = dci(columns(factors), {"x": factors["x"]})
    assert np.isnan(scores.disentanglement) and scores.completeness > 0.97


def test_too_few_objects_are_refused(factors):
    few = {name: values[:19] for name, values in factors.items()}
    with pytest.raises(UserError, match="^DCI needs 20 objects or more that a slot draws, not 19: use more images$"):
        dci(columns(few), few)


def test_the_seed_decides(factors):
    assert dci(columns(factors), factors) == dci(columns(factors), factors)
    assert dci(columns(factors), factors, seed=1) != dci(columns(factors), factors)


def test_objects_get_the_slots_that_draw_them():
    labels = torch.tensor([[[0, 0, 1, 1, 2, 2]], [[0, 0, 0, 0, 2, 2]]])  # the second scene lacks object 1
    segments = torch.tensor([[[1, 1, 2, 2, 0, 0]], [[2, 2, 2, 2, 1, 1]]])
    slots = torch.arange(6.0).view(2, 3, 1)
    codes, factors = match_objects(slots, segments, labels, {"hue": np.array([[10, 20], [0, 40]])}, num_background=1)
    assert codes.tolist() == [[0], [2], [4]]
    assert factors["hue"].tolist() == [20, 10, 40]


def test_what_no_slot_draws_is_left_out():
    labels = torch.zeros(1, 4, 8, dtype=torch.long)
    labels[0, 0, :2] = 1  # two pixels of the one segment: IoU 2/32
    codes, factors = match_objects(
        torch.zeros(1, 2, 3), torch.zeros_like(labels), labels, {"hue": np.ones((1, 1))}, num_background=1
    )
    assert codes.shape == (0, 3) and len(factors["hue"]) == 0


def test_objects_beyond_the_known_ones_are_left_out():
    labels = torch.tensor([[[0, 1, 2, 3]]])
    codes, factors = match_objects(
        torch.arange(4.0).view(1, 4, 1), labels, labels, {"hue": np.array([[10, 20]])}, num_background=1
    )
    assert codes.tolist() == [[1], [2]] and factors["hue"].tolist() == [10, 20]


def test_objects_of_a_scene_are_sorted_by_their_first_factor_and_then_by_the_next():
    factors = {"hue": np.array([[2, 1, 1], [0, 5, 3]]), "size": np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.1]])}
    found = in_order_of_attributes(factors)
    assert list(found) == ["hue_0", "hue_1", "hue_2", "size_0", "size_1", "size_2"]
    assert [found[f"hue_{j}"].tolist() for j in range(3)] == [[1, 0], [1, 3], [2, 5]]
    assert [found[f"size_{j}"].tolist() for j in range(3)] == [[0.2, 0.3], [0.9, 0.1], [0.1, 0.2]]
    assert found["hue_0"].dtype.kind == "i"  # still a class


def test_the_order_of_objects_in_the_file_does_not_matter():
    rng = np.random.default_rng(0)
    factors = {"hue": rng.integers(0, 3, (20, 4)), "x": rng.uniform(size=(20, 4))}
    shuffle = rng.permuted(np.tile(np.arange(4), (20, 1)), axis=1)
    shuffled = {name: np.take_along_axis(values, shuffle, axis=1) for name, values in factors.items()}
    expected, found = in_order_of_attributes(factors), in_order_of_attributes(shuffled)
    assert all(np.array_equal(found[name], values) for name, values in expected.items())
