"""Parts of one's own: priors of many families train, are loaded and sampled; a run is not opened without its parts."""

import json
import math
import shutil
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import msgspec
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from tiny import tiny_system
from torch import nn
from torch.distributions import constraints

from experiments import Factory, evaluate, load_run, sample_scenes
from experiments.fit import fit, parse
from experiments.loading import read_origin
from experiments.parts import exchange
from experiments.sample import main as sample_main
from experiments.systems import build, preset
from experiments.systems.options import Geco
from pyro_lom import tempering
from pyro_lom.errors import UserError
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.matching import hungarian_matching
from pyro_lom.networks.decoders import DeconvolutionDecoder
from pyro_lom.program import Program
from pyro_lom.scene_priors import NormalMixture
from pyro_lom.system import result
from pyro_lom.training.non_finite import NonFiniteLoss
from pyro_lom.training.runs import Run

DS, DZ, K = 32, 8, 3
MODULE = sys.modules["experiments.fit"]  # the package has the function under this name


class Prior(nn.Module):
    """p(s) as a function of buffers `loc` and `scale`, like those of the standard normal."""

    def __init__(self, make):
        super().__init__()
        self.make = make
        self.register_buffer("loc", torch.zeros(DS))
        self.register_buffer("scale", torch.ones(DS))

    def forward(self):
        return self.make(self.loc, self.scale)


class Flow(nn.Module):
    def __init__(self, *transforms):
        super().__init__()
        self.learned = nn.ModuleList(transform for transform in transforms if isinstance(transform, nn.Module))
        self.transforms = list(transforms)

    def forward(self):
        return dist.TransformedDistribution(standard(), self.transforms)


class Inverse(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self):
        return dist.TransformedDistribution(standard(), [self.flow.inv])


class ConditionalFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.context = nn.Parameter(torch.zeros(4))
        self.flow = T.conditional_affine_coupling(DS, 4)

    def forward(self):
        return dist.ConditionalTransformedDistribution(standard(), [self.flow]).condition(self.context)


class Covariance(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale_tril = PyroParam(torch.eye(DS), constraints.lower_cholesky)

    def forward(self):
        return dist.MultivariateNormal(torch.zeros(DS), scale_tril=self.scale_tril)


class Mixture(nn.Module):
    """A mixture of `components` of batch shape (4,)."""

    def __init__(self, components):
        super().__init__()
        self.loc, self.logits = nn.Parameter(torch.randn(4, DS)), nn.Parameter(torch.zeros(4))
        self.components = components

    def forward(self):
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), self.components(self.loc))


class VampPrior(nn.Module):
    """A mixture of posteriors of pseudo-inputs, sets of slots (Tomczak & Welling, 2018)."""

    def __init__(self, guide):
        super().__init__()
        self.guide = [guide]  # in a list, because the guide trains its own weights
        self.slots = nn.Parameter(torch.randn(4, K, DZ))

    def forward(self):
        components = self.guide[0].infer_scene(self.slots)
        return dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(4)), components)


def standard():
    return dist.Normal(torch.zeros(DS), 1.0).to_event(1)


