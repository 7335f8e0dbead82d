"""The objective is the sum of two ELBOs that do not disturb each other (Eq. 9)."""

import pytest
import torch
from pyro import poutine
from tiny import ALONE, NETWORKS, SYSTEMS, tiny_images, tiny_objective, tiny_system

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.objective import Evaluation, Objective, pair_losses

IMAGES = tiny_images()


@pytest.fixture(params=NETWORKS)
def objective(request):
    """A LOM's, one training step after its start: what starts at zero on purpose has left it."""
    objective = tiny_objective(networks=request.param)
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    objective(IMAGES).loss.backward()
    optimizer.step()
    objective.zero_grad()
    return objective


def evaluate(objective, **options):
    torch.manual_seed(4)
    return objective(IMAGES, **options)


def gradients(objective, **options):
    objective.zero_grad()
    evaluate(objective, **options).loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in objective.named_parameters()}


def test_the_ordered_elbo_gives_the_orderless_parameters_no_gradient(objective):
    for name, gradient in gradients(objective, only=["ordered"]).items():
        if name.startswith("pairs.orderless."):
            assert gradient is None or not gradient.any()
        else:
            assert gradient.any(), name


def test_the_orderless_elbo_reaches_all_orderless_parameters_and_no_other(objective):
    for name, gradient in gradients(objective, only=["orderless"]).items():
        assert (gradient is not None and gradient.any()) == name.startswith("pairs.orderless."), name


def test_the_joint_gradient_is_that_of_each_elbo_alone(objective):
    joint = gradients(objective)
    alone = {name: gradients(objective, only=[name]) for name in ("orderless", "ordered")}
    for name, gradient in joint.items():
        expected = alone[name.split(".")[1]][name]
        if name.startswith("pairs.orderless."):
            torch.testing.assert_close(gradient, expected)
        else:
            assert gradient.shape == expected.shape  # its noise is drawn after the orderless pair's


def test_the_loss_is_the_sum_over_pairs(objective):
    both = evaluate(objective)
    orderless = evaluate(objective, only=["orderless"])
    torch.manual_seed(4)
    posterior = objective.pairs["orderless"].guide.infer(IMAGES)
    given = {"orderless": posterior}
    objective(IMAGES, inferred=given, only=["orderless"])  # draws what the pair draws before the ordered one's turn
    ordered = objective(IMAGES, inferred=given, only=["ordered"])
    torch.testing.assert_close(both.loss, orderless.loss + ordered.loss)
    assert both.errors == orderless.errors | ordered.errors
    assert set(both.terms) == {"orderless/x", "orderless/o", "ordered/x", "ordered/s", "ordered/z"}
    assert both.terms == orderless.terms | ordered.terms


class TestPairLosses:
    def test_the_summands_come_one_by_one_in_the_order_of_the_pairs(self, objective):
        began, names = [], ["orderless", "ordered"]
        for name, pair in objective.pairs.items():
            pair.register_forward_pre_hook(lambda *_, name=name: began.append(name))
        summands = pair_losses(dict(objective.pairs.items()), IMAGES)
        assert began == []
        for number, name in enumerate(names):
            evaluation = next(summands)
            assert began == names[: number + 1]  # the next pair begins when the caller returns
            assert isinstance(evaluation, Evaluation) and set(evaluation.errors) == {name}
            assert {term.split("/")[0] for term in evaluation.terms} == {name}
            evaluation.loss.backward()
        assert next(summands, None) is None

    def test_they_add_up_to_the_loss(self, objective):
        torch.manual_seed(4)
        total = sum(pair_losses(dict(objective.pairs.items()), IMAGES), start=Evaluation(0.0, {}, {}))
        assert torch.equal(total.loss, evaluate(objective).loss)

    @pytest.mark.parametrize("system", ["lom-genesis-v2", "lom-emorl", "autoregressive-emorl"])
    def test_a_pair_that_reads_another_receives_what_its_guide_passes_on_without_a_graph(self, system):
        objective, passed_on, received = tiny_objective(system), [], []
        reader, source = objective.pairs["ordered"], objective.pairs["orderless"].guide
        pass_on = source.pass_on
        source.pass_on = lambda inferred: passed_on.append(pass_on(inferred)) or passed_on[-1]
        reader.register_forward_pre_hook(lambda _, given: received.append(given[1]))
        list(pair_losses(dict(objective.pairs.items()), IMAGES))
        (posterior,), (found,) = passed_on, received
        assert posterior.loc.requires_grad and posterior.scale.requires_grad
        assert torch.equal(found.loc, posterior.loc) and torch.equal(found.scale, posterior.scale)
        assert (found.log_masks, found.earlier) == (None, ())  # a reader needs moments alone
        assert not found.loc.requires_grad and not found.scale.requires_grad

    def test_a_pair_that_is_given_a_posterior_does_not_infer(self, objective):
        posterior = objective.pairs["orderless"].guide.infer(IMAGES)
        objective.pairs["orderless"].guide.infer = None
        (evaluation,) = pair_losses({"ordered": objective.pairs["ordered"]}, IMAGES, {"orderless": posterior})
        assert set(evaluation.errors) == {"ordered"} and torch.isfinite(evaluation.loss)


