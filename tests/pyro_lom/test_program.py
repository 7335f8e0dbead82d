"""Programs are plain modules that stock SVI really trains. What SVI saves and names is in `test_svi.py`."""

import copy
import itertools

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.program import Guide, Model, Program

DATA = torch.randn(6, 1, 3, generator=torch.Generator().manual_seed(0)) + 2
ELBOS = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceScene_ELBO": TraceScene_ELBO,
}


class Regression(Program):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 3)

    def forward(self, data):
        with pyro.plate("scenes", len(data), dim=-2):
            latent = pyro.sample("s", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(latent), 0.5).to_event(1), obs=data)


class RegressionGuide(Program):
    def __init__(self, model):
        super().__init__()
        self.borrow("model", model)
        self.encoder = nn.Linear(3, 2)
        self.raw_scale = nn.Parameter(torch.zeros(2))

    def forward(self, data):
        with pyro.plate("scenes", len(data), dim=-2):
            pyro.sample("s", dist.Normal(self.encoder(data), self.raw_scale.exp()).to_event(1))


def make_pair():
    model = Regression()
    return model, RegressionGuide(model)


def weights(*modules):
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def loss_of(pair):
    torch.manual_seed(5)
    return Trace_ELBO(num_particles=20).loss(*pair, DATA)


@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
def test_stock_svi_trains_every_parameter(elbo):
    pair = make_pair()
    before, loss_before = weights(*pair), loss_of(pair)
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.03}), elbo())
    for _ in range(30):
        svi.step(DATA)
    assert all(not torch.equal(old, new) for old, new in zip(before, weights(*pair), strict=True))
    assert loss_of(pair) < 0.8 * loss_before


def test_svi_steps_as_torch_does():
    pair, twin = make_pair(), make_pair()
    for module, other in zip(pair, twin, strict=True):
        other.load_state_dict(module.state_dict())
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    optimizer = torch.optim.Adam([*twin[0].parameters(), *twin[1].parameters()], lr=0.03)
    for seed in range(3):
        torch.manual_seed(seed)
        svi.step(DATA)
        torch.manual_seed(seed)
        optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(*twin, DATA).backward()
        optimizer.step()
    torch.testing.assert_close(weights(*pair), weights(*twin))


def test_training_one_instance_does_not_move_another():
    pair, other = make_pair(), make_pair()
    addresses = [{p.data_ptr() for module in p_ for p in module.parameters()} for p_ in (pair, other)]
    assert not set.intersection(*addresses)
    before = weights(*other)
    svi = SVI(*pair, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    svi.step(DATA)
    svi.step(DATA)
    assert all(map(torch.equal, before, weights(*other)))


def test_frozen_parameters_stay():
    model, guide = make_pair()
    model.requires_grad_(False)
    before = weights(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO())
    svi.step(DATA)
    assert all(map(torch.equal, before, weights(model)))


def test_parameters_are_announced_only_to_those_who_listen_for_them():
    model, _ = make_pair()
    assert not poutine.trace(model).get_trace(DATA).param_nodes
    assert not pyro.get_param_store()
    with poutine.trace(param_only=True) as listener:
        model(DATA)
    assert len(listener.trace.param_nodes) == len(list(model.parameters()))
    heard = {listener.trace.nodes[name]["value"].unconstrained() for name in listener.trace.param_nodes}
    assert heard == set(model.parameters())


def test_a_borrowed_module_is_neither_registered_nor_copied():
    model, guide = make_pair()
    assert guide.model is model
    assert not [name for name in guide.state_dict() if "decoder" in name]
    assert not set(model.parameters()) & set(guide.parameters())
    assert model not in guide.modules()


def test_copies_made_together_stay_together():
    model, guide = copy.deepcopy(make_pair())
    assert guide.model is model
    before = weights(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), Trace_ELBO()).step(DATA)
    assert not any(itertools.starmap(torch.equal, zip(before, weights(guide.model), strict=True)))


class Picture(Model):
    """A model of images without slots: one latent for each scene."""

    scene_sites = ("s",)

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 3 * 4 * 4)

    def forward(self, images=None, *, num_scenes=1):
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            scene = pyro.sample("s", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            image = self.decoder(scene).sigmoid().unflatten(-1, (3, 4, 4))
            observed = None if images is None else images.unsqueeze(-4)
            return pyro.sample("x", dist.Normal(image, 0.5).to_event(3), obs=observed)


class PictureGuide(Guide):
    def __init__(self, model):
        super().__init__()
        self.borrow("model", model)
        self.encoder = nn.Linear(3 * 4 * 4, 2)

    def forward(self, images, *, inferred=None):
        with pyro.plate("scenes", len(images), dim=-2):
            loc = self.encoder(images.flatten(1)).unsqueeze(-2) if inferred is None else inferred
            return pyro.sample("s", dist.Normal(loc, 0.3).to_event(1))


PICTURES = torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class TestDefaults:
    def test_a_model_renders_the_mean_of_its_image_given_its_latents(self):
        model, scenes = Picture(), torch.randn(5, 1, 2)
        rendering = model.render({"s": scenes, "unknown": torch.zeros(5)})
        assert rendering.components is rendering.log_masks is None
        torch.testing.assert_close(rendering.image, model.decoder(scenes).sigmoid().reshape(5, 3, 4, 4))
        rendering.image.sum().backward()
        assert model.decoder.weight.grad.any()

    def test_a_rendering_leaves_no_trace_outside(self):
        model = Picture()
        with poutine.trace() as tracer:
            model.render({"s": torch.randn(5, 1, 2)})
        assert not tracer.trace.stochastic_nodes

    @pytest.mark.parametrize("images", [4, PICTURES.numpy()], ids=["int", "ndarray"])
    def test_a_model_refuses_images_that_are_no_tensor_in_one_line(self, images):
        with pytest.raises(
            UserError, match=rf"^Picture takes .* \(B, C, H, W\), not {type(images).__name__}; num_scenes=.*$"
        ):
            Picture()(images)

    def test_the_loss_of_a_guide_is_its_elbo_with_weight_one(self):
        model = Picture()
        guide, elbo = PictureGuide(model), TraceScene_ELBO()
        for inferred in (None, torch.randn(5, 1, 2)):
            torch.manual_seed(3)
            [(weight, terms)] = guide.losses(elbo, PICTURES, inferred)
            torch.manual_seed(3)
            expected = elbo.terms(model, lambda images, given=inferred: guide(images, inferred=given), PICTURES)
            assert weight == 1.0 and set(terms.kl) == {"s"} and set(terms.log_likelihood) == {"x"}
            torch.testing.assert_close(terms, expected)

    def test_a_guide_infers_nothing_and_has_neither_masks_nor_a_code(self):
        guide = PictureGuide(Picture())
        assert guide.infer(PICTURES) is guide.log_masks(None) is guide.code(PICTURES) is None
        assert guide.pass_on("posterior") == "posterior"


def test_the_step_is_a_buffer_beside_the_weights():
    model, guide = make_pair()
    assert model.step.shape == () and model.step.dtype == torch.long and model.step == 0
    assert not [name for module in (model, guide) for name in module.state_dict() if "step" in name]
    assert model.to("meta").step.device.type == "meta"