PRIORS = {
    "mixture with learned scales": lambda: NormalMixture(DS, 4),
    "MultivariateNormal": lambda: Prior(lambda m, s: dist.MultivariateNormal(m, scale_tril=torch.diag(s))),
    "PyroParam": Covariance,
    "precision matrix": lambda: Prior(lambda m, s: dist.MultivariateNormal(m, precision_matrix=torch.diag(s))),
    "mixture of MultivariateNormal": lambda: Mixture(lambda m: dist.MultivariateNormal(m, torch.eye(DS))),
    "expanded": lambda: Prior(lambda m, s: dist.Normal(0.0, 1.0).expand([DS]).to_event(1)),
    "spline": lambda: Flow(T.spline(DS)),
    "spline couplings": lambda: Flow(T.spline_coupling(DS), T.permute(DS), T.spline_coupling(DS)),
    "inverse autoregressive": lambda: Inverse(T.affine_autoregressive(DS)),
    "conditional": ConditionalFlow,
    "LowRank": lambda: Prior(lambda m, s: dist.LowRankMultivariateNormal(m, torch.ones(DS, 2), s)),
    "StudentT": lambda: Prior(lambda m, s: dist.StudentT(4.0, m, s).to_event(1)),
    "Laplace": lambda: Prior(lambda m, s: dist.Laplace(m, s).to_event(1)),
    "Cauchy": lambda: Prior(lambda m, s: dist.Cauchy(m, s).to_event(1)),
    "Logistic": lambda: Prior(lambda m, s: dist.Logistic(m, s).to_event(1)),
    "MixtureOfDiagNormals": lambda: Prior(
        lambda m, s: dist.MixtureOfDiagNormals(torch.stack([m, m + 1]), torch.stack([s, s]), torch.zeros(2))
    ),
    "MultivariateStudentT": lambda: Prior(lambda m, s: dist.MultivariateStudentT(torch.tensor(5.0), m, torch.diag(s))),
    "AffineTransform of StudentT": lambda: Prior(
        lambda m, s: dist.TransformedDistribution(dist.StudentT(4.0, m, s), [T.AffineTransform(1.0, 2.0)]).to_event(1)
    ),
    "mixture of StudentT": lambda: Mixture(lambda m: dist.StudentT(4.0, m, 1.0).to_event(1)),
    "VonMises": lambda: Prior(lambda m, s: dist.VonMises(m, s).to_event(1)),
    "Gumbel": lambda: Prior(lambda m, s: dist.Gumbel(m, s).to_event(1)),
    "AsymmetricLaplace": lambda: Prior(lambda m, s: dist.AsymmetricLaplace(m, s, s).to_event(1)),
    "VampPrior": lambda: Factory(lambda model, guide: VampPrior(guide)),
    "learned by a network": lambda: Factory(lambda model, guide: NormalMixture(model.scene_dim, 2)),
}
UNCHANGED = {"VonMises"}  # no rule of temperature
QUICK = {"mixture with learned scales", "StudentT", "spline", "VonMises", "MixtureOfDiagNormals", "VampPrior"}


class Uniform(nn.Module):
    def forward(self):
        return dist.Uniform(-4 * torch.ones(DS), 4.0).to_event(1)


class Sphere(nn.Module):
    def forward(self):
        return dist.ProjectedNormal(torch.ones(DS))


class Sticks(nn.Module):
    def forward(self):
        weights = pyro.sample("w", dist.Dirichlet(torch.ones(3)))
        return dist.Normal(weights.sum(-1, keepdim=True).expand(*weights.shape[:-1], DS), 1.0).to_event(1)


class Class(nn.Module):
    def forward(self):
        c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        return dist.Normal(c[..., None].float().expand(*c.shape, DS), 1.0).to_event(1)


class Torch(nn.Module):
    def forward(self):
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(DS), 1.0), 1)


class Negative(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(-torch.ones(DS))

    def forward(self):
        return dist.Normal(0.0, self.scale).to_event(1)


class NotANumber(nn.Module):
    def forward(self):
        return dist.Normal(torch.full((DS,), math.nan), 1.0, validate_args=False).to_event(1)


class Flat(nn.Module):
    def forward(self):
        return dist.Normal(torch.zeros(DS), 1.0)


class Short(nn.Module):
    def forward(self):
        return dist.Normal(torch.zeros(16), 1.0).to_event(1)


@pytest.fixture
def config(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempering, "_warned", set())
    return parse([*tiny, "--train.preview-every", "0"]).config


@pytest.fixture
def quick(monkeypatch):
    """Without the evaluation and the pictures at the end of a run."""
    monkeypatch.setattr(MODULE, "summarise", lambda held_out: {})
    monkeypatch.setattr(MODULE, "draw", lambda *given, **options: [])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PRIORS]
)
@pytest.mark.filterwarnings("ignore:temperature")
def test_a_prior_trains_is_loaded_and_sampled(config, quick, name):
    run = fit(config, scene_prior=PRIORS[name]())
    _, system, _ = load_run(run.folder, scene_prior=PRIORS[name]())
    spreads = []
    for tau in (0.5, 1.0):
        torch.manual_seed(0)
        assert torch.isfinite(sample_scenes(result(system), 4, tau).image).all()
        with pyro.poutine.trace() as tracer, tempering.temperature(tau):
            result(system).model(num_scenes=400, with_image=False)
        low, high = tracer.trace.nodes["s"]["value"].detach().quantile(torch.tensor([0.25, 0.75]))
        spreads.append(float(high - low))
    assert spreads[0] < 0.95 * spreads[1] or name in UNCHANGED


