"""A site has the shape of its plates, or `checked_shapes` refuses it."""

from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_lom.errors import UserError
from pyro_lom.sites import checked_shapes

B, K, D = 4, 3, 5


def normal(*batch):
    return dist.Normal(torch.zeros(*batch, D), 1.0).to_event(1)


def sample(distribution, value=None, *, plates, **options):
    """Sample or observe `s` in plates of these sizes by dim, within `checked_shapes(**options)`."""
    with checked_shapes(**options), ExitStack() as stack:
        for dim, size in plates.items():
            stack.enter_context(pyro.plate(f"plate{dim}", size, dim=dim))
        return pyro.sample("s", distribution, obs=value)


SCENES, SLOTS, PARTICLES = {-2: B}, {-2: B, -1: K}, {-3: 2, -2: B}


@pytest.mark.parametrize(
    ("batch", "plates"),
    [
        ((), SCENES),
        ((1,), SCENES),
        ((B, 1), SCENES),
        ((), SLOTS),
        ((K,), SLOTS),
        ((B, 1), SLOTS),
        ((B, K), SLOTS),
        ((B, 1), PARTICLES),
        ((2, B, 1), PARTICLES),
        ((1, B, 1), SCENES),
        ((), {}),
    ],
    ids=str,
)
def test_distributions_that_plates_expand_to_their_size_pass(batch, plates):
    sizes = [plates.get(dim, 1) for dim in range(min(plates, default=0), 0)]
    assert sample(normal(*batch), plates=plates).numel() == torch.Size([*sizes, D]).numel()


@pytest.mark.parametrize(
    ("batch", "plates", "found", "wanted"),
    [
        ((B,), SCENES, "(4, 4)", "(4, 1)"),
        ((B, B), SCENES, "(4, 4)", "(4, 1)"),
        ((B, K), SCENES, "(4, 3)", "(4, 1)"),
        ((B, 1, 1), SCENES, "(4, 4, 1)", "(4, 1)"),
        ((B, 1, K), SLOTS, "(4, 4, 3)", "(4, 3)"),
        ((B,), PARTICLES, "(2, 4, 4)", "(2, 4, 1)"),
        ((B,), {}, "(4,)", "()"),
    ],
    ids=str,
)
def test_distributions_with_other_dims_are_refused(batch, plates, found, wanted):
    with pytest.raises(UserError) as refused:
        sample(normal(*batch), plates=plates)
    assert str(refused.value) == (
        f"site 's': its distribution has batch shape {found} instead of {wanted}, the sizes of its plates and 1 "
        "elsewhere; declare event dims with .to_event(), or insert a missing last batch dim with .unsqueeze(-2)"
    )


@pytest.mark.parametrize("shape", [(B, 1, D), (1, 1, D), (D,)], ids=str)
def test_values_that_broadcast_to_the_plates_pass(shape):
    assert sample(normal(), torch.zeros(shape), plates=SCENES).shape == shape


@pytest.mark.parametrize("shape", [(B, D), (B, K, D), (B, 1, 1, D), (B + 1, 1, D)], ids=str)
def test_values_with_other_dims_are_refused(shape):
    with pytest.raises(UserError, match=r"^site 's': its value has batch shape .* instead of \(4, 1\)"):
        sample(normal(), torch.zeros(shape), plates=SCENES)


@pytest.mark.parametrize("shape", [(), (1,), (B, 1, 1), (B, 1, D + 1), (D, 1)], ids=str)
def test_the_event_shape_of_a_value_is_that_of_its_distribution(shape):
    with pytest.raises(UserError, match=r"^site 's': its distribution has event shape \(5,\), .* value of shape"):
        sample(normal(), torch.zeros(shape), plates=SCENES)


def test_dims_left_of_the_plates_are_free_if_the_nesting_is_given():
    assert sample(normal(7, B, 1), plates=SCENES, max_plate_nesting=2).shape == (7, B, 1, D)
    with pytest.raises(UserError, match=r"batch shape \(7, 4, 4\) instead of \(4, 1\)"):
        sample(normal(7, B, B), plates=SCENES, max_plate_nesting=2)


def test_a_subsampled_plate_has_the_size_of_its_sample():
    with checked_shapes(), pyro.plate("rendered", B, subsample_size=2, dim=-2):
        assert pyro.sample("s", normal()).shape == (2, 1, D)
        with pytest.raises(UserError, match=r"batch shape \(2, 2\) instead of \(2, 1\)"):
            pyro.sample("t", normal(2))


def test_sites_without_a_density_may_have_any_shape():
    with checked_shapes(), pyro.plate("scenes", B, dim=-2):
        assert pyro.deterministic("h", torch.zeros(7, 7)).shape == (7, 7)


def test_it_finds_what_pyros_validation_does_not():
    def model():
        with pyro.plate("scenes", B, dim=-2):
            pyro.sample("s", normal(B), obs=torch.zeros(B, 1, D))

    assert Trace_ELBO().loss(model, lambda: None) == pytest.approx(-B * B * D * normal().log_prob(torch.zeros(D)) / D)
    with pytest.raises(UserError, match="site 's'"):
        Trace_ELBO().loss(checked_shapes()(model), lambda: None)


def test_no_value_is_read():
    unread = torch.zeros(B, 1, D, device="meta")  # a tensor without values
    right, wrong = (dist.Normal(loc, 1.0, validate_args=False).to_event(1) for loc in (unread, unread[:, 0]))
    assert sample(right, unread, plates=SCENES) is unread
    with pytest.raises(UserError, match="its distribution has batch shape"):
        sample(wrong, unread, plates=SCENES)
