"""GECO steers a multiplier by the error; targets and errors are nats per scene throughout."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.elbo import ELBOModule
from tiny import IMAGE_SHAPE, tiny_images, tiny_pair

from pyro_lom.elbo import Terms, TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.geco import AdditiveGeco, FreeNats, MultiplicativeGeco, Target

TARGET = Target(nats=100.0, floor=60.0, image_scale=0.7, num_values=48)
SIGMAS = [0.1, 0.7, 1.0]
RULES = [MultiplicativeGeco, AdditiveGeco]


def rule(kind=MultiplicativeGeco, **options):
    return kind(TARGET, **(dict(step_size=0.01, speedup=10.0) | options))


def terms(error, **kl):
    likelihood = {"x": -torch.as_tensor(error, dtype=torch.float32).reshape(-1)}
    return Terms(likelihood, {name: torch.as_tensor(values) for name, values in kl.items()})


class TestTarget:
    @pytest.mark.parametrize("image_scale", SIGMAS)
    @pytest.mark.parametrize("rmse", [0.01, 0.06, 0.3])
    def test_rmse_there_and_back(self, rmse, image_scale):
        target = Target.from_rmse(rmse, image_scale=image_scale, image_shape=IMAGE_SHAPE)
        assert target.rmse(target.nats) == pytest.approx(rmse)
        assert target.rmse(target.floor) == target.rmse(target.floor - 1) == 0

    @pytest.mark.parametrize("image_scale", SIGMAS)
    @pytest.mark.parametrize("rmse", [0.01, 0.06, 0.3])
    def test_an_image_wrong_by_the_rmse_everywhere_has_exactly_this_error(self, rmse, image_scale):
        target = Target.from_rmse(rmse, image_scale=image_scale, image_shape=IMAGE_SHAPE)
        image = torch.rand(IMAGE_SHAPE, dtype=torch.float64)
        likelihood = torch.distributions.Normal(image, torch.tensor(image_scale, dtype=torch.float64))
        assert -likelihood.log_prob(image + rmse).sum().item() == pytest.approx(target.nats)
        assert -likelihood.log_prob(image).sum().item() == pytest.approx(target.floor)

    @pytest.mark.parametrize(
        ("value", "image_scale", "rmse"),
        [
            (-0.353, 0.7, 0.0600),
            (-0.356, 0.7, 0.0257),
            (-0.352, 0.7, 0.0677),
            (-0.351, 0.7, 0.0746),
            (-2.265, 0.1, 0.0274),
        ],
    )
    def test_the_papers_targets_in_rmse(self, value, image_scale, rmse):
        target = Target.from_paper(value, image_scale=image_scale, image_shape=(3, 64, 64))
        assert target.rmse(target.nats) == pytest.approx(rmse, abs=1e-4)

    def test_the_papers_unit_leaves_out_a_constant_per_pixel_and_channel(self):
        target = Target.from_paper(-0.353, image_scale=0.7, image_shape=(3, 64, 64))
        assert target.nats == pytest.approx((-0.353 + 0.5 * math.log(2 * math.pi)) * 3 * 64 * 64)

    @pytest.mark.parametrize("value", [-0.36, math.log(0.7), -1.0])
    def test_what_no_reconstruction_reaches_is_refused(self, value):
        with pytest.raises(UserError, match=f"the GECO target {value} cannot be reached: with image_scale 0.7"):
            Target.from_paper(value, image_scale=0.7, image_shape=IMAGE_SHAPE)

    @pytest.mark.parametrize("rmse", [0.0, -0.1, math.nan])
    def test_an_rmse_must_be_above_zero(self, rmse):
        with pytest.raises(UserError, match=f"RMSE above 0, not {rmse}"):
            Target.from_rmse(rmse, image_scale=0.7, image_shape=IMAGE_SHAPE)


class TestLoss:
    def test_multiplicative_weighs_the_kl(self):
        geco = rule(initial=0.3)
        loss = geco.combine(terms([90.0, 130.0], s=[1.0, 3.0], z=[10.0, 20.0]))
        assert loss.item() == pytest.approx(110 + 0.3 * (2 + 15))

    def test_additive_weighs_the_violation(self):
        geco = rule(AdditiveGeco, initial=2.0)
        loss = geco.combine(terms([90.0, 130.0], s=[1.0, 3.0], z=[10.0, 20.0]))
        assert loss.item() == pytest.approx((2 + 15) + math.log1p(math.exp(2.0)) * (110 - 100))

    def test_multiplier_one_gives_the_negative_elbo(self):
        pair, images = tiny_pair(), tiny_images()
        torch.manual_seed(1)
        loss = rule(initial=1.0)(*pair)(images)
        torch.manual_seed(1)
        torch.testing.assert_close(loss, TraceScene_ELBO()(*pair)(images))

    @pytest.mark.parametrize("kind", RULES)
    def test_it_is_the_loss_of_an_elbo_module_and_changes_no_state(self, kind):
        geco, pair = rule(kind), tiny_pair()
        module, images = geco(*pair), tiny_images()
        assert isinstance(module, ELBOModule)
        before = {name: value.clone() for name, value in geco.state_dict().items()}
        torch.manual_seed(1)
        loss = module(images)
        loss.backward()
        torch.manual_seed(1)
        torch.testing.assert_close(loss, geco.combine(TraceScene_ELBO().terms(*pair, images)))
        assert all(torch.equal(before[name], value) for name, value in geco.state_dict().items())
        assert set(geco.state_dict()) == {"parameter", "error_ema", "num_updates"}
        assert not list(geco.parameters())


class TestReport:
    @pytest.mark.parametrize("kind", RULES)
    def test_errors_are_reported_as_rmse_beside_their_target(self, kind):
        geco = rule(kind, initial=2.0)
        expected = {"rmse": TARGET.rmse(130.0), "rmse_target": TARGET.rmse(100.0), "multiplier": geco.multiplier.item()}
        assert geco.report(130.0) == expected
        assert 0 < expected["rmse_target"] < expected["rmse"]

    def test_no_weight_is_penalised(self):
        assert rule().penalty(*tiny_pair()) == 0


def target_rmse(geco):
    return geco.report(0.0)["rmse_target"]


class TestRelaxation:
    """A target that is not reached is replaced."""

    @pytest.mark.parametrize("kind", RULES)
    def test_the_error_of_the_moment_becomes_the_target(self, kind):
        geco = rule(kind, relax_at=2)
        found = []
        for error in (130.0, 130.0, 130.0, 200.0):
            found.append(target_rmse(geco))
            geco.update(torch.tensor(error))
        assert found == [pytest.approx(TARGET.rmse(100.0))] * 3 + [pytest.approx(1.05 * TARGET.rmse(130.0))]
        assert target_rmse(geco) == pytest.approx(1.05 * TARGET.rmse(130.0))  # it does not move again
        assert set(geco.state_dict()) == {"parameter", "error_ema", "num_updates", "goal"}

    def test_a_target_that_is_reached_stays(self):
        geco = rule(relax_at=2)
        for _ in range(5):
            geco.update(torch.tensor(90.0))
        assert target_rmse(geco) == pytest.approx(TARGET.rmse(100.0))

    def test_the_new_target_steers(self):
        geco = rule(relax_at=0, goal_relative=True, speedup=1.0)
        geco.update(torch.tensor(140.0))
        goal = 60 + 1.05**2 * (140 - 60)
        assert geco.multiplier.item() == pytest.approx(math.exp(0.01 * (goal - 140) / (goal - 60)))

    def test_the_loss_of_emorls_rule_has_the_new_target(self):
        geco = rule(AdditiveGeco, initial=2.0, relax_at=0)
        geco.update(torch.tensor(140.0))
        goal = 60 + 1.05**2 * (140 - 60)
        loss = geco.combine(terms([150.0], z=[7.0]))
        assert loss.item() == pytest.approx(7 + geco.multiplier.item() * (150 - goal), rel=1e-5)


class TestFreeNats:
    def test_each_scene_is_held_at_the_floor_before_the_mean(self):
        geco = rule(free_nats={"s": FreeNats.constant(5.0)})
        assert geco.kl(terms(0.0, s=[1.0, 4.0, 15.0], z=[1.0, 1.0, 1.0])).item() == pytest.approx((5 + 5 + 15) / 3 + 1)

    def test_scenes_below_the_floor_have_no_gradient(self):
        kl = torch.tensor([1.0, 15.0], requires_grad=True)
        rule(free_nats={"s": FreeNats.constant(5.0)}).kl(terms(0.0, s=kl)).backward()
        torch.testing.assert_close(kl.grad, torch.tensor([0.0, 0.5]))

    def test_the_final_floor_holds_from_its_update_on(self):
        geco = rule(free_nats={"s": FreeNats(5.0, 2.0, final_from=3)})
        floors = []
        for _ in range(5):
            floors.append(geco.kl(terms(0.0, s=[0.0, 0.0])).item())
            geco.update(torch.tensor(100.0))
        assert floors == [5.0, 5.0, 5.0, 2.0, 2.0]

    def test_a_site_that_is_not_there_is_ignored(self):
        assert rule(free_nats={"s": FreeNats.constant(5.0)}).kl(terms(0.0, z=[1.0])).item() == 1.0


class TestRollouts:
    """KL(q(z) || r) of a site z, for the auxiliary site r of the guide."""

    def model(self):
        with pyro.plate("scenes", 3, dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(3, 1, 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.ones(3, 1))

    def guide(self):
        with pyro.plate("scenes", 3, dim=-2):
            with poutine.mask(mask=False):
                pyro.sample("r", dist.Normal(torch.ones(3, 1, 2), 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(torch.full((3, 1, 2), 3.0), 1.0).to_event(1))

    def test_they_add_a_term(self):
        plain = rule().terms(self.model, self.guide)
        added = rule(rollouts={"z": "r"}).terms(self.model, self.guide)
        torch.testing.assert_close(plain.kl, {"z": torch.full((3,), 2 * 3.0**2 / 2), "r": torch.zeros(3)})
        torch.testing.assert_close(added.kl, {"z": plain.kl["z"], "r": torch.full((3,), 2 * 2.0**2 / 2)})

    def test_pyros_interface_has_the_added_term(self):
        losses = [rule(initial=1.0, rollouts=rollouts).loss(self.model, self.guide) for rollouts in (None, {"z": "r"})]
        error = 0.5 + 0.5 * math.log(2 * math.pi)
        assert losses == [pytest.approx(error + 9), pytest.approx(error + 13)]

    def test_the_scale_of_a_site_multiplies_both(self):
        guide = poutine.scale(self.guide, scale=2.0)
        assert (
            rule(rollouts={"z": "r"}).terms(poutine.scale(self.model, scale=2.0), guide).kl["r"].tolist() == [8.0] * 3
        )


def test_a_kl_from_one_sample():
    """log q - log p at the guide's sample, instead of the formula."""
    geco, pair = rule(analytic_kl=False, num_kl_samples=1), tiny_pair("genesis-v2")
    guide = poutine.trace(pair.guide).get_trace(tiny_images())
    sampled = geco.terms(pair.model, poutine.replay(pair.guide, trace=guide), tiny_images()).kl["o"]
    site = guide.nodes["o"]
    prior = torch.distributions.Normal(0.0, 1.0)
    expected = site["fn"].log_prob(site["value"]).sum(-1) - prior.log_prob(site["value"]).sum((-1, -2))
    torch.testing.assert_close(sampled, expected)
    assert not torch.allclose(sampled, rule().terms(pair.model, pair.guide, tiny_images()).kl["o"])


