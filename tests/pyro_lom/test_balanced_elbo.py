"""The loss of NVAE: its schedule, its balance, and its penalty."""

import pytest
import torch
from tiny import tiny_objective
from torch import nn

from pyro_lom.balanced_elbo import BalancedELBO, group_weights
from pyro_lom.elbo import Terms
from pyro_lom.spectral_norms import SpectralNorms


@pytest.fixture
def elbo():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1))
    return BalancedELBO({"z_1": 1.0, "z_2": 2.0}, num_steps=10_000, penalty_weight=0.1, programs=[network])


def some_terms(first=6.0, second=2.0):
    return Terms({"x": torch.tensor([-3.0, -5.0])}, {"z_1": torch.full((2,), first), "z_2": torch.full((2,), second)})


def test_published_weights_of_groups():
    assert group_weights((5, 10, 20)) == 5 * [1] + 10 * [2] + 20 * [4]
    assert group_weights((1, 2, 4)) == [1] + 2 * [2] + 4 * [4]
    assert group_weights((8, 1)) == 8 * [1] + [32]


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 1e-4), (1, 1e-4), (901, 0.3), (3000, 2999 / 3000), (3001, 1), (9999, 1)]
)
def test_the_weight_of_the_kls_grows(elbo, step, weight):
    elbo.num_updates.fill_(step)
    assert elbo.kl_weight.item() == pytest.approx(weight, rel=1e-6)
    assert elbo.report(0.0) == {"kl_weight": elbo.kl_weight.item()}


def test_kls_are_balanced_during_the_warm_up_alone(elbo):
    sizes = torch.tensor([6.01, 2.01 / 2])
    elbo.num_updates.fill_(901)
    torch.testing.assert_close(elbo.balance(some_terms()), sizes / sizes.mean())
    expected = 4 + 0.3 * (sizes / sizes.mean()) @ torch.tensor([6.0, 2.0])
    torch.testing.assert_close(elbo.combine(some_terms()), expected)
    elbo.num_updates.fill_(3001)
    assert elbo.balance(some_terms()).tolist() == [1, 1] and elbo.combine(some_terms()) == 12


def test_balance_has_no_gradient(elbo):
    kl = torch.tensor([6.0, 6.0], requires_grad=True)
    elbo.num_updates.fill_(901)
    terms = Terms({"x": torch.zeros(2)}, {"z_1": kl, "z_2": torch.full((2,), 2.0)})
    elbo.combine(terms).backward()
    torch.testing.assert_close(kl.grad, (0.3 * elbo.balance(terms)[0] / 2).expand(2))


def test_spectral_norms_are_the_largest_singular_values():
    convolutions = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 5, groups=4)]
    norms = SpectralNorms(convolutions)
    shapes = {name: tuple(vectors.shape) for name, vectors in norms.named_buffers()}
    assert shapes == {"u_4x27": (2, 4), "v_4x27": (2, 27), "u_4x25": (1, 4), "v_4x25": (1, 25)}
    norms.iterate(500)
    total = norms()
    exact = sum(torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2) for layer in convolutions)
    torch.testing.assert_close(total, exact, rtol=1e-4, atol=0)
    found = torch.autograd.grad(total, [layer.weight for layer in convolutions])
    expected = torch.autograd.grad(exact, [layer.weight for layer in convolutions])
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)


def test_vectors_move_in_training_mode_alone_and_are_saved():
    norms = SpectralNorms([nn.Conv2d(3, 4, 3)])
    before = {name: vectors.clone() for name, vectors in norms.state_dict().items()}
    norms.eval()()
    assert all(torch.equal(before[name], vectors) for name, vectors in norms.state_dict().items())
    torch.testing.assert_close(norms.train()(), norms())
    assert any(not torch.equal(before[name], vectors) for name, vectors in norms.state_dict().items())


def test_the_penalty_is_about_all_convolutions_and_norms():
    objective = tiny_objective("nvae")
    model, guide, elbo = (getattr(objective.pairs["model"], name) for name in ("model", "guide", "elbo"))
    objective.eval()
    norms = [module for module in objective.modules() if isinstance(module, nn.BatchNorm2d)]
    convolutions = [module for module in objective.modules() if isinstance(module, nn.Conv2d)]
    assert sum(map(len, elbo.spectral_norms.batches.values())) == len(convolutions)
    torch.testing.assert_close(elbo.penalty(model, guide), 0.1 * (elbo.spectral_norms() + len(norms)))
