"""What holds for every system: its pair works under all of Pyro's own tools, and its parts have the published sizes."""

import copy
import pickle

import pyro
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from tiny import (
    AUXILIARY,
    CELLS,
    COMPONENT_DIM,
    IMAGE_SHAPE,
    LATENTS,
    NETWORKS,
    NUM_SCENES,
    NUM_SLOTS,
    SCENE_DIM,
    SLOT_DIM,
    SYSTEMS,
    WITH_SLOTS,
    Programs,
    tiny_config,
    tiny_images,
    tiny_objective,
    tiny_pair,
    tiny_system,
)
from torch.utils._pytree import tree_leaves

from experiments.systems import build, preset
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.objective import Objective
from pyro_lom.system import result

SLOTS = (NUM_SCENES, NUM_SLOTS, SLOT_DIM)
X = (NUM_SCENES, 1, *IMAGE_SHAPE)
LOM = {"s": (NUM_SCENES, 1, SCENE_DIM), "z": SLOTS, "x": X, "h": SLOTS}
IN_TURN = {**{f"z_{k}": (NUM_SCENES, 1, SLOT_DIM) for k in range(1, NUM_SLOTS + 1)}, "x": X}
SITES = {
    "lom-genesis-v2": LOM,
    "genesis-v2": {"o": SLOTS, "x": X},
    "genesis": {
        **{f"z_mask_{k}": (NUM_SCENES, 1, SLOT_DIM) for k in range(1, NUM_SLOTS + 1)},
        **{f"z_component_{k}": (NUM_SCENES, 1, COMPONENT_DIM) for k in range(1, NUM_SLOTS + 1)},
        **{"log_m": (NUM_SCENES, 1, NUM_SLOTS, 1, *IMAGE_SHAPE[1:]), "x": X},
    },
    "lom-emorl": LOM,
    "emorl": {"o_3": SLOTS, "o_2": SLOTS, "o_1": SLOTS, "x": X},
    "autoregressive-emorl": IN_TURN,
    "scene-autoregressive-emorl": {"s": LOM["s"], **IN_TURN},
    "genesis-v2-autoregressive": {name.replace("z_", "o_"): shape for name, shape in IN_TURN.items()},
    "vae": {"s": LOM["s"], "x": X},
    "sri-genesis-v2": {"s": LOM["s"], **IN_TURN},
    "gnm": {
        **dict.fromkeys(("z_g_1", "z_g_2"), (NUM_SCENES, 1, SLOT_DIM)),
        **{"z_bg": (NUM_SCENES, 1, COMPONENT_DIM), "z_what": (NUM_SCENES, CELLS**2, COMPONENT_DIM), "x": X},
        **{f"z_{part}": (NUM_SCENES, CELLS**2, size) for part, size in (("pres", 1), ("where", 4), ("depth", 1))},
    },
    "nvae": {
        **{"z_1": (NUM_SCENES, 1, 128), "z_2": (NUM_SCENES, 1, 512), "z_3": (NUM_SCENES, 1, 512)},
        **{"h_2": (NUM_SCENES, 1, 4, 16, 16), "h_3": (NUM_SCENES, 1, 4, 16, 16), "x": X},
    },
}
ELBOS = {"Trace_ELBO": Trace_ELBO, "TraceMeanField_ELBO": TraceMeanField_ELBO, "TraceScene_ELBO": TraceScene_ELBO}
IMAGES = tiny_images()

every_system = pytest.mark.parametrize("system", SYSTEMS)
all_networks = pytest.mark.parametrize("networks", NETWORKS)


@pytest.fixture
def pair(system, networks):
    return tiny_pair(system, networks)


def weights(*modules):
    return [parameter.detach().clone() for module in modules for parameter in module.parameters()]


