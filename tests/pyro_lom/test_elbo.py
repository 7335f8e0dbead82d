"""Our ELBO is Pyro's, kept apart by site and scene and averaged over scenes."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.nn import PyroModule, PyroParam
from tiny import (
    AUXILIARY,
    LATENTS,
    NETWORKS,
    NUM_SCENES,
    SCENE_DIM,
    SYSTEMS,
    WITH_SLOTS,
    Programs,
    tiny_images,
    tiny_pair,
    tiny_system,
)
from torch import nn
from torch.distributions import Categorical, constraints

from pyro_lom.distributions import GaussianHead
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.objective import Objective


class Mixture(nn.Module):
    """A scene prior whose KL has no closed form; with `spread` 0 it is N(0, I) in disguise."""

    def __init__(self, spread=0.0):
        super().__init__()
        self.loc = nn.Parameter(spread * torch.randn(3, SCENE_DIM))
        self.logits = nn.Parameter(torch.tensor([0.0, 1.0, -1.0]))

    def forward(self):
        components = dist.Normal(self.loc, 1.0).to_event(1)
        return dist.MixtureSameFamily(Categorical(logits=self.logits), components)


class PyroNormal(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(SCENE_DIM))
        self.scale = PyroParam(torch.ones(SCENE_DIM), constraints.positive)

    def forward(self):
        return dist.Normal(self.loc, self.scale).to_event(1)


@pytest.fixture
def float64():
    """Systems that are built and evaluated in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def gradients(loss, pair):
    for module in pair:
        module.zero_grad()
    loss.backward()
    return {f"{i}.{n}": p.grad for i, module in enumerate(pair) for n, p in module.named_parameters()}


def terms_of(pair, elbo=None, images=None):
    torch.manual_seed(3)
    return (elbo or TraceScene_ELBO()).terms(*pair, tiny_images() if images is None else images)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (TraceMeanField_ELBO(), TraceScene_ELBO()),
        (Trace_ELBO(), TraceScene_ELBO(analytic_kl=False, num_kl_samples=1)),
    ],
    ids=["TraceMeanField_ELBO", "Trace_ELBO"],
)
@pytest.mark.parametrize("rendered", [None, 1])
@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_number_of_scenes_times_our_mean_is_pyros_loss_and_gradient(
    float64, system, networks, rendered, theirs, ours
):
    pair, images = tiny_pair(system, networks, rendered=rendered), tiny_images()
    torch.manual_seed(3)
    our_loss = NUM_SCENES * ours.differentiable_loss(*pair, images)
    our_gradients = {name: g if g is None else g.clone() for name, g in gradients(our_loss, pair).items()}
    torch.manual_seed(3)
    their_loss = theirs.differentiable_loss(*pair, images)
    their_gradients = gradients(their_loss, pair)
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-10, atol=0)
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-10, atol=1e-10 * gradient.abs().max().item())


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_in_float64_has_terms_in_float64(system, networks):
    built = tiny_system(system, networks, **({"likelihood": "mixture"} if system in WITH_SLOTS else {}))
    objective, images = Objective(built).double(), tiny_images().double()
    for pair in built.values():
        guide = poutine.trace(pair.guide).get_trace(images)
        model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(images)
        for site in (trace.nodes[name] for trace in (guide, model) for name in trace.stochastic_nodes):
            if site["infer"].get("_deterministic"):
                assert site["value"].dtype == torch.float64
            elif isinstance(site["value"], torch.Tensor) and site["value"].is_floating_point():
                assert {site["fn"].mean.dtype, site["fn"].stddev.dtype, site["value"].dtype} == {torch.float64}
        assert model.nodes["x"]["fn"].mean.dtype == torch.float64
        terms = TraceScene_ELBO().terms(pair.model, pair.guide, images)
        dtypes = {value.dtype for part in terms for name, value in part.items() if name not in AUXILIARY[system]}
        assert dtypes == {torch.float64}
    evaluation = objective(images)
    assert {value.dtype for value in (evaluation.loss, *evaluation.errors.values())} == {torch.float64}


