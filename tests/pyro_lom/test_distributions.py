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
    RelaxedBernoulli,
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


class TestRelaxedBernoulli:
    LOGITS = torch.tensor([-3.0, 0.0, 2.0])

    def test_all_but_its_samples_is_of_the_bernoulli(self):
        bernoulli, relaxed = dist.Bernoulli(logits=self.LOGITS), RelaxedBernoulli(self.LOGITS, 0.5)
        for value in (torch.zeros(3), torch.ones(3)):
            torch.testing.assert_close(relaxed.log_prob(value), bernoulli.log_prob(value))
        torch.testing.assert_close(relaxed.mean, bernoulli.mean)
        torch.testing.assert_close(relaxed.stddev, bernoulli.stddev)
        assert relaxed.mode.tolist() == [0, 0, 1]
        other = torch.tensor([1.0, 0.5, 2.0])
        kl = torch.distributions.kl_divergence(relaxed, RelaxedBernoulli(other, 0.5))
        expected = torch.distributions.kl_divergence(bernoulli, dist.Bernoulli(logits=other))
        torch.testing.assert_close(kl, expected)

    @pytest.mark.parametrize("relaxation", [1.0, 0.1])
    def test_a_sample_is_more_than_a_half_with_the_bernoullis_probability(self, relaxation):
        torch.manual_seed(0)
        samples = RelaxedBernoulli(self.LOGITS, relaxation).sample((20_000,))
        assert 0 <= samples.min() and samples.max() <= 1
        torch.testing.assert_close((samples > 0.5).float().mean(0), self.LOGITS.sigmoid(), rtol=0, atol=0.02)
        assert (samples[:, 1] - 0.5).abs().mean() > (0.4 if relaxation < 1 else 0.2)

    def test_in_a_plate_it_has_the_plates_shape_and_a_gradient(self):
        logits = self.LOGITS.clone().requires_grad_()
        with pyro.plate("scenes", 4, dim=-2):
            value = pyro.sample("z", RelaxedBernoulli(logits, 0.5))
        assert value.shape == (4, 3)
        value.sum().backward()
        assert (logits.grad > 0).all()