def size_of(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.fixture(scope="module")
def published():
    """LOM-GENESIS-v2 at the paper's sizes, for 64x64 images."""
    return build(preset("lom-genesis-v2-objects-room"), (3, 64, 64))


class TestPublishedSizes:
    def test_genesis_v2_has_2_366_798_parameters(self, published):
        assert size_of(*published["orderless"][:2]) == 2_366_798

    def test_emorl_has_666_500_whatever_the_size_of_images(self):
        for size in (64, 96):
            assert size_of(*build(preset("emorl-objects-room"), (3, size, size))["model"][:2]) == 666_500

    def test_genesis_has_12_620_548_whatever_the_number_of_slots(self):
        for data in ("objects-room", "shapestacks"):
            assert size_of(*build(preset(f"genesis-{data}"), (3, 64, 64))["model"][:2]) == 12_620_548
        assert size_of(*build(preset("genesis-objects-room"), (3, 32, 32))["model"][:2]) == 4_559_620

    def test_gnm_has_8_370_070_and_for_clevr6_8_636_446(self):
        assert size_of(*build(preset("gnm-objects-room"), (3, 64, 64))["model"][:2]) == 8_370_070
        assert size_of(*build(preset("gnm-clevr6"), (3, 128, 128))["model"][:2]) == 8_636_446

    def test_g_has_103_616(self, published):
        guide = published["ordered"].guide
        assert size_of(guide.scene_encoder, guide.scene_posterior) == 103_616

    def test_f_has_58_240(self, published):
        model = published["ordered"].model
        assert size_of(model.order_net, model.slot_prior) == 58_240

    def test_f_prime_has_54_016(self, published):
        guide = published["ordered"].guide
        assert size_of(guide.order_net, guide.scale_head) == 54_016

    def test_beside_them_a_lom_has_a_decoder_of_its_own_and_nothing_else(self, published):
        decoder = size_of(published["orderless"].model.decoder)
        assert size_of(*published["ordered"][:2]) == 103_616 + 58_240 + 54_016 + decoder


@every_system
@all_networks
class TestUnderPyro:
    def test_the_guide_samples_the_models_latents_and_auxiliary_sites(self, system, networks, pair):
        guide = poutine.trace(pair.guide).get_trace(IMAGES)
        model = poutine.trace(pair.model).get_trace(IMAGES)
        latents, auxiliary = LATENTS[system], AUXILIARY[system]
        other = {"scenes", "slots", "cells", "log_m", "h_2", "h_3"}
        assert set(guide.stochastic_nodes) - other == latents | auxiliary
        assert {name for name in guide.nodes if guide.nodes[name].get("infer", {}).get("is_auxiliary")} == auxiliary
        assert {name for name in model.stochastic_nodes if name in SITES[system]} - other == latents
        for name in latents:
            assert guide.nodes[name]["value"].shape == model.nodes[name]["value"].shape == SITES[system][name]
        assert model.observation_nodes == [name for name in model.nodes if name in ("h", "x")]

    @pytest.mark.parametrize("parallel", [False, True])
    def test_prior_samples(self, system, networks, pair, parallel):
        samples = Predictive(pair.model, num_samples=3, parallel=parallel)(num_scenes=NUM_SCENES)
        assert {name: values.shape for name, values in samples.items()} == {
            name: (3, *shape) for name, shape in SITES[system].items()
        }

    @pytest.mark.parametrize("parallel", [False, True])
    def test_posterior_predictive_samples(self, system, networks, pair, parallel):
        predictive = Predictive(poutine.uncondition(pair.model), guide=pair.guide, num_samples=3, parallel=parallel)
        samples = predictive(IMAGES)
        for name, shape in SITES[system].items():
            assert samples[name].shape == (3, *shape)
        images = samples["x"]
        assert not torch.equal(images[0], images[1])
        assert not torch.equal(images[0], IMAGES.unsqueeze(1))

    @pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
    def test_stock_svi_lowers_the_loss_and_trains_this_pair_alone(self, system, networks, elbo):
        built = tiny_system(system, networks)
        *others, (*pair, _, _) = built.values()
        others, loss = [program for other in others for program in other[:2]], elbo()
        images = 0.2 * IMAGES

        def evaluate():
            torch.manual_seed(6)
            return loss.loss(*pair, images)

        before, before_others, loss_before = weights(*pair), weights(*others), evaluate()
        svi = SVI(*pair, pyro.optim.Adam({"lr": 3e-3}), loss)
        for _ in range(8):
            svi.step(images)
        assert evaluate() < loss_before
        assert all(not torch.equal(old, new) for old, new in zip(before, weights(*pair), strict=True))
        assert all(map(torch.equal, before_others, weights(*others)))

    def test_under_bfloat16_autocast_every_distribution_is_float32(self, system, networks, pair):
        with torch.autocast("cpu", torch.bfloat16):
            guide = poutine.trace(pair.guide).get_trace(IMAGES)
            model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(IMAGES)
        for trace in (guide, model):
            for name in SITES[system]:
                if not name.startswith(("h", "log_m")) and name in trace.nodes:
                    fn = trace.nodes[name]["fn"]
                    assert {fn.mean.dtype, fn.stddev.dtype, trace.nodes[name]["value"].dtype} == {torch.float32}
        assert (model.nodes["x"]["fn"].stddev == torch.tensor(0.7)).all()


@every_system
@all_networks
class TestInstances:
    def test_two_share_no_memory(self, system, networks):
        first, second = tiny_objective(system, networks), tiny_objective(system, networks)

        def memory(objective):
            tensors = [*objective.parameters(), *objective.buffers()]
            return {tensor.untyped_storage().data_ptr() for tensor in tensors}

        assert not memory(first) & memory(second)

    def test_a_copy_is_whole(self, system, networks):
        original = tiny_system(system, networks)
        duplicate = copy.deepcopy(original)
        for name, (model, guide, _, reads) in duplicate.items():
            assert guide.model is model
            if reads:
                assert guide.orderless_guide is duplicate[reads].guide
            assert not {*model.parameters()} & {*original[name].model.parameters()}

    def test_it_survives_pickling(self, system, networks, pair):
        model, guide = pickle.loads(pickle.dumps(tuple(pair)))
        assert guide.model is model
        losses = []
        for programs in (pair, (model, guide)):
            torch.manual_seed(6)
            losses.append(TraceScene_ELBO().loss(*programs, IMAGES))
        assert losses[0] == losses[1]

    def test_the_same_seed_builds_and_evaluates_the_same(self, system, networks):
        losses = []
        for _ in range(2):
            objective = tiny_objective(system, networks)
            torch.manual_seed(6)
            losses.append(objective(IMAGES).loss.item())
        assert losses[0] == losses[1]


@every_system
@all_networks
@pytest.mark.parametrize("image_shape", [(1, 32, 32), (3, 48, 48)], ids=str)
def test_sizes_follow_the_images(system, networks, image_shape):
    pair = Programs(*result(build(tiny_config(system, networks), image_shape))[:2])
    images = tiny_images(NUM_SCENES, image_shape)
    assert torch.isfinite(torch.tensor(TraceScene_ELBO().loss(*pair, images)))
    assert pair.model().shape == (1, 1, *image_shape)


@pytest.mark.parametrize("system", WITH_SLOTS)
def test_with_a_mixture_for_a_likelihood(system):
    built = tiny_system(system, likelihood="mixture")
    objective, pair = Objective(built), result(built)
    objective(IMAGES).loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    losses = []
    for elbo in (TraceScene_ELBO(), TraceMeanField_ELBO()):  # the mean and the sum over scenes
        torch.manual_seed(0)
        losses.append(elbo.loss(pair.model, pair.guide, IMAGES))
    assert losses[1] == pytest.approx(NUM_SCENES * losses[0], rel=1e-4)
    with torch.inference_mode():
        assert all(
            torch.isfinite(tensor).all() for tensor in tree_leaves(pair.guide.infer(IMAGES)) if tensor is not None
        )
    predictive = Predictive(poutine.uncondition(pair.model), guide=pair.guide, num_samples=2)
    assert predictive(IMAGES)["x"].shape == (2, *X)