@pytest.mark.parametrize(
    ("prior", "line"),
    [
        (
            Uniform,
            "site 'ordered/s': the prior is zero at values of the posterior, so the KL is infinite; take a prior",
        ),
        (Sphere, "site 'ordered/s': the prior is zero at values of the posterior"),
        (Sticks, "site 'w' of the model is missing in the guide"),
        (Class, "site 'c' of the model is missing in the guide; sample it there, or if it is discrete, enumerate it"),
        (Torch, "scene_prior returns torch.distributions.independent.Independent: return a distribution of pyro"),
        (Negative, "the system cannot train with scene_prior: ValueError: Expected parameter scale"),
        (NotANumber, "before training, the ELBO is NaN or infinite at ordered/s"),
        (
            Flat,
            r"scene_prior returns a distribution of batch shape (32,) and event shape (): a scene of this model has",
        ),
        (Short, r"scene_prior returns a distribution of batch shape () and event shape (16,): a scene of this model"),
    ],
)
def test_a_prior_that_cannot_train_is_refused_before_training(config, prior, line):
    with pytest.raises(UserError) as refused:
        fit(config, scene_prior=prior())
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)
    assert not Path("runs").exists()


def test_a_class_in_place_of_an_instance_is_refused(config):
    with pytest.raises(UserError, match="^scene_prior is the class Uniform: pass a module, an instance of"):
        build(config, (3, 32, 32), scene_prior=Uniform)
    with pytest.raises(UserError, match="^matching is a str: pass a function"):
        build(config, (3, 32, 32), matching="greedy")


def test_a_diverging_prior_ends_the_run_with_all_bad_sites_named(config, quick):
    class Diverging(nn.Module):
        calls = 0

        def forward(self):
            self.calls += self.training
            return dist.Normal(torch.full((DS,), math.nan if self.calls > 2 else 0.0), 1.0).to_event(1)

    with pytest.raises(NonFiniteLoss, match=r"^the loss is not finite: site .*ordered/s.* in step \d; the last good"):
        fit(config, scene_prior=Diverging())


class LaplacePrior(Prior):
    def __init__(self):
        super().__init__(lambda loc, scale: dist.Laplace(loc, scale).to_event(1))


def test_a_run_knows_its_parts(config, quick, refusal):
    """The tensors of this prior have the names and shapes of the standard normal's."""
    run = fit(config, scene_prior=LaplacePrior())
    record = read_origin(Run(run.folder)).parts["scene_prior"]
    assert record["class"] == "LaplacePrior" and len(record["tensors"]) == 16
    kept = {path: path.read_bytes() for path in Path(run.folder).rglob("*") if path.is_file()}
    missing = r"was trained with scene_prior=LaplacePrior: pass it from Python"
    with pytest.raises(UserError, match=missing):
        load_run(run.folder)
    with pytest.raises(UserError, match=missing):
        fit(config, resume=run.folder)
    assert "was trained with scene_prior=LaplacePrior" in refusal(sample_main, run.folder)
    with pytest.raises(UserError, match="was trained with scene_prior=LaplacePrior, not with Prior: pass the same"):
        load_run(run.folder, scene_prior=Prior(lambda loc, scale: dist.Normal(loc, scale).to_event(1)))
    with pytest.raises(UserError, match="was trained without likelihood: leave it out"):
        load_run(run.folder, scene_prior=LaplacePrior(), likelihood=GaussianLikelihood(0.7))
    assert kept == {path: path.read_bytes() for path in Path(run.folder).rglob("*") if path.is_file()}
    _, system, _ = load_run(run.folder, scene_prior=LaplacePrior())
    assert isinstance(result(system).model.scene_prior().base_dist, dist.Laplace)
    fit(config, scene_prior=LaplacePrior(), resume=run.folder)


def test_a_part_with_other_shapes_is_not_the_runs(config, quick):
    run = fit(config, scene_prior=NormalMixture(DS, 4))
    with pytest.raises(
        UserError, match="scene_prior=NormalMixture, not with one with other names or shapes of tensors"
    ):
        load_run(run.folder, scene_prior=NormalMixture(DS, 3))


def test_a_run_without_parts_has_none(config, quick):
    run = fit(config)
    assert "parts" not in json.loads((run.folder / "config.json").read_text())
    with pytest.raises(UserError, match="was trained without scene_prior: leave it out"):
        load_run(run.folder, scene_prior=LaplacePrior())


@pytest.mark.parametrize("parts", [3, [], {"scene_prior": 1}, {"scene_prior": {}}])
def test_a_damaged_record_is_one_line(config, quick, parts):
    run = fit(config)
    values = json.loads((run.folder / "config.json").read_text())
    (run.folder / "config.json").write_text(json.dumps(values | {"parts": parts}))
    with pytest.raises(UserError, match="config.json"):
        load_run(run.folder)


