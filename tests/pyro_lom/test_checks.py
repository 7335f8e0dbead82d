"""Wrong images, latents, programs and modes are refused in one line that states what was given and what is needed."""

import jaxtyping
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive
from tiny import IMAGE_SHAPE, NUM_SLOTS, SCENE_DIM, SLOT_DIM, Programs, tiny_images, tiny_pair
from torch import nn

from pyro_lom.arviz_bridge import inference_data, reconstruction_error
from pyro_lom.checks import check_images, check_latents
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError
from pyro_lom.likelihoods import observed
from pyro_lom.metrics.log_likelihood import importance_weighted
from pyro_lom.posterior import complete, explain, log_prob_of_slots
from pyro_lom.program import Guide, Model
from pyro_lom.system import Pair, infer
from pyro_lom.tempering import temperature

B, K = 2, NUM_SLOTS
IMAGES = tiny_images(B)
IMAGES[0, 0, 0, 0], IMAGES[0, 0, 0, 1] = 0, 1
STORED = (255 * IMAGES).round().to(torch.uint8).permute(0, 2, 3, 1)  # uint8 (B, H, W, C)
SCENE, SLOTS = torch.zeros(B, SCENE_DIM), torch.zeros(B, K, SLOT_DIM)
MASK = torch.ones(B, K, dtype=torch.bool)
NEEDED = "but LatentObjectModel takes float32 (B, 3, 32, 32) on cpu from 0 to 1"


@pytest.fixture
def lom():
    return evaluated(tiny_pair())