@pytest.mark.parametrize("system", SYSTEMS)
def test_elbo_interface_gives_the_same_loss(system):
    pair, images, elbo = tiny_pair(system), tiny_images(), TraceScene_ELBO()
    losses = []
    for evaluate in (elbo.differentiable_loss, elbo.loss, elbo.loss_and_grads, lambda m, g, x: elbo(m, g)(x)):
        torch.manual_seed(3)
        losses.append(torch.as_tensor(evaluate(*pair, images)).detach())
    terms = terms_of(pair)
    expected = sum(kl.mean() for kl in terms.kl.values()) - terms.log_likelihood["x"].mean()
    torch.testing.assert_close(torch.stack(losses), expected.expand(4))


def test_as_a_criterion_it_is_the_negative_elbo_without_state():
    pair, elbo = tiny_pair(), TraceScene_ELBO()
    terms = terms_of(pair)
    torch.testing.assert_close(terms.mean_error(), -terms.log_likelihood["x"].mean())
    torch.testing.assert_close(terms.mean_kl(), sum(kl.mean() for kl in terms.kl.values()))
    torch.manual_seed(3)
    torch.testing.assert_close(elbo.combine(terms), elbo.differentiable_loss(*pair, tiny_images()))
    elbo.update(terms.mean_error())
    assert (elbo.penalty(*pair), elbo.report(terms.mean_error().item())) == (0, {})


@pytest.mark.parametrize("system", SYSTEMS)
def test_there_is_a_term_for_every_site_and_scene(system):
    terms = terms_of(tiny_pair(system))
    assert set(terms.log_likelihood) == {"x"}
    assert set(terms.kl) == LATENTS[system] | AUXILIARY[system]
    assert {term.shape for part in terms for term in part.values()} == {(NUM_SCENES,)}


@pytest.mark.parametrize("system", SYSTEMS)
def test_kl_of_every_site_meets_its_monte_carlo_estimate(system):
    pair = tiny_pair(system)
    analytic = terms_of(pair).kl
    sampled = terms_of(pair, TraceScene_ELBO(analytic_kl=False, num_kl_samples=20_000)).kl
    for name in LATENTS[system] - {"z_pres"}:  # the density of its samples is not the one in its KL
        torch.testing.assert_close(sampled[name], analytic[name], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_single_sample_kl_is_the_traces_log_ratio(system):
    pair, images = tiny_pair(system), tiny_images()
    kl = terms_of(pair, TraceScene_ELBO(analytic_kl=False, num_kl_samples=1)).kl
    torch.manual_seed(3)
    guide = poutine.trace(pair.guide).get_trace(images)
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(images)
    for trace in (guide, model):
        trace.compute_log_prob()
    for name in LATENTS[system]:
        ratio = guide.nodes[name]["log_prob"] - model.nodes[name]["log_prob"]
        torch.testing.assert_close(kl[name], ratio.sum(-1))


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_scenes_terms_do_not_depend_on_the_others(system):
    """In evaluation mode: in training, networks that normalise batches make them depend."""
    pair, images = Programs(*(program.eval() for program in tiny_pair(system))), tiny_images(4)
    guide = poutine.trace(pair.guide).get_trace(images)

    def terms(rows):
        part = guide.copy()
        for name in {"scenes", "slots", "cells", "log_m", "h_2", "h_3"} & set(part.nodes):
            part.remove_node(name)
        for name in LATENTS[system] | AUXILIARY[system]:
            part.nodes[name] = part.nodes[name] | {"value": part.nodes[name]["value"][rows]}
        return TraceScene_ELBO().terms(pair.model, poutine.replay(pair.guide, trace=part), images[rows])

    everyone, some = terms(slice(None)), terms([2, 0])
    for all_terms, some_terms in zip(everyone, some, strict=True):
        for name, values in all_terms.items():
            torch.testing.assert_close(values[[2, 0]], some_terms[name], rtol=1e-4, atol=1e-4)


class TestWithoutClosedForm:
    def test_the_kl_is_averaged_over_fresh_samples(self):
        known, disguised = tiny_pair(), tiny_pair()
        disguised.model.scene_prior = Mixture(spread=0.0)

        def deviation(num_kl_samples):
            elbo, deviations = TraceScene_ELBO(num_kl_samples=num_kl_samples), []
            for seed in range(20):
                torch.manual_seed(seed)
                expected = TraceScene_ELBO().terms(*known, tiny_images()).kl["s"]
                torch.manual_seed(seed)
                deviations.append(elbo.terms(*disguised, tiny_images()).kl["s"] - expected)
            return torch.stack(deviations).square().mean().sqrt().item()

        with torch.no_grad():
            single = deviation(1)
            for num_kl_samples in (16, 900):
                assert deviation(num_kl_samples) == pytest.approx(single / num_kl_samples**0.5, rel=0.5)

    def test_only_densities_are_evaluated_again(self):
        (model, guide), calls = tiny_pair(), []
        model.scene_prior = Mixture(spread=1.0)
        for module in (model.scene_prior, model.order_net, model.decoder, guide.scene_encoder, guide.order_net):
            module.register_forward_hook(lambda module, *_: calls.append(module))
        terms_of((model, guide))
        assert sorted(map(id, calls)) == sorted(
            map(
                id,
                [
                    model.scene_prior,
                    model.order_net,  # once to match against, once to be scored
                    model.order_net,
                    model.decoder,
                    guide.scene_encoder,
                    guide.order_net,
                ],
            )
        )

    def test_other_sites_keep_their_closed_form(self):
        pair = tiny_pair()
        expected = terms_of(pair).kl["z"]
        pair.model.scene_prior = Mixture()
        torch.testing.assert_close(terms_of(pair).kl["z"], expected)

    @pytest.mark.parametrize("prior", [Mixture(spread=0.5), PyroNormal()], ids=["mixture", "PyroModule"])
    def test_gradients_reach_the_scene_prior_and_the_scene_posterior(self, prior):
        pair = tiny_pair()
        pair.model.scene_prior = prior
        terms_of(pair).kl["s"].sum().backward()
        for module in (prior, pair.guide.scene_posterior):
            assert all(parameter.grad.any() for parameter in module.parameters())

    def test_without_reparameterised_samples_the_traced_one_is_scored(self):
        def model(data):
            with pyro.plate("scenes", 4, dim=-2):
                pyro.sample("s", dist.MixtureSameFamily(Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)))

        def guide(data):
            with pyro.plate("scenes", 4, dim=-2):
                pyro.sample("s", Stiff(torch.zeros(4, 1), 1.0))

        torch.testing.assert_close(TraceScene_ELBO().terms(model, guide, None).kl["s"], torch.zeros(4))


