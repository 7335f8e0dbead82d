"""SRI's guide: samples of the orderless posterior, a rollout of the prior, matching, order-aware scales."""

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from tiny import NETWORKS, NUM_SLOTS, SCENE_DIM, SLOT_DIM, tiny_images, tiny_system
from torch.distributions import kl_divergence

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.matching import greedy_matching, permute
from pyro_lom.types import OrderlessPosterior

B = 4
IMAGES = tiny_images(B)
SLOTS = [f"z_{k}" for k in range(1, NUM_SLOTS + 1)]
ROLLOUT = [f"rollout_{k}" for k in range(1, NUM_SLOTS + 1)]


@pytest.fixture(params=NETWORKS)
def pair(request):
    """Away from its start, at which the priors of all slots are nearly equal."""
    pair = tiny_system("sri-genesis-v2", request.param)["ordered"]
    with torch.no_grad():
        for program in pair[:2]:
            for parameter in program.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return pair


@pytest.fixture
def posterior():
    return OrderlessPosterior(torch.randn(B, NUM_SLOTS, SLOT_DIM), 0.1 + torch.rand(B, NUM_SLOTS, SLOT_DIM))


def run(program, *args, **kwargs):
    torch.manual_seed(2)
    return poutine.trace(program).get_trace(*args, **kwargs)


def of(trace, sites, what):
    return torch.cat([getattr(trace.nodes[site]["fn"], what).expand(B, 1, -1) for site in sites], dim=1)


def values(trace, sites):
    return torch.cat([trace.nodes[site]["value"] for site in sites], dim=1)


def test_sites_and_shapes(pair, posterior):
    trace = run(pair.guide, IMAGES, inferred=posterior)
    assert trace.stochastic_nodes == ["scenes", "o", "s", *ROLLOUT, *SLOTS]
    shapes = {"o": (NUM_SLOTS, SLOT_DIM), "s": (SCENE_DIM,)} | dict.fromkeys([*ROLLOUT, *SLOTS], (SLOT_DIM,))
    for name, event_shape in shapes.items():
        assert (trace.nodes[name]["fn"].batch_shape, trace.nodes[name]["fn"].event_shape) == ((B, 1), event_shape)
    auxiliary = {name for name in shapes if trace.nodes[name]["infer"].get("is_auxiliary")}
    assert auxiliary == {"o", *ROLLOUT}


def test_it_infers_what_the_objective_could_have_handed_over(pair):
    torch.manual_seed(2)
    handed = pair.guide(IMAGES, inferred=pair.guide.orderless_guide.infer(IMAGES))
    torch.testing.assert_close(handed.slots, run(pair.guide, IMAGES).nodes["_RETURN"]["value"].slots)


def test_the_scene_is_inferred_from_a_sample_and_not_from_means(pair, posterior):
    trace = run(pair.guide, IMAGES, inferred=posterior)
    sample = trace.nodes["o"]["value"]
    assert torch.equal(trace.nodes["o"]["fn"].mean.squeeze(1), posterior.loc)
    assert torch.equal(trace.nodes["o"]["fn"].stddev.squeeze(1), posterior.scale)
    expected = pair.guide.scene_posterior(pair.guide.scene_encoder(sample))
    torch.testing.assert_close(trace.nodes["s"]["fn"].mean, expected.mean)
    torch.testing.assert_close(trace.nodes["s"]["fn"].stddev, expected.stddev)


def test_the_order_of_slots_does_not_matter_to_the_scene(pair, posterior):
    shuffle, sample = torch.rand(B, NUM_SLOTS).argsort(-1), torch.randn(B, NUM_SLOTS, SLOT_DIM)
    scenes = []
    for slots in (sample, permute(sample, shuffle)):
        guide = poutine.condition(pair.guide, {"o": slots.unsqueeze(1)})
        scenes.append(run(guide, IMAGES, inferred=posterior).nodes["s"]["fn"])
    torch.testing.assert_close(scenes[0].mean, scenes[1].mean)
    torch.testing.assert_close(scenes[0].stddev, scenes[1].stddev)


def test_the_rollout_is_a_sample_of_the_models_prior(pair, posterior):
    """The model, given the scene and the rollout as its slots, has the rollout's distributions."""
    guide = run(pair.guide, IMAGES, inferred=posterior)
    given = {"s": guide.nodes["s"]["value"]} | {
        slot: guide.nodes[rollout]["value"] for slot, rollout in zip(SLOTS, ROLLOUT, strict=True)
    }
    model = run(poutine.condition(pair.model, given), num_scenes=B)
    for what in ("mean", "stddev"):
        torch.testing.assert_close(of(guide, ROLLOUT, what), of(model, SLOTS, what))


