"""A scene prior is a module that returns a distribution over vectors: a sound one, learnable, and close to N(0, I)."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from tiny import NUM_SCENES, NUM_SLOTS, SCENE_DIM, SLOT_DIM, tiny_images, tiny_pair
from torch import nn

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.scene_priors import CouplingFlow, NormalMixture, StandardNormal
from pyro_lom.tempering import temper, temperature

PRIORS = {
    "normal": StandardNormal,
    "mixture": lambda dim: NormalMixture(dim, num_components=3),
    "flow": lambda dim: CouplingFlow(dim, num_couplings=3),
}


def stirred(prior):
    """The prior far from where it starts, as training leaves it."""
    torch.manual_seed(4)
    for parameter in prior.parameters():
        nn.init.normal_(parameter, std=0.2 if isinstance(prior, CouplingFlow) else 0.5)
    return prior


@pytest.fixture(params=PRIORS)
def make(request):
    """`make(dim)` is a prior over vectors of that dimension."""
    return PRIORS[request.param]


learned = pytest.mark.parametrize("make", ["mixture", "flow"], indirect=True)


def grid(half_width=12.0, num=401):
    axis = torch.linspace(-half_width, half_width, num)
    return torch.cartesian_prod(axis, axis), (axis[1] - axis[0]).item() ** 2


def test_shapes(make):
    prior = make(6)()
    assert (prior.batch_shape, prior.event_shape) == ((), (6,))
    assert prior.expand((4, 1)).sample().shape == (4, 1, 6)
    assert prior.log_prob(torch.zeros(5, 4, 1, 6)).shape == (5, 4, 1)


def test_it_starts_as_the_standard_normal_or_close_to_it(make):
    samples = StandardNormal(32)().sample((2000,))
    torch.testing.assert_close(make(32)().log_prob(samples), StandardNormal(32)().log_prob(samples), rtol=0, atol=2.0)


@pytest.mark.parametrize("trained", [False, True])
def test_its_density_integrates_to_one(make, trained):
    prior = stirred(make(2)) if trained else make(2)
    points, area = grid()
    with torch.no_grad():
        mass = prior().log_prob(points).double().exp().sum().item() * area
    assert mass == pytest.approx(1, abs=1e-3)


def test_its_samples_meet_its_density(make):
    prior = stirred(make(2))
    points, area = grid()
    with torch.no_grad():
        weights = prior().log_prob(points).double().exp() * area
        mean = weights @ points.double()
        covariance = (weights[:, None] * (points - mean)).T @ (points - mean)
        samples = prior().sample((50_000,)).double()
    deviation = covariance.diagonal().sqrt().max().item()
    torch.testing.assert_close(samples.mean(0), mean, rtol=0, atol=0.02 * deviation)
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0, atol=0.04 * deviation**2)


@learned
@pytest.mark.parametrize("trained", [False, True])
def test_gradients_reach_every_parameter(make, trained):
    prior = stirred(make(6)) if trained else make(6)
    (-prior().log_prob(torch.randn(50, 6)).mean()).backward()
    assert list(prior.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in prior.parameters())


@learned
def test_it_learns_what_another_of_its_kind_draws(make):
    prior, teacher = make(2), stirred(make(2))
    with torch.no_grad():
        data = teacher().sample((4000,))
        best, first = -teacher().log_prob(data).mean(), -prior().log_prob(data).mean()
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.02)
    for _ in range(200):
        loss = -prior().log_prob(data).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss - best < 0.05 < 0.1 < first - best


@pytest.mark.parametrize("prior", ["normal", "mixture"])
def test_temperature_narrows_the_normals_and_leaves_their_means_and_weights(prior):
    prior = stirred(PRIORS[prior](5))()
    narrow = temper(prior, 0.8)
    if hasattr(prior, "component_distribution"):
        assert torch.equal(narrow.mixture_distribution.probs, prior.mixture_distribution.probs)
        narrow, prior = narrow.component_distribution, prior.component_distribution
    torch.testing.assert_close(narrow.stddev, 0.8 * prior.stddev)
    assert torch.equal(narrow.mean, prior.mean)


def test_temperature_narrows_the_base_of_a_flow_and_leaves_its_transforms():
    flow = stirred(CouplingFlow(5, 3))()
    narrow = temper(flow, 0.8)
    torch.testing.assert_close(narrow.base_dist.stddev, 0.8 * flow.base_dist.stddev)
    assert not narrow.base_dist.mean.any()
    assert narrow.transforms == flow.transforms


def test_a_mixture_of_one_standard_normal_is_the_standard_normal():
    """With the same seed, the same scenes; and the same ELBO, as its KL is analytic too."""
    known, disguised = tiny_pair(), tiny_pair()
    disguised.model.scene_prior = NormalMixture(SCENE_DIM, num_components=1)
    nn.init.zeros_(disguised.model.scene_prior.loc)
    for tau in (1.0, 0.8):
        scenes = []
        for model in (known.model, disguised.model):
            torch.manual_seed(7)
            with temperature(tau):
                scenes.append(poutine.trace(model).get_trace(num_scenes=NUM_SCENES).nodes["s"]["value"])
        assert torch.equal(*scenes)
    losses = []
    for pair in (known, disguised):
        torch.manual_seed(7)
        losses.append(TraceScene_ELBO().loss(*pair, tiny_images()))
    assert losses[0] == losses[1]


@learned
def test_the_elbo_averages_its_kl_over_samples(make):
    pair = tiny_pair()
    pair.model.scene_prior = make(SCENE_DIM)

    def kl(num_kl_samples):
        torch.manual_seed(3)
        with torch.no_grad():
            return TraceScene_ELBO(num_kl_samples=num_kl_samples).terms(*pair, tiny_images()).kl["s"]

    torch.testing.assert_close(kl(4000), kl(20_000), rtol=0.02, atol=0.05)


@learned
@pytest.mark.parametrize("handler", [poutine.condition, poutine.do], ids=["condition", "do"])
def test_pyros_handlers_work_as_usual(make, handler):
    model = tiny_pair().model
    model.scene_prior = make(SCENE_DIM)
    scene = torch.randn(NUM_SCENES, 1, SCENE_DIM)
    trace = poutine.trace(handler(model, data={"s": scene})).get_trace(num_scenes=NUM_SCENES)
    torch.testing.assert_close(trace.nodes["h"]["value"], model.order_net(scene[:, 0]))
    drawn = poutine.trace(model).get_trace(num_scenes=NUM_SCENES)
    replayed = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(num_scenes=NUM_SCENES)
    assert torch.equal(replayed.nodes["s"]["value"], drawn.nodes["s"]["value"])
    samples = Predictive(model, num_samples=3, parallel=True)(num_scenes=NUM_SCENES)
    assert samples["s"].shape == (3, NUM_SCENES, 1, SCENE_DIM)


class VampPrior(nn.Module):
    """Someone's own prior: the average posterior of a few made-up sets of slots (Tomczak & Welling, 2018)."""

    def __init__(self, guide, num_components):
        super().__init__()
        self.slots = nn.Parameter(torch.randn(num_components, NUM_SLOTS, SLOT_DIM))
        self.infer_scene = guide.infer_scene  # a method: the guide stays its own owner

    def forward(self):
        weights = self.slots.new_ones(len(self.slots))
        return dist.MixtureSameFamily(dist.Categorical(weights), self.infer_scene(self.slots))