class Stiff(dist.Normal):
    """A normal without reparameterised samples."""

    has_rsample = False


class TestSitesWithoutReparameterisedSamples:
    """A class c of three, with q(c) the same for all scenes, and x ~ N(mean of the class, 1)."""

    num_scenes, means = 20_000, torch.tensor([-1.0, 0.5, 2.0])

    @pytest.fixture
    def logits(self):
        return torch.tensor([0.3, -0.2, 0.1], requires_grad=True)

    @pytest.fixture
    def data(self):
        return torch.randn(self.num_scenes, 1) + 1.0

    def model(self, data, logits):
        with pyro.plate("scenes", len(data), dim=-2):
            c = pyro.sample("c", dist.Categorical(logits=torch.zeros(3)))
            pyro.sample("x", dist.Normal(self.means[c], 1.0), obs=data)

    def guide(self, data, logits, **options):
        with pyro.plate("scenes", len(data), dim=-2):
            pyro.sample("c", dist.Categorical(logits=logits), **options)

    def exact_loss(self, data, logits):
        """The negative ELBO, with the sum over the three classes instead of a sample."""
        q = logits.softmax(-1)
        errors = -dist.Normal(self.means, 1.0).log_prob(data)
        return (q * (q.log() + math.log(3) + errors)).sum(-1).mean()

    @pytest.mark.parametrize("analytic_kl", [True, False])
    def test_a_loss_whose_gradient_would_be_wrong_is_refused(self, data, logits, analytic_kl):
        elbo = TraceScene_ELBO(analytic_kl=analytic_kl)
        message = "site 'c' of the guide: Categorical has no rsample.*TraceGraph_ELBO, or TraceEnum_ELBO"
        with pytest.raises(UserError, match=message) as refused:
            elbo.differentiable_loss(self.model, self.guide, data, logits)
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("analytic_kl", [True, False])
    def test_the_loss_without_its_gradient_is_right(self, data, logits, analytic_kl):
        loss = TraceScene_ELBO(analytic_kl=analytic_kl).loss(self.model, self.guide, data, logits)
        assert loss == pytest.approx(self.exact_loss(data, logits).item(), abs=0.05)

    @pytest.mark.parametrize(
        ("elbo", "options", "tolerance"),
        [
            (TraceGraph_ELBO(), {}, 0.05),
            (TraceEnum_ELBO(max_plate_nesting=2), {"infer": {"enumerate": "parallel"}}, 1e-5),
        ],
        ids=["TraceGraph_ELBO", "TraceEnum_ELBO"],
    )
    def test_the_elbos_in_the_message_give_the_exact_gradient(self, data, logits, elbo, options, tolerance):
        def guide(data, logits):
            self.guide(data, pyro.param("logits", logits.detach()), **options)

        elbo.loss_and_grads(self.model, guide, data, logits)
        gradient = pyro.param("logits").unconstrained().grad / self.num_scenes
        (exact,) = torch.autograd.grad(self.exact_loss(data, logits), logits)
        assert exact.abs().max() > 0.3
        torch.testing.assert_close(gradient, exact, rtol=0, atol=tolerance)

    def test_enumeration_in_the_guide_does_not_change_that(self, data, logits):
        guide = partial(self.guide, infer={"enumerate": "parallel"})
        with pytest.raises(UserError, match="site 'c' of the guide"):
            TraceScene_ELBO().terms(self.model, guide, data, logits)

    @pytest.mark.parametrize(
        ("posterior", "name"),
        [
            (
                lambda loc: dist.MixtureSameFamily(Categorical(torch.ones(3)), dist.Normal(loc, 1.0)),
                "MixtureSameFamily",
            ),
            (lambda loc: dist.TransformedDistribution(Stiff(loc[:1], 1.0), []), "Stiff"),
            (lambda loc: Stiff(loc[:1], 1.0).mask(torch.tensor(True)), "Stiff"),
            (lambda loc: dist.Normal(loc[:1], 1.0).has_rsample_(False), "Normal"),
        ],
        ids=["mixture", "transformed", "masked", "declared"],
    )
    @pytest.mark.parametrize("is_auxiliary", [False, True])
    def test_continuous_and_auxiliary_sites_are_named_too(self, data, logits, posterior, name, is_auxiliary):
        def model(data):
            with pyro.plate("scenes", len(data), dim=-2):
                mean = 0.0 if is_auxiliary else pyro.sample("s", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

        def guide(data):
            with pyro.plate("scenes", len(data), dim=-2):
                pyro.sample("s", posterior(logits), infer={"is_auxiliary": is_auxiliary})

        with pytest.raises(UserError, match=f"site 's' of the guide: {name} has no rsample.*TraceGraph_ELBO$"):
            TraceScene_ELBO().terms(model, guide, data)
        with torch.no_grad():
            assert TraceScene_ELBO().terms(model, guide, data).kl["s"].isfinite().all()

    def test_without_parameters_to_train_they_are_auxiliary_noise(self, data, logits):
        def guide(data, logits):
            with pyro.plate("scenes", len(data), dim=-2):
                sign = 2 * pyro.sample("sign", dist.Bernoulli(0.5), infer={"is_auxiliary": True}) - 1
                pyro.sample("s", dist.Normal(logits[0] * sign, 1.0))

        def model(data, logits):
            with pyro.plate("scenes", len(data), dim=-2):
                pyro.sample("s", dist.Normal(0.0, 1.0))

        terms = TraceScene_ELBO().terms(model, guide, data, logits)
        torch.testing.assert_close(terms.kl["sign"], torch.full((self.num_scenes,), -math.log(2)))
        (gradient,) = torch.autograd.grad(terms.mean_kl(), logits)  # of KL(N(m, 1) || N(0, 1)) = m^2 / 2
        torch.testing.assert_close(gradient, torch.tensor([0.3, 0.0, 0.0]))

    def test_an_observed_site_is_no_sample(self, data, logits):
        observed = {"c": torch.ones(self.num_scenes, 1, dtype=torch.long)}
        with pyro.validation_enabled(False):  # Pyro warns of an observed site in a guide
            programs = [poutine.condition(program, observed) for program in (self.model, self.guide)]
            terms = TraceScene_ELBO().terms(*programs, data, logits)
        torch.testing.assert_close(terms.log_likelihood["c"], torch.full((self.num_scenes,), -math.log(3)))


class TestSitesThatAreMissingInTheGuide:
    class Classes(nn.Module):
        """A scene prior with an explicit class, which the LOM's guide does not sample."""

        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.randn(3, SCENE_DIM))

        def forward(self):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
            return dist.Normal(self.loc[c], 1.0).to_event(1)

    def test_the_message_names_the_site(self):
        pair = tiny_pair()
        pair.model.scene_prior = self.Classes()
        with pytest.raises(UserError, match="site 'c' of the model is missing in the guide.*TraceEnum_ELBO"):
            terms_of(pair)
        pair = tiny_pair()
        with pytest.raises(UserError, match="site 'z' of the model is missing in the guide"):
            terms_of((pair.model, poutine.block(pair.guide, hide=["z"])))

    def test_enumerated_as_the_message_proposes_they_are_a_mixture(self):
        pair, images = tiny_pair(), tiny_images()
        pair.model.scene_prior = self.Classes()
        torch.manual_seed(3)
        enumerated = TraceEnum_ELBO(max_plate_nesting=2).loss(*pair, images)
        pair.model.scene_prior, classes = Mixture(), pair.model.scene_prior
        pair.model.scene_prior.loc, pair.model.scene_prior.logits = classes.loc, nn.Parameter(torch.zeros(3))
        torch.manual_seed(3)
        assert enumerated == pytest.approx(Trace_ELBO().loss(*pair, images), rel=1e-5)