@pytest.fixture
def unchecked_types(monkeypatch):
    """The annotations of functions are not checked, as outside of tests."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def evaluated(pair):
    return Programs(pair.model.eval(), pair.guide.eval())


def message_of(call, *args, **kwargs):
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


WRONG = {
    "stored": (STORED.numpy(), "a NumPy array uint8 (2, 32, 32, 3) from 0 to 255", "pass float_images(images)"),
    "uint8, channels last": (STORED, "uint8 (2, 32, 32, 3) on cpu from 0 to 255", "pass images.movedim(-1, 1) / 255"),
    "uint8": (STORED.permute(0, 3, 1, 2), "uint8 (2, 3, 32, 32) on cpu from 0 to 255", "pass images / 255"),
    "NumPy": (IMAGES.numpy(), "a NumPy array float32 (2, 3, 32, 32) from 0 to 1", "pass torch.as_tensor(images)"),
    "list": (IMAGES.tolist(), "a list", "pass torch.as_tensor(images)"),
    "channels last": (
        IMAGES.movedim(1, -1),
        "float32 (2, 32, 32, 3) on cpu from 0 to 1",
        "pass images.movedim(-1, 1)",
    ),
    "one image": (IMAGES[0], "float32 (3, 32, 32) on cpu from 0 to 1", "pass images[None]"),
    "the site x": (observed(IMAGES), "float32 (2, 1, 3, 32, 32) on cpu from 0 to 1", "pass images.flatten(0, 1)"),
    "no image": (IMAGES[:0], "float32 (0, 3, 32, 32) on cpu", "pass one image or more"),
    "a vector": (torch.ones(3), "float32 (3) on cpu from 1 to 1", "pass one image or more"),
    "large": (torch.ones(2, 3, 64, 64), "float32 (2, 3, 64, 64) on cpu from 1 to 1", "crop or resize them to 32 x 32"),
    "RGBA": (
        torch.ones(2, 4, 32, 32),
        "float32 (2, 4, 32, 32) on cpu from 1 to 1",
        "convert their colours to 3 channels",
    ),
    "grey": (
        torch.ones(2, 1, 32, 32),
        "float32 (2, 1, 32, 32) on cpu from 1 to 1",
        "convert their colours to 3 channels",
    ),
    "float64": (IMAGES.double(), "float64 (2, 3, 32, 32) on cpu from 0 to 1", "pass images.to(torch.float32)"),
    "float16": (IMAGES.half(), "float16 (2, 3, 32, 32) on cpu from 0 to 1", "pass images.to(torch.float32)"),
    "0 to 255": (255 * IMAGES, "float32 (2, 3, 32, 32) on cpu from 0 to 255", "pass images / 255"),
    "-1 to 1": (2 * IMAGES - 1, "float32 (2, 3, 32, 32) on cpu from -1 to 1", "pass (images + 1) / 2"),
    "overshoot": (
        1.2 * IMAGES - 0.1,
        "float32 (2, 3, 32, 32) on cpu from -0.1 to 1.1",
        "rescale or clamp them to [0, 1]",
    ),
    "standardised": (
        4 * IMAGES - 2,
        "float32 (2, 3, 32, 32) on cpu from -2 to 2",
        "rescale or clamp them to [0, 1]",
    ),
    "NaN": (
        IMAGES.where(IMAGES > 0, torch.nan),
        "float32 (2, 3, 32, 32) on cpu from nan to nan",
        "rescale or clamp them to [0, 1]",
    ),
}


class TestImages:
    @pytest.mark.parametrize("name", WRONG)
    def test_wrong_ones(self, lom, name):
        images, given, remedy = WRONG[name]
        assert message_of(check_images, images, *lom) == f"images are {given}, {NEEDED}: {remedy}"

    @pytest.mark.parametrize("name", [name for name, (*_, remedy) in WRONG.items() if "images" in remedy])
    def test_the_remedy_gives_the_right_ones(self, lom, name):
        images, _, remedy = WRONG[name]
        names = {"float_images": float_images, "torch": torch, "images": images}
        corrected = eval(remedy.removeprefix("pass "), names)
        check_images(corrected, *lom)
        torch.testing.assert_close(corrected, IMAGES[: len(corrected)], rtol=0, atol=0.5 / 255)

    def test_right_ones_leave_no_trace(self, lom):
        state = torch.get_rng_state()
        with poutine.trace() as tracer, temperature(1e-6):
            check_images(float_images(STORED.numpy()), *lom)
            check_images(IMAGES.clamp(1e-4) + 5e-4, *lom)  # rounding
        assert not tracer.trace.stochastic_nodes
        assert torch.equal(torch.get_rng_state(), state)

    def test_a_model_in_float64_takes_float64(self, lom):
        lom.model.double()
        check_images(IMAGES.double(), *lom)
        assert message_of(check_images, IMAGES, *lom).endswith("to 1: pass images.to(torch.float64)")

    def test_images_of_another_device(self, lom):
        """The device "meta" stands for a GPU."""
        with pyro.validation_enabled(False):  # it reads values
            message = message_of(check_images, IMAGES, *(program.to("meta") for program in lom))
        assert "on cpu from 0 to 1, but" in message
        assert message.endswith("takes float32 (B, 3, 32, 32) on meta from 0 to 1: pass images.to('meta')")

    def test_the_model_may_be_within_a_handler(self, lom):
        assert "pass images / 255" in message_of(check_images, 255 * IMAGES, temperature(0.5)(lom.model), lom.guide)

    def test_functions_may_take_anything(self):
        check_images(torch.randn(5, 2), lambda images: None, lambda images: None)

    def test_a_model_of_ones_own(self):
        model = Toy().eval()
        check_images(IMAGES[:, :, :8, :6], model)
        needed = "Toy takes float32 (B, 3, 8, 6) on cpu from 0 to 1: crop or resize them to 8 x 6"
        assert needed in message_of(check_images, IMAGES, model)
        assert needed in message_of(infer, {"model": Pair(model, Guide().eval(), None)}, IMAGES)


class Toy(Model):
    def __init__(self):
        super().__init__()
        self.image = nn.Parameter(torch.rand(3, 8, 6))

    def forward(self, images=None, *, num_scenes=1):
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            return pyro.sample("x", dist.Normal(self.image, 0.1).to_event(3), obs=observed(images))


QUERIES = {
    "explain": lambda lom, images: explain(*lom, images),
    "importance_weighted": lambda lom, images: importance_weighted(*lom, images, 2),
    "inference_data": lambda lom, images: inference_data(*lom, images, num_draws=1),
    "infer": lambda lom, images: infer({"model": Pair(*lom, None)}, images),
}
OTHERS = {
    "reconstruction_error": lambda lom, images: reconstruction_error(*lom)(images, torch.zeros(B, 32, 32).long()),
    "complete": lambda lom, images: complete(*lom, SLOTS, MASK, num_steps=0, num_samples=2),
    "log_prob_of_slots": lambda lom, images: log_prob_of_slots(lom.model, SCENE, SLOTS),
}


@pytest.mark.parametrize("query", QUERIES)
def test_queries_check_their_images(lom, query, unchecked_types):
    QUERIES[query](lom, IMAGES)
    for name in ("stored", "channels last", "one image", "large", "float64", "0 to 255", "-1 to 1"):
        images, given, remedy = WRONG[name]
        assert message_of(QUERIES[query], lom, images) == f"images are {given}, {NEEDED}: {remedy}"


@pytest.mark.parametrize("query", QUERIES | OTHERS)
def test_queries_refuse_programs_in_training_mode(lom, query):
    call = (QUERIES | OTHERS)[query]
    call(lom, IMAGES)
    lom.model.train()
    assert message_of(call, lom, IMAGES) == (
        "LatentObjectModel is in training mode: call .eval() on the model and on the guide"
    )
    if query != "log_prob_of_slots":
        lom.model.eval()
        lom.guide.train()
        assert message_of(call, lom, IMAGES).startswith("LatentObjectGuide is in training mode: call .eval()")


def test_in_training_mode_predictive_returns_every_scene():
    """Only a step with gradients renders a part of the batch."""
    model, guide = tiny_pair(rendered=1)
    images = tiny_images(4)
    draws = Predictive(poutine.uncondition(model), guide=guide, num_samples=2)(images)
    assert draws["x"].shape == (2, 4, 1, *IMAGE_SHAPE) and "rendered" not in draws
    torch.manual_seed(0)
    with torch.no_grad():
        everyone = poutine.trace(model).get_trace(images).nodes["x"]
    assert everyone["value"].shape == (4, 1, *IMAGE_SHAPE)
    assert poutine.trace(model).get_trace(images).nodes["x"]["value"].shape == (1, 1, *IMAGE_SHAPE)


class TestLatents:
    @pytest.mark.parametrize(
        ("latents", "message"),
        [
            (
                dict(slots=SLOTS, scene=SCENE[:, None]),
                "scene is float32 (2, 1, 12) on cpu from 0 to 0, but the LOM takes float32 (2, 12) on cpu",
            ),
            (
                dict(slots=SLOTS, scene=SCENE[:1]),
                "scene is float32 (1, 12) on cpu from 0 to 0, but the LOM takes float32 (2, 12) on cpu",
            ),
            (
                dict(slots=SLOTS.flatten(1)),
                "slots are float32 (2, 24) on cpu from 0 to 0, but the LOM takes float32 (2, 3, 8) on cpu",
            ),
            (
                dict(slots=SLOTS.double()),
                "slots are float64 (2, 3, 8) on cpu from 0 to 0, but the LOM takes float32 (2, 3, 8) on cpu",
            ),
            (
                dict(slots=SLOTS.numpy()),
                "slots are a NumPy array float32 (2, 3, 8) from 0 to 0, but the LOM takes float32 (B, 3, 8) on cpu",
            ),
            (
                dict(slots=SLOTS, mask=MASK.long()),
                "mask is int64 (2, 3) on cpu from 1 to 1, but the LOM takes bool (2, 3) on cpu",
            ),
            (
                dict(slots=SLOTS, mask=MASK[0]),
                "mask is bool (3) on cpu from 1 to 1, but the LOM takes bool (2, 3) on cpu",
            ),
        ],
    )
    def test_wrong_ones(self, lom, latents, message):
        assert message_of(check_latents, lom.model, **latents) == message

    def test_queries_check_their_latents(self, lom, unchecked_types):
        assert "scene is" in message_of(log_prob_of_slots, lom.model, SCENE[:, None], SLOTS)
        assert "scene is" in message_of(log_prob_of_slots, temperature(0.5)(lom.model), SCENE[:, None], SLOTS)
        assert "mask is" in message_of(complete, *lom, SLOTS, MASK.long())
        assert "slots are" in message_of(complete, *lom, SLOTS[0], MASK)