def test_a_prior_of_ones_own_needs_no_change_here():
    pair = tiny_pair()
    pair.model.scene_prior = prior = VampPrior(pair.guide, 4)
    assert dict(prior.named_parameters()).keys() == {"slots"}
    TraceScene_ELBO().loss_and_grads(*pair, tiny_images())
    assert prior.slots.grad.abs().sum() > 0
    with temperature(0.8):
        fn = poutine.trace(pair.model).get_trace(num_scenes=NUM_SCENES).nodes["s"]["fn"]
    torch.testing.assert_close(fn.component_distribution.stddev[0, 0], 0.8 * prior().component_distribution.stddev)


def test_a_vector_changed_in_place_has_a_density_of_its_own():
    prior, scene = stirred(CouplingFlow(4, 2)), torch.randn(4)
    prior().log_prob(scene)
    scene += 1
    torch.testing.assert_close(prior().log_prob(scene), prior().log_prob(scene.clone()))


def test_a_flow_of_one_dimension_is_refused():
    with pytest.raises(UserError, match="^a flow needs two dimensions or more, but scene_dim is 1"):
        CouplingFlow(1, 2)


def test_the_standard_normal_has_moments_but_no_parameters():
    prior = StandardNormal(6)
    assert not prior().mean.any() and (prior().stddev == 1).all()
    assert not list(prior.parameters())
    assert {name: buffer.shape for name, buffer in prior.named_buffers()} == {"loc": (6,), "scale": (6,)}