class TestShapes:
    """A density for each pair of scenes is refused, wherever a shape makes one."""

    def test_a_value_without_the_slots_axis(self):
        pair = tiny_pair()
        model = poutine.condition(pair.model, {"s": torch.zeros(NUM_SCENES, SCENE_DIM)})
        message = r"site 's': its value has batch shape \(2,\) instead of \(2, 1\).*unsqueeze\(-2\)"
        with pytest.raises(UserError, match=message):
            terms_of((model, poutine.block(pair.guide, hide=["s"])))

    def test_a_posterior_without_the_slots_axis(self):
        pair = tiny_pair()
        pair.guide.scene_posterior = nn.Sequential(nn.Flatten(), GaussianHead(SCENE_DIM, SCENE_DIM))
        message = r"site 's': its distribution has batch shape \(2, 2\) instead of \(2, 1\)"
        with pytest.raises(UserError, match=message):
            terms_of(pair)

    def test_a_dim_left_of_the_scenes(self):
        class TwoAxes(GaussianLikelihood):
            def forward(self, rendering):
                return super().forward(rendering._replace(image=rendering.image.unsqueeze(-4)))

        pair = tiny_pair()
        pair.model.likelihood = TwoAxes(0.7)
        with pytest.raises(UserError, match=r"site 'x': its distribution has batch shape \(2, 2, 1\)"):
            terms_of(pair)

    def test_a_site_outside_of_the_plate_of_the_scenes(self):
        pair = tiny_pair()

        def program(images, inner):
            pyro.sample("weight", dist.Normal(0.0, 1.0))
            inner(images)

        programs = [lambda images, inner=inner: program(images, inner) for inner in pair]
        with pytest.raises(UserError, match="site 'weight' is in no plate at dim -2"):
            terms_of(programs)


