"""What only a GPU can tell: `pytest -m gpu`. With `--gpu-tests-on cpu`, the tests that can run on a CPU do so."""

import jaxtyping
import pyro
import pytest
import torch
from fixed_noise import FixedNoise
from pyro import poutine
from tiny import LATENTS, SYSTEMS, tiny_images, tiny_objective

from experiments.config import Train
from experiments.training.optimizers import optimizer
from pyro_lom.data.device_minibatches import Prefetched, Resident
from pyro_lom.data.minibatches import Minibatches, to_float
from pyro_lom.data.towers import make_towers
from pyro_lom.training.compilation import compile_networks
from pyro_lom.training.non_finite import NonFiniteWatch
from pyro_lom.training.precision import make_fabric
from pyro_lom.training.step import TrainingStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize("system", SYSTEMS),
]
BATCH = tiny_images(4)
IMAGES = make_towers(12, seed=1).images


@pytest.fixture(autouse=True)
def device(request):
    """The device that is tested."""
    name = request.config.getoption("--gpu-tests-on")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU here")
    return name


@pytest.fixture
def cuda(device):
    """Tests that use it cannot be rehearsed."""
    if device != "cuda":
        pytest.skip("a CPU cannot do this, or takes minutes")


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    pyro.enable_validation(False)  # it reads values back
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def noise_in_sites_alone(monkeypatch):
    """What is drawn outside of sample statements, as EMORL's loss does, is its mean. `FixedNoise` sets the sites."""
    monkeypatch.setattr(
        torch.distributions.Normal, "rsample", lambda self, shape=(): self.loc.expand(shape + self.loc.shape)
    )


class Training:
    """Steps of a tiny system on one device, as the trainer takes them."""

    def __init__(self, system, device, precision="32-true", *, compiled=False, graph=False, accumulate=1, **options):
        self.fabric, self.objective = make_fabric(device, devices=1, precision=precision), tiny_objective(system)
        self.fabric.to_device(self.objective)
        if compiled and not compile_networks(self.objective):
            pytest.skip("torch.compile does not work here")
        self.take_step = TrainingStep(
            self.fabric, self.objective, clip_norm=100.0, accumulate=accumulate, cuda_graph=graph, **options
        )

    def step(self, images, learning_rate=1e-4):
        return self.take_step(images, learning_rate)

    def step_with_fixed_noise(self):
        with FixedNoise(len(BATCH)):
            return self.step(self.fabric.to_device(BATCH))

    def gradients(self):
        return {name: parameter.grad.cpu() for name, parameter in self.objective.named_parameters()}


def assert_same_step(found, expected, rtol):
    """Losses, and gradients by their norms of difference: those of single weights may be next to nothing."""
    torch.testing.assert_close(
        found.step_with_fixed_noise().loss.cpu(), expected.step_with_fixed_noise().loss.cpu(), rtol=rtol, atol=0
    )
    here, there = found.gradients(), expected.gradients()
    assert here.keys() == there.keys()
    everything = torch.stack([gradient.norm() for gradient in there.values()]).norm()
    for name in there:
        assert (here[name] - there[name]).norm() <= 100 * rtol * there[name].norm() + 1e-6 * everything, name


def test_a_step_is_that_of_a_cpu(system, device, noise_in_sites_alone):
    assert_same_step(Training(system, device), Training(system, "cpu"), rtol=1e-5)


@pytest.fixture
def no_shape_checks():
    """While torch compiles, tensors have no values, and checks of shapes fail."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of itself
def test_compiled_networks_take_the_same_step(system, device, noise_in_sites_alone, no_shape_checks, cuda):
    assert_same_step(Training(system, device, compiled=True), Training(system, device), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "precision"), [("adam", "32-true"), ("adam", "bf16-mixed"), ("rmsprop", "32-true"), ("adamax", "32-true")]
)
def test_a_graph_takes_the_same_steps(system, device, kind, precision, cuda):
    """Other images, noise, learning rates and multipliers in each step; four steps of seven are replayed."""

    def trained(graph):
        training = Training(system, device, precision, graph=graph, make_optimizer=optimizer(Train(optimizer=kind)))
        terms = []
        for number in range(7):
            torch.manual_seed(number)
            images = training.fabric.to_device(tiny_images(28)[4 * number :][:4])
            evaluation = training.step(images, 1e-4 / (1 + number))
            terms.append(torch.stack([*evaluation.terms.values()]).cpu())
        return torch.stack(terms), training.objective.state_dict()

    (terms, found), (expected_terms, expected) = trained(True), trained(False)
    tolerance = dict(rtol=1e-4, atol=1e-5) if precision == "32-true" else dict(rtol=2e-2, atol=1e-2)
    torch.testing.assert_close(terms, expected_terms, **tolerance)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("way", [Resident, Prefetched])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_cpu_does_not_wait_for_the_device_within_a_step(system, device, way, precision, cuda):
    training = Training(system, device, precision)
    batches = way(Minibatches(IMAGES, 4, seed=0), training.fabric.device)
    watch = NonFiniteWatch(never=9)

    def step(number):
        torch.manual_seed(number)
        evaluation = training.step(to_float(batches(number).images))
        watch.note(number, evaluation.terms)

    step(0)  # libraries and Adam's state are set up
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 4):
            step(number)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    watch.check(training.fabric, "there is no checkpoint")


def test_steps_in_bfloat16_are_finite(system, device):
    training = Training(system, device, "bf16-mixed")
    for _ in range(3):
        evaluation = training.step_with_fixed_noise()
    assert all(torch.isfinite(value) for value in evaluation.terms.values())
    for parameter in training.objective.parameters():
        assert parameter.dtype == torch.float32
        assert torch.isfinite(parameter).all()
        assert torch.isfinite(parameter.grad).all()


def test_in_bfloat16_every_distribution_is_float32(system, device):
    *_, pair = tiny_objective(system).to(device).pairs.values()
    model, guide = pair.model, pair.guide
    with torch.autocast(device, torch.bfloat16):
        guide_trace = poutine.trace(guide).get_trace(BATCH.to(device))
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(BATCH.to(device))
    sites = [trace.nodes[name] for trace in (guide_trace, model_trace) for name in LATENTS[system]]
    for site in [*sites, model_trace.nodes["x"]]:
        assert {site["fn"].mean.dtype, site["fn"].stddev.dtype, site["value"].dtype} == {torch.float32}


def test_memory_does_not_grow_and_parts_take_less(system, device, cuda):
    def peak(number_of_steps, accumulate):
        training = Training(system, device, accumulate=accumulate)
        images = training.fabric.to_device(tiny_images(64))
        training.step(images)  # makes Adam's state
        torch.cuda.reset_peak_memory_stats()
        for _ in range(number_of_steps):
            training.step(images)
        return torch.cuda.max_memory_allocated()

    whole = peak(2, 1)
    assert peak(8, 1) <= 1.05 * whole
    assert peak(2, 4) < 0.7 * whole
