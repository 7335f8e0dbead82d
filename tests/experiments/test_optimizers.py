"""The optimisers that a configuration can name: their steps, and their state in a run that is killed and resumed."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from tiny import tiny_config, tiny_images, tiny_objective

from experiments.config import Train
from experiments.training.optimizers import optimizer
from pyro_lom.errors import UserError
from pyro_lom.training.step import TrainingStep

KINDS = {"adam": "exp_avg_sq", "rmsprop": "square_avg", "adamax": "exp_inf"}


def step_of(train, gradients, start=1.0, rate=0.1):
    weight = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    made = optimizer(train)([weight])
    made.param_groups[0]["lr"] = rate
    for gradient in gradients:
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        made.step()
    return weight.item()


def test_rmsprop():
    square = 0.99 * (0.01 * 2.0**2) + 0.01 * 1.0**2
    expected = 1 - 0.1 * 2 / (0.2 + 1e-8) - 0.1 * 1 / (square**0.5 + 1e-8)
    assert step_of(Train(optimizer="rmsprop"), [2.0, 1.0]) == pytest.approx(expected, rel=1e-12)


def test_adamax_as_nvae_uses_it():
    first = 2.0 + 0.3 * 1.0  # weight decay
    after = 1 - 0.1 / (1 - 0.9) * 0.1 * first / (first + 1e-3)
    second = 0.5 + 0.3 * after
    moment = 0.9 * 0.1 * first + 0.1 * second
    expected = after - 0.1 / (1 - 0.9**2) * moment / max(0.999 * (first + 1e-3), second + 1e-3)
    found = step_of(Train(optimizer="adamax", eps=1e-3, weight_decay=0.3), [2.0, 0.5])
    assert found == pytest.approx(expected, rel=1e-12)


def test_adam_is_what_a_step_uses_otherwise():
    steps = [step_of(Train(), [2.0, 0.5]), step_of(Train(optimizer="adam"), [2.0, 0.5])]
    weight = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=0.1)
    for gradient in (2.0, 0.5):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        adam.step()
    assert steps == pytest.approx([weight.item()] * 2, rel=1e-12)


def training(kind):
    train = replace(tiny_config().train, optimizer=kind)
    return TrainingStep(Fabric(accelerator="cpu", devices=1), tiny_objective("vae"), make_optimizer=optimizer(train))


def steps(take_step, numbers):
    for number in numbers:
        torch.manual_seed(number)
        take_step(tiny_images(), 1e-3)
    return {name: tensor.clone() for name, tensor in take_step.objective.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_bit_for_bit(kind, tmp_path):
    whole = training(kind)
    expected = steps(whole, range(4))
    first, second = training(kind), training(kind)
    steps(first, range(2))
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    second.objective.load_state_dict(first.objective.state_dict())
    second.load_state(state, tmp_path, num_steps=2)
    found = steps(second, range(2, 4))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_states_of_another_optimiser_are_refused(kind, tmp_path):
    take_step = training(kind)
    steps(take_step, range(1))
    state = take_step.state()
    for other in set(KINDS) - {kind}:
        with pytest.raises(UserError, match="the optimiser in the checkpoint in .* is of another training"):
            training(other).load_state(state, tmp_path, num_steps=1)
    key = next(key for key in state if key.endswith(f"/{KINDS[kind]}"))
    with pytest.raises(UserError, match="average of squares or sizes, but negative"):
        training(kind).load_state(state | {key: -1 - state[key]}, tmp_path, num_steps=1)