def test_slots_are_the_orderless_means_matched_to_the_rollout(pair, posterior):
    guide = run(pair.guide, IMAGES, inferred=posterior)
    inference = guide.nodes["_RETURN"]["value"]
    assert torch.equal(inference.permutation, greedy_matching(of(guide, ROLLOUT, "mean"), posterior.loc))
    assert torch.equal(of(guide, SLOTS, "mean"), permute(posterior.loc, inference.permutation))
    assert torch.equal(inference.slots, values(guide, SLOTS))
    assert len({tuple(row) for row in inference.permutation.tolist()}) > 1


@pytest.mark.parametrize("moved", range(NUM_SLOTS))
def test_the_scale_of_a_slot_depends_on_the_slots_at_earlier_places_alone(pair, posterior, moved):
    pair.guide.match = lambda ordered, orderless: torch.arange(NUM_SLOTS).expand(B, -1)
    given = {"s": torch.randn(B, 1, SCENE_DIM)}
    loc = posterior.loc.clone()
    loc[:, moved] += 1
    guide = poutine.condition(pair.guide, given)
    first, second = (run(guide, IMAGES, inferred=one) for one in (posterior, posterior._replace(loc=loc)))
    changed = (of(first, SLOTS, "stddev") != of(second, SLOTS, "stddev")).any(-1).all(0).tolist()
    assert changed == [k > moved for k in range(NUM_SLOTS)]


def test_no_gradient_reaches_the_orderless_posterior(pair, posterior):
    loc, scale = (part.clone().requires_grad_() for part in posterior[:2])
    pair.criterion.differentiable_loss(
        pair.model, lambda images: pair.guide(images, inferred=OrderlessPosterior(loc, scale)), IMAGES
    ).backward()
    assert loc.grad is None and scale.grad is None
    own = [parameter for program in pair[:2] for parameter in program.parameters()]
    assert all(parameter.grad is not None for parameter in own)


class TestLoss:
    """The ELBO of the pair has the teacher-forced KL alone; its criterion adds the KL to the rollout."""

    @pytest.fixture
    def guide(self, pair, posterior):
        return lambda images: pair.guide(images, inferred=posterior)

    def test_terms(self, pair, guide):
        traced = run(guide, IMAGES)
        model = poutine.trace(poutine.replay(pair.model, trace=traced)).get_trace(IMAGES)
        torch.manual_seed(2)
        elbo = TraceScene_ELBO().terms(pair.model, guide, IMAGES)
        torch.manual_seed(2)
        terms = pair.criterion.terms(pair.model, guide, IMAGES)
        assert elbo.kl.keys() == terms.kl.keys() == {"s", "o", *SLOTS, *ROLLOUT}
        for slot, rollout in zip(SLOTS, ROLLOUT, strict=True):
            q = traced.nodes[slot]["fn"]
            forced, rolled = (
                kl_divergence(q, trace.nodes[site]["fn"]).squeeze(-1)
                for trace, site in ((model, slot), (traced, rollout))
            )
            for found in (elbo, terms):
                torch.testing.assert_close(found.kl[slot], forced)
            assert not elbo.kl[rollout].any() and (rolled > 0).all()
            torch.testing.assert_close(terms.kl[rollout], rolled)
        assert not terms.kl["o"].any()

    def test_the_loss_is_above_the_negative_elbo(self, pair, guide):
        losses = []
        for criterion in (TraceScene_ELBO(), pair.criterion):
            torch.manual_seed(2)
            losses.append(criterion.terms(pair.model, guide, IMAGES))
        plain, ours = losses
        rollout = sum(ours.kl[site].mean() for site in ROLLOUT)
        expected = plain.mean_error() + pair.criterion.multiplier * (plain.mean_kl() + rollout)
        torch.testing.assert_close(pair.criterion.combine(ours), expected)

    def test_pyros_elbos_are_the_plain_elbo(self, pair, guide):
        torch.manual_seed(2)
        plain = TraceScene_ELBO().loss(pair.model, guide, IMAGES)
        torch.manual_seed(2)
        assert TraceMeanField_ELBO().loss(pair.model, guide, IMAGES) == pytest.approx(B * plain, rel=1e-5)
        torch.manual_seed(2)
        sampled = TraceScene_ELBO(analytic_kl=False, num_kl_samples=1).loss(pair.model, guide, IMAGES)
        torch.manual_seed(2)
        assert Trace_ELBO().loss(pair.model, guide, IMAGES) == pytest.approx(B * sampled, rel=1e-5)

    def test_the_first_slot_has_the_same_kl_twice(self, pair, guide):
        """No slot is before it, so teacher forcing and rollout do not differ."""
        terms = pair.criterion.terms(pair.model, guide, IMAGES)
        torch.testing.assert_close(terms.kl[ROLLOUT[0]], terms.kl[SLOTS[0]])
        assert (terms.kl[ROLLOUT[1]] != terms.kl[SLOTS[1]]).all()