class TestUpdate:
    @pytest.mark.parametrize("kind", RULES)
    def test_the_average_starts_at_the_first_error_and_then_forgets_slowly(self, kind):
        geco, errors = rule(kind, ema_decay=0.9), [130.0, 90.0, 110.0]
        expected = errors[0]
        for step, error in enumerate(errors):
            expected = expected if step == 0 else 0.9 * expected + 0.1 * error
            geco.update(torch.tensor(error))
            assert geco.error_ema.item() == pytest.approx(expected)
            assert geco.num_updates == step + 1

    @pytest.mark.parametrize(("error", "factor"), [(130.0, math.exp(-0.01 * 30)), (97.0, math.exp(0.1 * 3))])
    def test_multiplicative_rule(self, error, factor):
        geco = rule(initial=2.0)
        geco.update(torch.tensor(error))
        assert geco.multiplier.item() == pytest.approx(2.0 * factor)

    @pytest.mark.parametrize(("error", "difference"), [(130.0, 0.01 * 30), (97.0, -0.1 * 3)])
    def test_additive_rule(self, error, difference):
        geco = rule(AdditiveGeco, initial=2.0)
        geco.update(torch.tensor(error))
        assert geco.parameter.item() == pytest.approx(2.0 + difference)
        assert geco.multiplier.item() == pytest.approx(math.log1p(math.exp(2.0 + difference)))

    @pytest.mark.parametrize(
        ("error", "slack"), [(1e6, -1.0), (120.0, -20 / 40), (96.0, 3.0 * 4 / 40), (-1e6, 3.0)], ids=str
    )
    def test_goal_relative_steps_are_shares_of_the_way_to_a_perfect_reconstruction(self, error, slack):
        geco = rule(speedup=3.0, goal_relative=True)
        geco.update(torch.tensor(error))
        assert geco.multiplier.item() == pytest.approx(math.exp(0.01 * slack))

    @pytest.mark.parametrize(("kind", "bounds"), [(MultiplicativeGeco, (0.5, 2.0)), (AdditiveGeco, (0.55, 3.0))])
    @pytest.mark.parametrize("error", [-1e9, 1e9])
    def test_it_stays_within_its_bounds(self, kind, bounds, error):
        geco = rule(kind, initial=1.0, bounds=bounds, step_size=1.0)
        geco.update(torch.tensor(error))
        grows = (error < 100) == (kind is MultiplicativeGeco)
        assert geco.parameter.item() == pytest.approx(bounds[1] if grows else bounds[0])

    @pytest.mark.parametrize(
        ("kind", "start", "lowest"),
        [(MultiplicativeGeco, 1.0, 1e-10), (AdditiveGeco, math.log1p(math.exp(0.55)), math.log1p(math.exp(0.55)))],
    )
    def test_published_start_and_lower_bound(self, kind, start, lowest):
        geco = rule(kind, step_size=1e3)
        assert geco.multiplier.item() == pytest.approx(start)
        geco.update(torch.tensor(1e6 if kind is MultiplicativeGeco else -1e6))
        assert geco.multiplier.item() == pytest.approx(lowest)

    @pytest.mark.parametrize("kind", RULES)
    def test_until_the_warm_start_is_over_the_multiplier_stands_still_and_errors_are_forgotten(self, kind):
        geco, plain = rule(kind, warm_start=3), rule(kind)
        start = geco.parameter.clone()
        for error in (500.0, 400.0, 300.0):
            geco.update(torch.tensor(error))
            assert geco.parameter == start
        for error in (130.0, 90.0):
            for each in (geco, plain):
                each.update(torch.tensor(error))
            assert geco.error_ema == plain.error_ema
            assert kind is AdditiveGeco or geco.parameter == plain.parameter
        assert geco.parameter != start

    def test_the_additive_rule_first_moves_one_step_after_its_warm_start(self):
        """As published. The first update after the warm start only starts the average of the error."""
        geco, parameters = rule(AdditiveGeco, initial=2.0, warm_start=2), []
        for error in (130.0, 150.0, 170.0, 190.0):
            geco.update(torch.tensor(error))
            parameters.append(geco.parameter.item())
        assert parameters[:3] == [2.0] * 3
        constraint = geco.target.nats - (0.99 * 170.0 + 0.01 * 190.0)
        assert parameters[3] == pytest.approx(2.0 - geco.step_size * constraint)

    def test_the_additive_rule_warms_up_with_the_plain_elbo(self):
        geco, some = rule(AdditiveGeco, initial=2.0, warm_start=1), terms([90.0, 130.0], s=[1.0, 3.0])
        assert geco.combine(some).item() == pytest.approx(2 + 110 - 100)
        geco.update(torch.tensor(100.0))
        assert geco.combine(some).item() == pytest.approx(2 + math.log1p(math.exp(2.0)) * (110 - 100))

    @pytest.mark.parametrize("kind", RULES)
    def test_a_state_dict_takes_up_where_another_stopped(self, kind):
        first, second = rule(kind), rule(kind)
        for error in (130.0, 80.0):
            first.update(torch.tensor(error))
        second.load_state_dict(first.state_dict())
        for geco in (first, second):
            geco.update(torch.tensor(90.0))
        assert {k: v.item() for k, v in first.state_dict().items()} == {
            k: v.item() for k, v in second.state_dict().items()
        }

    @pytest.mark.parametrize("kind", RULES)
    def test_it_keeps_no_graph(self, kind):
        geco = rule(kind)
        geco.update(torch.tensor(130.0, requires_grad=True))
        assert not any(buffer.requires_grad for buffer in geco.buffers())