@pytest.mark.parametrize("rendered", [1, 3])
def test_scoring_part_of_a_batch_is_right_on_average_and_takes_the_kl_of_all(rendered):
    pair, images = tiny_pair(rendered=rendered), tiny_images(4)
    guide = poutine.trace(pair.guide).get_trace(images)

    def terms():
        return TraceScene_ELBO().terms(pair.model, poutine.replay(pair.guide, trace=guide), images)

    everyone = (pair.model.eval() and terms()).log_likelihood["x"]
    pair.model.train()
    drawn = [terms() for _ in range(40)]
    assert {part.log_likelihood["x"].shape for part in drawn} == {(rendered,)}
    assert {part.kl["z"].shape for part in drawn} == {(4,)}
    seen = torch.cat([part.log_likelihood["x"] for part in drawn])
    distances = (seen.unsqueeze(-1) - everyone).abs()
    assert (distances.min(-1).values < 1e-3).all()
    assert set(distances.argmin(-1).tolist()) == set(range(4))


def test_scale_and_mask_reach_the_terms():
    pair, images = tiny_pair(), tiny_images()
    plain = terms_of(pair)
    scaled = terms_of([poutine.scale(program, 0.5) for program in pair])
    keep = torch.tensor([[True], [False]])
    masked = terms_of([poutine.mask(program, keep) for program in pair], images=images)
    for plain_part, scaled_part, masked_part in zip(plain, scaled, masked, strict=True):
        for name, values in plain_part.items():
            torch.testing.assert_close(scaled_part[name], 0.5 * values)
            torch.testing.assert_close(masked_part[name], values * keep[:, 0])