def test_a_module_is_copied_and_a_factory_is_called_after_seeding(config, quick):
    prior = NormalMixture(DS, 4)
    before = {name: tensor.clone() for name, tensor in prior.state_dict().items()}
    fit(config, scene_prior=prior)
    assert all(torch.equal(before[name], tensor) for name, tensor in prior.state_dict().items())
    trained = []
    for seed in (7, 8):
        torch.manual_seed(seed)  # what happened before
        run = fit(config, scene_prior=Factory(lambda model, guide: NormalMixture(DS, 4)))
        trained.append(Run(run.folder).load_checkpoint()[1])
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())
    assert not torch.equal(trained[0]["pairs.ordered.model.scene_prior.loc"], before["loc"])


class Listed(nn.Module):
    """A flow in a list, whose parameters are not those of the module."""

    def __init__(self):
        super().__init__()
        self.flows = [T.spline_coupling(DS)]

    def forward(self):
        return dist.TransformedDistribution(standard(), self.flows)


class InStore(nn.Module):
    def forward(self):
        return dist.Normal(pyro.param("prior", torch.zeros(DS)), 1.0).to_event(1)


@pytest.mark.parametrize("prior", [Listed, InStore])
def test_a_part_that_does_not_register_its_parameters_is_refused(config, prior):
    with pytest.raises(UserError, match="^the loss has gradients to a tensor of shape .* that no part registers"):
        fit(config, scene_prior=prior())
    assert not Path("runs").exists()


def test_a_part_that_fails_only_in_training_mode_is_refused(config):
    """The inverse of Pyro's batch norm raises while it trains."""
    with pytest.raises(UserError, match="^the system cannot train with scene_prior: RuntimeError: output with shape"):
        fit(config, scene_prior=Flow(T.batchnorm(DS)))
    assert not Path("runs").exists()


@pytest.mark.slow
def test_a_part_with_a_tensor_under_two_names_is_saved(config, quick):
    run = fit(config, scene_prior=Flow(T.spline_autoregressive(DS)))
    load_run(run.folder, scene_prior=Flow(T.spline_autoregressive(DS)))


def test_a_lazy_part_is_refused(config):
    with pytest.raises(UserError, match="^decoder has lazy parameters without shapes"):
        build(config, (3, 32, 32), decoder=nn.LazyLinear(4))


def test_an_unknown_part_is_refused(config):
    with pytest.raises(UserError, match="^there is no part scene_priors: the parts are decoder, likelihood, "):
        build(config, (3, 32, 32), scene_priors=LaplacePrior())


def test_positive_scenes_train(config, quick):
    """Samples of a wide log-normal are rounded to 0, where neither q nor p is positive."""

    class Positive(ScenePosterior):
        def forward(self, features):
            return dist.LogNormal(self.loc(features), 1.0).to_event(1)

    fit(config, scene_prior=Prior(lambda m, s: dist.LogNormal(m, s).to_event(1)), scene_posterior=Positive())


def test_a_decoder_like_the_orderless_one_keeps_its_weights(config, quick):
    decoder = deepcopy(result(build(config, (3, 32, 32))).model.decoder).requires_grad_(False)
    weights = Run(fit(config, decoder=decoder).folder).load_checkpoint()[1]
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(weights[f"pairs.ordered.model.decoder.{name}"], tensor)


def test_a_part_that_registers_its_guide_is_refused(config):
    class Registers(nn.Module):
        def __init__(self, guide):
            super().__init__()
            self.encoder = guide.scene_encoder

        def forward(self):
            return standard()

    with pytest.raises(UserError, match=r"scene_prior registers guide.scene_encoder.* in a list, as in self.guide"):
        fit(config, scene_prior=Factory(lambda model, guide: Registers(guide)))


