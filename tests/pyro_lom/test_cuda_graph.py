"""A recorded step takes the steps of the plain one: tried on a CPU (`recorded.py`)."""

from functools import partial

import pyro
import pytest
import torch
from lightning_fabric import Fabric
from recorded import pretend
from tiny import SYSTEMS, tiny_images, tiny_objective

from pyro_lom.cuda_graph import CudaGraphStep
from pyro_lom.errors import UserError
from pyro_lom.objective import Evaluation
from pyro_lom.step import adam, set_learning_rate, set_up, take_step
from pyro_lom.types import OrderlessPosterior

STEPS = 7


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    pyro.enable_validation(False)
    pretend(monkeypatch)


def trained(system, *, graph, only=None, accumulate=1, tensor_rate=True):
    """Weights, multipliers, moments and what was reported, of steps in which all that may change does."""
    fabric, objective = Fabric(accelerator="cpu", devices=1), tiny_objective(system)
    for name, pair in objective.pairs.items():
        pair.requires_grad_(only is None or name in only)
    optimizer = adam((p for p in objective.parameters() if p.requires_grad), 1e-3, cuda_graph=tensor_rate)
    pairs, optimizer = set_up(fabric, objective, optimizer, only)
    step = partial(take_step, fabric, pairs, optimizer, clip_norm=10.0, accumulate=accumulate)
    if graph:
        step = CudaGraphStep(step, fabric.device)
    images, reported = tiny_images(4 * STEPS), []
    for number in range(STEPS):
        torch.manual_seed(number)
        set_learning_rate(optimizer, 1e-3 / (1 + number))
        batch, orderless = images[4 * number :][:4], None
        if only is not None and "orderless" not in only:
            loc = objective.pairs["ordered"].guide.orderless_guide.infer(batch).detach().loc
            orderless = OrderlessPosterior(loc, torch.rand_like(loc) + 0.1)
        evaluation = step(batch, orderless=orderless)
        reported.append({name: value.clone() for name, value in [("loss", evaluation.loss), *evaluation.terms.items()]})
    moments = {}
    for number, slots in optimizer.state_dict()["state"].items():
        moments |= {f"{number} {slot}": value for slot, value in slots.items()}
    return objective.state_dict() | moments, reported


def assert_same(found, expected):
    for here, there in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert here.keys() == there.keys()
        for name in there:
            torch.testing.assert_close(here[name], there[name], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_graph_takes_the_same_steps(system):
    assert_same(trained(system, graph=True), trained(system, graph=False))


@pytest.mark.parametrize("options", [dict(accumulate=2), dict(only=["ordered"])], ids=str)
def test_of_parts_of_a_batch_and_of_one_pair_too(options):
    found, expected = (trained("lom-genesis-v2", graph=graph, **options) for graph in (True, False))
    assert_same(found, expected)


def test_what_is_not_on_the_device_stays_as_it_was_recorded():
    with pytest.raises(AssertionError):
        assert_same(
            trained("lom-genesis-v2", graph=True, tensor_rate=False),
            trained("lom-genesis-v2", graph=False, tensor_rate=False),
        )


def test_the_step_runs_in_python_until_it_is_recorded():
    calls, images = [], torch.zeros(2, 3, 1, 1)

    def step(images, *, orderless):
        calls.append(1)
        return Evaluation(images.sum(), {}, {})

    captured = CudaGraphStep(step, torch.device("cpu"))
    found = [captured(images + number).loss.item() for number in range(6)]
    assert found == [6.0 * number for number in range(6)]
    assert len(calls) == 4


def test_a_step_that_cannot_be_recorded_says_so():
    captured = CudaGraphStep(lambda images, orderless: Evaluation(images.sum(), {}, {}), torch.device("cpu"))

    def refuse(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nlong story")

    for _ in range(3):
        captured(torch.zeros(2, 3, 1, 1))
    captured._step = refuse
    with pytest.raises(UserError, match=r"^--cuda-graph: .*\(operation not permitted .* capturing\); leave .* out$"):
        captured(torch.zeros(2, 3, 1, 1))
