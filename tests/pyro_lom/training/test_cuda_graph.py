"""A recorded step takes the steps of the plain one: tried on a CPU (`recorded.py`)."""

from contextlib import nullcontext

import pyro
import pytest
import torch
from lightning_fabric import Fabric
from recorded import pretend
from tiny import NETWORKS, SYSTEMS, tiny_images, tiny_objective

from pyro_lom.errors import UserError
from pyro_lom.objective import Evaluation
from pyro_lom.training.cuda_graph import CudaGraphStep
from pyro_lom.training.step import TrainingStep
from pyro_lom.types import OrderlessPosterior

STEPS = 7


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    pyro.enable_validation(False)
    pretend(monkeypatch)


def trained(system, *, graph, only=None, networks="published", **options):
    """Weights, multipliers, moments and what was reported, of steps in which all that may change does."""
    objective = tiny_objective(system, networks)
    take_step = TrainingStep(
        Fabric(accelerator="cpu", devices=1), objective, only, clip_norm=10.0, cuda_graph=True, **options
    )
    if not graph:
        take_step._take = take_step._evaluate_and_move
    images, reported = tiny_images(4 * STEPS), []
    for number in range(STEPS):
        torch.manual_seed(number)
        batch, inferred = images[4 * number :][:4], None
        if only is not None and "orderless" not in only:
            loc = objective.pairs["ordered"].guide.orderless_guide.infer(batch).detach().loc
            inferred = {"orderless": OrderlessPosterior(loc, torch.rand_like(loc) + 0.1)}
        evaluation = take_step(batch, 1e-3 / (1 + number), inferred=inferred)
        reported.append({name: value.clone() for name, value in [("loss", evaluation.loss), *evaluation.terms.items()]})
    moments = {}
    for number, slots in take_step.optimizer.state_dict()["state"].items():
        moments |= {f"{number} {slot}": value for slot, value in slots.items()}
    return objective.state_dict() | moments, reported


def assert_same(found, expected):
    for here, there in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert here.keys() == there.keys()
        for name in there:
            torch.testing.assert_close(here[name], there[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_graph_takes_the_same_steps(system, networks):
    found, expected = (trained(system, graph=graph, networks=networks) for graph in (True, False))
    assert_same(found, expected)


@pytest.mark.parametrize("options", [dict(accumulate=2), dict(only=["ordered"])], ids=str)
def test_of_parts_of_a_batch_and_of_one_pair_too(options):
    found, expected = (trained("lom-genesis-v2", graph=graph, **options) for graph in (True, False))
    assert_same(found, expected)


def test_what_is_not_on_the_device_stays_as_it_was_recorded():
    """The learning rate, where an optimiser keeps it as a Python number."""
    options = dict(make_optimizer=lambda parameters, **_: torch.optim.Adam(parameters, fused=True))
    with pytest.raises(AssertionError):
        assert_same(trained("lom-genesis-v2", graph=True, **options), trained("lom-genesis-v2", graph=False, **options))


def test_the_step_runs_in_python_until_it_is_recorded():
    calls, images = [], torch.zeros(2, 3, 1, 1)

    def step(images, inferred):
        calls.append(1)
        return Evaluation(images.sum(), {}, {})

    captured = CudaGraphStep(step, torch.device("cpu"))
    found = [captured(images + number).loss.item() for number in range(6)]
    assert found == [6.0 * number for number in range(6)]
    assert len(calls) == 4


def test_a_step_that_cannot_be_recorded_says_why(monkeypatch):
    """The end of a recording that failed complains as well, but knows nothing."""

    class Recording(nullcontext):
        def __exit__(self, *_):
            raise RuntimeError("operation failed due to a previous error during capture")

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: Recording())
    captured = CudaGraphStep(lambda images, inferred: Evaluation(images.sum(), {}, {}), torch.device("cpu"))
    for _ in range(3):
        captured(torch.zeros(2, 3, 1, 1))
    captured._step = refuse
    with pytest.raises(UserError, match=r"record this step as a graph \(operation not permitted .* capturing\)"):
        captured(torch.zeros(2, 3, 1, 1))