class SlotPrior(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.loc, self.make = nn.Linear(8, DZ), make

    def forward(self, prior_order):
        return self.make(self.loc(prior_order))


class SlotFlow(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc, self.flow = nn.Linear(8, DZ), T.spline_coupling(DZ)

    def forward(self, prior_order):
        return dist.TransformedDistribution(dist.Normal(self.loc(prior_order), 1.0).to_event(1), [self.flow])


class ScenePosterior(nn.Module):
    def __init__(self):
        super().__init__()
        self.loc = nn.Linear(DS, DS)

    def forward(self, features):
        return dist.Laplace(self.loc(features), 1.0).to_event(1)


class Likelihood(nn.Module):
    """Laplace noise of a trainable scale."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-1.0))

    def forward(self, rendering):
        return dist.Laplace(rendering.image.unsqueeze(-4), self.log_scale.exp()).to_event(3)


def reversed_order(prior, orderless):
    return torch.arange(orderless.shape[-2]).flip(0).expand(orderless.shape[:-1])


PARTS = {
    "slot_prior": lambda: SlotPrior(lambda loc: dist.StudentT(5.0, loc, 1.0).to_event(1)),
    "slot_prior, flow": SlotFlow,
    "scene_posterior": ScenePosterior,
    "matching": lambda: reversed_order,
    "matching, hungarian": lambda: hungarian_matching,
    "likelihood": Likelihood,
    "decoder": lambda: DeconvolutionDecoder(DZ, 32, out_channels=4, width=8),
    "decoder, factory": lambda: Factory(
        lambda model, guide: DeconvolutionDecoder(model.slot_dim, 32, out_channels=4, width=16)
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_other_parts_train_resume_and_load(config, quick, name):
    part = {name.partition(",")[0]: PARTS[name]()}
    run = fit(config, **part)
    expected = Run(run.folder).load_checkpoint()[1]
    _, system, scenes = load_run(run.folder, **part)
    assert torch.isfinite(sample_scenes(result(system), 2, 0.8).image).all()
    for checkpoint in Run(run.folder).checkpoints()[-1:]:
        for path in checkpoint.iterdir():
            path.unlink()
        checkpoint.rmdir()
    fit(config, **part, resume=run.folder)
    found = Run(run.folder).load_checkpoint()[1]
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_parts_have_their_effect(config):
    image_shape = (3, 32, 32)
    pair = result(build(config, image_shape, matching=reversed_order, likelihood=Likelihood(), decoder=SlotDecoder()))
    assert pair.guide.match is reversed_order
    assert isinstance(pair.model.likelihood, Likelihood) and isinstance(pair.model.decoder, SlotDecoder)
    assert pair.criterion.report(1.0) == {}  # its error is not an RMSE
    assert pair.criterion.free_nats.keys() == {"s"}


def test_another_likelihood_keeps_the_other_terms_of_the_loss():
    built = exchange(tiny_system("sri-genesis-v2"), dict(likelihood=GaussianLikelihood(0.3)))
    assert built["ordered"].criterion.rollouts == {f"z_{k}": f"rollout_{k}" for k in (1, 2, 3)}
    sampled = exchange(
        tiny_system("genesis-v2", geco=Geco(analytic_kl=False)), dict(likelihood=GaussianLikelihood(0.3))
    )
    assert (sampled["model"].criterion.analytic_kl, sampled["model"].criterion.num_kl_samples) == (False, 1)


class SlotDecoder(nn.Module):
    def forward(self, slots):
        return slots[..., :4, None, None].expand(*slots.shape[:-1], 4, 32, 32)


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (dict(likelihood=SlotDecoder()), "the system cannot train with likelihood: "),
        (dict(decoder=nn.Identity()), "the system cannot train with decoder: "),
        (dict(matching=lambda prior, orderless: None), "the system cannot train with matching: "),
        (
            dict(matching=lambda prior, orderless: torch.zeros(prior.shape[:-1], dtype=torch.long)),
            "matching returns [0, 0, 0] for the first scene: each row must contain each of 0 to 2 once",
        ),
        (dict(slot_prior=SlotPrior(lambda loc: dist.Normal(loc, 1.0))), "the system cannot train with slot_prior: "),
    ],
)
def test_other_parts_that_cannot_train_are_refused(config, part, line):
    with pytest.raises(UserError) as refused:
        fit(config, **part)
    assert str(refused.value).startswith(line) and "\n" not in str(refused.value)
    assert not Path("runs").exists()


def test_a_likelihood_without_the_axis_of_slots_is_refused(config):
    class Wrong(nn.Module):
        def forward(self, rendering):
            return dist.Normal(rendering.image, 0.1).to_event(3)

    with pytest.raises(UserError, match=r"^site 'x': its distribution has batch shape \(2, 2\) instead of \(2, 1\)"):
        fit(config, likelihood=Wrong())


def test_another_configuration_does_not_resume(config, quick):
    run = fit(config)
    before = (run.folder / "config.json").read_bytes()
    other = replace(config, train=replace(config.train, steps=8))
    with pytest.raises(UserError, match=r"has another configuration than the given one \(here: --train.steps 8\)"):
        fit(other, resume=run.folder)
    with pytest.raises(UserError, match="has another configuration than the given one"):
        fit(preset("genesis-v2-towers"), resume=run.folder)
    assert (run.folder / "config.json").read_bytes() == before
    fit(config, resume=run.folder)
    fit(load_run(run.folder)[0], resume=run.folder)


def test_the_orderless_pair_of_a_run_is_taken_over(config, quick):
    first = fit(config)
    expected = Run(first.folder).load_checkpoint()[1]
    second = fit(config, orderless=first.folder, scene_prior=LaplacePrior())
    found = Run(second.folder).load_checkpoint()[1]
    names = [name for name in expected if name.startswith("pairs.orderless.")]
    assert names and all(torch.equal(expected[name], found[name]) for name in names)
    steps = [row["step"] for row in Run(second.folder).metrics()]
    assert max(steps) == config.train.steps - config.model.first_steps(config.train)
    assert all("orderless/x" not in row for row in Run(second.folder).metrics())
    load_run(second.folder, scene_prior=LaplacePrior())
    fit(config, scene_prior=LaplacePrior(), resume=second.folder)


def test_an_orderless_pair_that_is_not_trained_is_refused(config, quick):
    run = fit(config)
    run = Run(run.folder)
    progress, *tensors = run.load_checkpoint()
    for checkpoint in run.checkpoints():
        shutil.rmtree(checkpoint)
    run.save_checkpoint(msgspec.structs.replace(progress, step=2), *tensors)
    with pytest.raises(UserError, match="is at step 2 of 3: finish it first with --resume"):
        fit(config, orderless=run.folder)


def test_a_run_resumes_only_with_its_own_orderless_run(config, quick):
    first = fit(config)
    with pytest.raises(UserError, match="did not take over the orderless pair of .*: leave orderless out"):
        fit(config, resume=first.folder, orderless=first.folder)
    second = fit(config, orderless=first.folder)
    fit(config, resume=second.folder, orderless=first.folder)


def test_an_orderless_pair_with_other_options_is_refused(config, quick, alone):
    run = fit(config)
    other = replace(config, model=replace(config.model, image_scale=0.5))
    with pytest.raises(UserError, match="its pair differs in the option image-scale"):
        fit(other, orderless=run.folder)
    with pytest.raises(UserError, match="genesis-v2 has no pair that another one reads"):
        fit(preset("genesis-v2-towers"), orderless=run.folder)
    with pytest.raises(UserError, match="nowhere is not a run folder"):
        fit(config, orderless=Path("nowhere"))


def test_a_run_of_an_orderless_system_is_taken_over(config, quick, alone):
    weights = Run(alone).load_checkpoint()[1]
    own = json.loads((alone / "config.json").read_text())["model"]
    model = replace(config.model, slot_dim=own["slot_dim"], decoder_width=own["decoder_width"])
    run = fit(replace(config, model=model), orderless=alone)
    found = Run(run.folder).load_checkpoint()[1]
    for name, tensor in weights.items():
        assert torch.equal(found[name.replace("pairs.model.", "pairs.orderless.")], tensor), name


def test_the_trial_changes_nothing(config, quick):
    """Weights after training are those of a run whose trial was left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "try_once", lambda *given: None)
        without = fit(config)
    with_trial = fit(config)
    expected, found = (Run(run.folder).load_checkpoint()[1] for run in (without, with_trial))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_a_prior_without_a_rule_trains_with_a_warning(config, quick):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(config, scene_prior=PRIORS["VonMises"]())
    assert any("temper" in str(one.message) and "VonMises" in str(one.message) for one in caught)


def test_a_program_may_be_a_part(config, quick):
    """`Program.borrow` keeps the guide without registering it."""

    class Borrowing(Program):
        def __init__(self, guide):
            super().__init__()
            self.borrow("guide", guide)
            self.loc = nn.Parameter(torch.zeros(DS))

        def forward(self):
            return dist.Normal(self.loc, 1.0).to_event(1)

    fit(config, scene_prior=Factory(lambda model, guide: Borrowing(guide)))


def test_a_run_with_parts_is_evaluated_from_python(config, quick):
    run = fit(config, scene_prior=LaplacePrior())
    values = evaluate(run.folder, metrics=["kl"], num_images=4, parts={"scene_prior": LaplacePrior()})
    assert values["kl_scene"] > 0
    with pytest.raises(UserError, match="was trained with scene_prior=LaplacePrior"):
        evaluate(run.folder, metrics=["kl"])
