"""GNM's criterion: the plain ELBO, with weights that depend on the step, and KLs to fixed priors."""

import copy

import pytest
import torch
from pyro import poutine
from pyro.distributions import Bernoulli, Normal
from tiny import tiny_images, tiny_system
from torch.distributions import kl_divergence

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.gnm_elbo import PUBLISHED

B = 3
IMAGES = tiny_images(B)
SCENE = ("z_g_1", "z_g_2")
LATENTS = {*SCENE, "z_bg", "z_pres", "z_where", "z_depth", "z_what"}
AUXILIARY = {"aux_pres", "aux_where", "aux_depth", "aux_what", "aux_bg"}


@pytest.fixture
def pair():
    return tiny_system("gnm")["model"]


def terms_of(pair, criterion=None, guide=None):
    torch.manual_seed(4)
    return (criterion or pair.criterion).terms(pair.model, guide or pair.guide, IMAGES)


def test_its_terms_are_the_plain_elbos_and_auxiliary_kls(pair):
    found, plain = terms_of(pair), terms_of(pair, TraceScene_ELBO())
    assert set(plain.kl) == LATENTS and set(found.kl) == LATENTS | AUXILIARY
    assert all(torch.equal(found.kl[name], plain.kl[name]) for name in LATENTS)
    assert torch.equal(found.log_likelihood["x"], plain.log_likelihood["x"])


def test_in_the_end_the_loss_is_the_negative_elbo_and_the_auxiliary_kls(pair):
    pair.model.step.fill_(100_000)
    terms = terms_of(pair)
    torch.testing.assert_close(pair.criterion.combine(terms), terms.mean_error() + terms.mean_kl())


@pytest.mark.parametrize("step", [0, 250, 20_000])
def test_weights_depend_on_the_step(pair, step):
    pair.model.step.fill_(step)
    terms = terms_of(pair)
    weights = dict.fromkeys(LATENTS | AUXILIARY, 1.0) | dict.fromkeys(SCENE, step / 100_000)
    weights |= {"aux_where": max(10 - 9 * step / 500, 1), "aux_bg": 50 - 49 * step / 50_000}
    expected = terms.mean_error() + sum(weights[name] * kl.mean() for name, kl in terms.kl.items())
    torch.testing.assert_close(pair.criterion.combine(terms), expected)


def test_auxiliary_kls_are_those_to_fixed_priors_weighted_by_presence(pair):
    pair.model.step.fill_(1999)  # the published step 2000
    trace = poutine.trace(pair.guide).get_trace(IMAGES)
    found = terms_of(pair, guide=poutine.replay(pair.guide, trace=trace)).kl
    fns = {name: trace.nodes[name]["fn"].base_dist for name in LATENTS}
    present = trace.nodes["z_pres"]["value"].clamp_min(1e-5)

    def standard(site):
        return kl_divergence(fns[site], Normal(torch.zeros(()), torch.ones(())))

    fixed = Normal(torch.tensor([-1.5, 0, 0, 0]), torch.tensor([0.1, 0.3, 1, 1]))
    presence = Bernoulli(torch.tensor((0.1 + 0.001) / 2))
    expected = {
        "aux_pres": kl_divergence(Bernoulli(logits=fns["z_pres"].logits), presence),
        "aux_where": present * kl_divergence(fns["z_where"], fixed),
        "aux_depth": present * standard("z_depth"),
        "aux_what": present * standard("z_what"),
        "aux_bg": standard("z_bg"),
    }
    for name, kl in expected.items():
        torch.testing.assert_close(found[name], kl.sum((1, 2)))


def test_presence_has_a_gradient_from_the_auxiliary_kls(pair):
    terms = terms_of(pair)
    gradients = torch.autograd.grad(terms.kl["aux_where"].sum(), pair.model.cells.heads["z_pres"].weight)
    assert gradients[0].any()


def test_a_copy_reads_the_step_of_its_own_model(pair):
    duplicate = copy.deepcopy(pair)
    duplicate.model.step.fill_(100_000)
    assert duplicate.criterion.model is duplicate.model
    terms = terms_of(duplicate)
    torch.testing.assert_close(duplicate.criterion.combine(terms), terms.mean_error() + terms.mean_kl())
    assert pair.criterion.combine(terms) != duplicate.criterion.combine(terms)


def test_it_has_no_state_of_its_own(pair):
    assert not pair.criterion.state_dict() and pair.criterion.annealing == PUBLISHED
