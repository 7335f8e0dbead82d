"""Heads of distributions stay in float32 and positive."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_lom.distributions import (
    Computed,
    GaussianHead,
    at_least_float32,
    diagonal_normal,
    mean,
    normal_of,
    positive,
    positive_root,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scale_is_a_softplus_above_its_floor_in_float32(dtype):
    raw = torch.tensor([-1000.0, -1.0, 0.0, 2.0, 50.0]).to(dtype)
    scale = positive(raw)
    assert scale.dtype == torch.float32
    torch.testing.assert_close(scale, torch.log1p(raw.double().exp()).clamp(max=50).float() + 1e-4)
    assert positive(raw, floor=0.5).min() == 0.5


def test_half_precision_is_cast_up_and_float64_is_left_alone():
    for half in (torch.bfloat16, torch.float16):
        assert at_least_float32(torch.ones(2, dtype=half)).dtype == torch.float32
    for dtype in (torch.float32, torch.float64):
        tensor = torch.rand(3, dtype=dtype)
        assert at_least_float32(tensor) is tensor


def test_heads_compute_in_float64_where_their_weights_do():
    features = torch.randn(4, 6, dtype=torch.float64)
    for normal in (GaussianHead(6, 5).double()(features), normal_of(features)):
        assert {normal.mean.dtype, normal.stddev.dtype, normal.rsample().dtype} == {torch.float64}
    assert positive(features).dtype == torch.float64


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_a_head_gives_a_normal_over_vectors(batch):
    head, features = GaussianHead(6, 5), torch.randn(*batch, 6)
    normal = head(features)
    assert (normal.batch_shape, normal.event_shape) == (batch, (5,))
    torch.testing.assert_close(normal.mean, head.loc(features))
    torch.testing.assert_close(normal.stddev, positive(head.raw_scale(features)))


def test_dimensions_of_a_diagonal_normal_are_independent():
    loc, scale, value = torch.randn(4, 3), torch.rand(4, 3) + 0.1, torch.randn(4, 3)
    expected = torch.distributions.Normal(loc, scale).log_prob(value).sum(-1)
    torch.testing.assert_close(diagonal_normal(loc, scale).log_prob(value), expected)


def test_emorls_raw_parameters_are_a_loc_and_what_softplus_makes_a_variance():
    raw = torch.tensor([0.3, -2.0, 0.0, 1.0])
    normal = normal_of(raw)
    assert (normal.batch_shape, normal.event_shape) == ((), (2,))
    torch.testing.assert_close(normal.mean, raw[:2])
    torch.testing.assert_close(normal.stddev, torch.tensor([0.8326, 1.1460]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("q", [dist.Cauchy(torch.arange(3.0), 1.0), dist.StudentT(1.0, torch.arange(3.0), 1.0)])
def test_a_location_stands_for_a_mean_that_does_not_exist(q):
    assert torch.equal(mean(q), torch.arange(3.0))
    assert torch.equal(mean(q.to_event(1)), torch.arange(3.0))


def test_raw_variances_saturate_at_80():
    raw = torch.tensor([79.0, 80.0, 1000.0, math.inf])
    expected = torch.tensor([79.0, 80.0, 80.0, 80.0]).sqrt()
    torch.testing.assert_close(positive_root(raw), expected)
    assert torch.equal(GaussianHead(1, 4, to_scale=lambda _: expected)(torch.zeros(1)).stddev, expected)


class TestComputed:
    """A site whose value is computed where it is sampled, and nowhere else."""

    @staticmethod
    def program(values, calls):
        def compute():
            calls.append(1)
            return 2 * values

        with pyro.plate("scenes", 4, dim=-2):
            return pyro.sample("y", Computed(compute, values.shape[:-1], values.shape[-1:]))

    def test_it_is_what_was_computed_without_density(self):
        values, calls = torch.randn(4, 1, 3, requires_grad=True), []
        trace = poutine.trace(self.program).get_trace(values, calls)
        trace.compute_log_prob()
        site = trace.nodes["y"]
        assert torch.equal(site["value"], 2 * values) and len(calls) == 1
        assert torch.equal(site["log_prob"], torch.zeros(4, 1))
        site["value"].sum().backward()
        assert (values.grad == 2).all()

    def test_replayed_or_conditioned_it_is_not_computed(self):
        values, calls = torch.randn(4, 1, 3), []
        trace = poutine.trace(self.program).get_trace(values, [])
        assert poutine.replay(self.program, trace=trace)(values, calls) is trace.nodes["y"]["value"]
        given = torch.zeros(4, 1, 3)
        assert poutine.condition(self.program, {"y": given})(values, calls) is given
        assert not calls

    def test_it_is_expanded_over_plates(self):
        values = torch.randn(1, 1, 3)
        assert torch.equal(self.program(values, []), (2 * values).expand(4, 1, 3))