def test_conditioning_both_programs_moves_a_site_from_the_kl_to_the_likelihood():
    pair = tiny_pair()
    scene = {"s": torch.zeros(NUM_SCENES, 1, SCENE_DIM)}
    with pyro.validation_enabled(False):  # Pyro warns of an observed site in a guide
        terms = terms_of([poutine.condition(program, scene) for program in pair])
    assert set(terms.kl) == {"z", "seed_scores"}
    expected = torch.full((NUM_SCENES,), -0.5 * SCENE_DIM * math.log(2 * math.pi))
    torch.testing.assert_close(terms.log_likelihood["s"], expected)


class TestAuxiliarySites:
    @staticmethod
    def model():
        with pyro.plate("scenes", 3, dim=-2):
            pyro.sample("s", dist.Normal(0.0, 1.0))

    def guide(self, infer):
        with pyro.plate("scenes", 3, dim=-2):
            noise = pyro.sample("noise", dist.Normal(0.0, 2.0), infer=infer)
            pyro.sample("s", dist.Normal(noise, 1.0))
        return noise

    def test_their_log_density_is_a_term(self):
        torch.manual_seed(0)
        kl = TraceScene_ELBO().terms(self.model, lambda: self.guide({"is_auxiliary": True})).kl
        torch.manual_seed(0)
        noise = self.guide({"is_auxiliary": True})
        torch.testing.assert_close(kl["noise"], dist.Normal(0.0, 2.0).log_prob(noise)[:, 0])

    def test_a_factor_of_the_guide_is_a_term(self):
        def guide(has_rsample):
            with pyro.plate("scenes", 3, dim=-2):
                value = pyro.sample("s", dist.Normal(0.0, 1.0))
                pyro.factor("penalty", weight * value, has_rsample=has_rsample)

        weight = torch.tensor(2.0, requires_grad=True)
        torch.manual_seed(0)
        ours = TraceScene_ELBO(analytic_kl=False, num_kl_samples=1).terms(lambda _: self.model(), guide, True).mean_kl()
        torch.manual_seed(0)
        assert 3 * ours.item() == pytest.approx(Trace_ELBO().loss(lambda _: self.model(), guide, True), rel=1e-5)
        with pytest.raises(UserError, match="site 'penalty' of the guide"):
            TraceScene_ELBO().terms(lambda _: self.model(), guide, False)

    def test_a_site_of_the_guide_alone_must_be_declared(self):
        with pytest.warns(UserWarning, match="guide but not model"):
            TraceScene_ELBO().terms(self.model, lambda: self.guide({}))


@pytest.mark.parametrize("system", WITH_SLOTS)
def test_what_chance_the_orderless_guide_takes_costs_nothing(system):
    terms = terms_of(tiny_pair(system))
    for name in AUXILIARY[system]:
        torch.testing.assert_close(terms.kl[name], torch.zeros(NUM_SCENES))


def test_pyro_reports_a_nan():
    model, guide = tiny_pair()
    with torch.no_grad():
        guide.scale_head.bias.fill_(torch.nan)
    with pyro.validation_enabled(False), pytest.warns(UserWarning, match="NaN: loss"):
        TraceScene_ELBO().loss_and_grads(model, guide, tiny_images())