def test_all_programs_have_the_step(objective):
    objective.at_step(7)
    programs = [program for pair in objective.pairs.values() for program in (pair.model, pair.guide)]
    assert [program.step.item() for program in programs] == [7] * 4
    assert not [name for name in objective.state_dict() if name.endswith("step")]


def multipliers_of(objective):
    return {name: pair.elbo.multiplier.clone() for name, pair in objective.pairs.items()}


def test_the_loss_is_made_of_the_terms_it_reports(objective):
    objective.pairs["ordered"].elbo.free_nats.clear()
    objective.update({"ordered": torch.tensor(1e6)})
    evaluation = evaluate(objective)
    terms, multipliers = evaluation.terms, multipliers_of(objective)
    assert {name: terms[f"{name}/x"] for name in ("orderless", "ordered")} == evaluation.errors
    expected = sum(evaluation.errors.values()) + multipliers["orderless"] * terms["orderless/o"]
    expected += multipliers["ordered"] * (terms["ordered/s"] + terms["ordered/z"])
    torch.testing.assert_close(evaluation.loss.detach(), expected)


def test_the_penalty_of_a_criterion_is_a_part_of_the_loss():
    class Decayed(TraceScene_ELBO):
        def penalty(self, model, guide):
            return norm(model) + norm(guide)

    def norm(program):
        return sum(parameter.square().sum() for parameter in program.parameters())

    pair = tiny_system("genesis-v2")["model"]
    plain, decayed = (Objective({"model": pair._replace(criterion=kind())}) for kind in (TraceScene_ELBO, Decayed))
    expected = evaluate(plain).loss + norm(pair.model) + norm(pair.guide)
    torch.testing.assert_close(evaluate(decayed).loss, expected)
    assert evaluate(decayed).errors == evaluate(plain).errors
    plain.update(evaluate(plain).errors)  # a plain ELBO has nothing to move


def test_only_the_loss_carries_a_graph(objective):
    evaluation = evaluate(objective)
    assert evaluation.loss.requires_grad
    assert not any(value.requires_grad for part in evaluation[1:] for value in part.values())


def test_the_orderless_posterior_is_inferred_once(objective):
    calls = []
    objective.pairs["orderless"].guide.encoder.register_forward_hook(lambda *_: calls.append(1))
    objective(IMAGES)
    assert len(calls) == 1


def test_an_orderless_posterior_inferred_before_is_used(objective):
    posterior = objective.pairs["orderless"].guide.infer(IMAGES)
    objective.pairs["orderless"].guide.encoder.register_forward_hook(lambda *_: pytest.fail("inferred again"))
    evaluate(objective, inferred={"orderless": posterior})


def test_an_evaluation_changes_no_state_and_update_moves_each_multiplier(objective):
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    evaluation = evaluate(objective)
    assert all(torch.equal(before[name], value) for name, value in objective.state_dict().items())
    objective.update({"ordered": evaluation.errors["ordered"]})
    moved = {name for name, value in objective.state_dict().items() if not torch.equal(before[name], value)}
    assert moved == {f"pairs.ordered.elbo.{name}" for name in ("parameter", "error_ema", "num_updates")}
    multipliers = multipliers_of(objective)
    assert set(multipliers) == {"orderless", "ordered"}
    assert multipliers["ordered"] < multipliers["orderless"] == before["pairs.orderless.elbo.parameter"]


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_state_dict_holds_each_tensor_once_under_its_pair(system, networks):
    state = tiny_objective(system, networks).state_dict()
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    pairs = {"model"} if system in ALONE else {"orderless", "ordered"}
    parts = {("pairs", pair, part) for pair in pairs for part in ("model", "guide", "elbo")}
    if system == "autoregressive-emorl":
        parts.remove(("pairs", "ordered", "guide"))  # it borrows all that it needs
    if system in ("vae", "gnm"):
        parts.remove(("pairs", "model", "elbo"))  # a plain ELBO has no state, and schedules read the model's step
    assert {tuple(name.split(".")[:3]) for name in state} == parts


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_state_dict_carries_everything(system):
    first, second = tiny_objective(system), tiny_objective(system)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    first.update(evaluate(first).errors)
    second.load_state_dict(first.state_dict())
    assert evaluate(first).loss == evaluate(second).loss
    with poutine.block():
        assert evaluate(first).errors == evaluate(second).errors
