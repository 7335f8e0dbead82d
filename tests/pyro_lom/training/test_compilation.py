"""Compilation is an option: it leaves names and numbers as they are, and where it does not work one line says so."""

import jaxtyping
import pytest
import torch
from tiny import tiny_images, tiny_objective

from pyro_lom.training.compilation import compile_networks


def evaluate(objective):
    torch.manual_seed(3)
    evaluation = objective(tiny_images())
    evaluation.loss.backward()
    return evaluation.loss, [parameter.grad for parameter in objective.parameters()]


def test_where_it_does_not_work_one_line_says_so(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", fails)
    told, objective = [], tiny_objective()
    assert compile_networks(objective, told.append) is False
    assert told == ["warning: networks are not compiled: torch.compile does not work here (no C++ compiler)"]
    assert torch.isfinite(evaluate(objective)[0])


def test_validation_of_distributions_stays_as_it_was(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda *_: torch.distributions.Distribution.set_default_validate_args(False)
    )
    assert compile_networks(tiny_objective())
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
def test_compiled_networks_give_the_same_numbers(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the compiler cannot see through its checks
    plain, compiled = tiny_objective(), tiny_objective()
    if not compile_networks(compiled):
        pytest.skip("torch.compile does not work here")
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    (expected, gradients), (found, compiled_gradients) = evaluate(plain), evaluate(compiled)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    rounding = 1e-6 * max(gradient.abs().max().item() for gradient in gradients)  # some are zero but for it
    for here, there in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-3, atol=max(rounding, 1e-3 * there.abs().max().item()))
