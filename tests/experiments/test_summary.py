"""The numbers and pictures of a run: all that were promised, finite, and None only where nothing can be known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

from experiments.drawing import draw
from experiments.reading import Reader, sample_scenes, shuffled_posterior
from experiments.summary import summarise
from experiments.systems import build_system
from pyro_lom.data.minibatches import float_images
from pyro_lom.runs import Run

CPU = torch.device("cpu")
# What a summary promises, but for what the command adds: images_per_second, train_minutes, parameters and seed.
OF_ANY_SYSTEM = {"rmse_orderless", "kl_orderless", "binding_largest", "binding_stability", "binding_sameness"}
OF_LABELS = {"ari_fg_encoder", "ari_fg_orderless", "ari_all_encoder", "ari_fg_kmeans_rgb", "ari_fg_untrained"}
OF_TOWERS = {f"structure_{name}" for name in ("real", "cut_and_paste", "orderless_prior", "shuffled_posterior")}
OF_A_LOM = {"rmse_ordered", "kl_scene", "kl_slots", "kl_slots_other_scene"}
OF_A_LOM_ON_LABELS = {"ari_fg_ordered"}
OF_MANY_SCENES = {f"fd_pca64_{name}" for name in ("samples", "orderless_prior", "shuffled_posterior")}
OF_A_LOM_ON_TOWERS = {"structure_samples", "structure_samples_tau1"}


def tiny(system, image_shape=(3, 32, 32)):
    torch.manual_seed(0)
    return build_system(tiny_config(system, "compact"), image_shape)


@pytest.fixture
def scenes(towers):
    return towers.split("test")


def summary_of(system, scenes, seed=0):
    return summarise(tiny(system, scenes.image_shape), tiny(system, scenes.image_shape), scenes, CPU, seed=seed)


def known(summary):
    assert all(value is None or math.isfinite(value) for value in summary.values())
    return {name for name, value in summary.items() if value is not None and not name.startswith("explained")}


@pytest.mark.parametrize("lom", ["lom-genesis-v2", "lom-emorl"])
def test_of_a_lom_on_towers(lom, scenes):
    everything = OF_ANY_SYSTEM | OF_LABELS | OF_TOWERS | OF_A_LOM | OF_A_LOM_ON_LABELS | OF_A_LOM_ON_TOWERS
    summary = summary_of(lom, scenes)
    assert known(summary) == everything
    assert all(-1 <= summary[name] <= 1 for name in everything if name.startswith("ari"))
    assert all(0 <= summary[name] <= 1 for name in everything if name.startswith("structure"))
    assert all(summary[name] >= 0 for name in everything if name.startswith(("rmse", "kl")))
    # The system is as untrained as the one to compare with. What is real stands, what is cut and pasted does not.
    assert summary["ari_fg_encoder"] == pytest.approx(summary["ari_fg_untrained"], abs=0.1)
    assert summary["structure_real"] > 0.9 > 0.5 > summary["structure_cut_and_paste"]


@pytest.mark.parametrize("system", ["autoregressive-emorl", "scene-autoregressive-emorl"])
def test_of_an_autoregressive_prior(system, scenes):
    """It has all that a LOM has, but nothing is drawn for another's scene; without a scene latent that KL is 0."""
    summary, lom = summary_of(system, scenes), summary_of("lom-emorl", scenes)
    assert known(summary) == known(lom) - {"kl_slots_other_scene"}
    assert (summary["kl_scene"] == 0) == (system == "autoregressive-emorl")


@pytest.mark.parametrize("orderless", ["genesis-v2", "emorl"])
def test_of_an_orderless_model_alone(orderless, scenes):
    summary = summary_of(orderless, scenes)
    assert known(summary) == OF_ANY_SYSTEM | OF_LABELS | OF_TOWERS
    assert {name for name, value in summary.items() if value is None} >= OF_A_LOM | OF_A_LOM_ON_LABELS


def test_without_labels(scenes):
    bare = replace(scenes, labels=None, factors={}, num_background=0, name="photographs", version=0)
    summary = summary_of("lom-genesis-v2", bare)
    assert known(summary) == OF_ANY_SYSTEM | OF_A_LOM
    assert {name for name, value in summary.items() if value is None} >= OF_LABELS | OF_A_LOM_ON_LABELS


def test_with_labels_but_no_scene_of_two_objects(scenes):
    alone = replace(scenes, labels=np.minimum(scenes.labels, scenes.num_background))
    summary = summary_of("lom-genesis-v2", alone)
    assert {name for name, value in summary.items() if value is None} == (
        OF_LABELS - {"ari_all_encoder"} | OF_A_LOM_ON_LABELS | OF_MANY_SCENES
    )


@pytest.mark.parametrize("num_scenes", [1, 2, 3])
def test_of_very_few_scenes(scenes, num_scenes):
    few = replace(scenes, images=scenes.images[:num_scenes], labels=None, factors={}, name="few")
    summary = summary_of("lom-genesis-v2", few)
    expected = OF_ANY_SYSTEM | OF_A_LOM
    if num_scenes == 1:  # there is no other scene
        expected = {name for name in expected if not name.startswith("binding") and name != "kl_slots_other_scene"}
    assert known(summary) == expected


def test_of_more_scenes_than_components(scenes):
    many = replace(scenes, images=np.tile(scenes.images, (5, 1, 1, 1)), labels=None, factors={}, name="many")
    summary = summary_of("lom-genesis-v2", many)
    assert known(summary) == OF_ANY_SYSTEM | OF_A_LOM | OF_MANY_SCENES
    assert all(summary[name] > 0 for name in OF_MANY_SCENES)


def test_grey_images(scenes):
    grey = replace(scenes, images=scenes.images[..., :1], factors={}, name="grey")
    assert known(summary_of("lom-genesis-v2", grey)) == OF_ANY_SYSTEM | OF_LABELS | OF_A_LOM | OF_A_LOM_ON_LABELS


def test_the_seed_decides(scenes):
    first, again, other = (summary_of("lom-genesis-v2", scenes, seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_of_a_system_that_renders_part_of_a_batch_in_training(scenes):
    torch.manual_seed(0)
    system = build_system(tiny_config("lom-genesis-v2", "compact", rendered=5), scenes.image_shape)
    assert system.ordered.model.training
    assert known(summarise(system, tiny("lom-genesis-v2"), scenes, CPU, seed=0)) >= OF_A_LOM
    images = float_images(scenes.images)
    terms = Reader(system, CPU).terms(system.ordered, images, Reader(system, CPU).infer(images))
    assert [len(terms[name]) for name in ("log_likelihood", "kl_scene", "kl_slots")] == [5, 16, 16]


@pytest.mark.parametrize("lom", ["lom-genesis-v2", "lom-emorl"])
def test_more_scenes_than_a_batch(lom, scenes):
    system = tiny(lom)
    reader, images = Reader(system, CPU), float_images(scenes.images).repeat(9, 1, 1, 1)  # 144
    orderless = reader.infer(images)
    assert len(orderless.loc) == len(orderless.log_masks) == 144
    assert all(len(reader.reconstruct(pair, images, orderless).image) == 144 for pair in system)
    assert sample_scenes(system.ordered, 130, 0.8).image.shape == (130, 3, 32, 32)


def test_the_temperature_is_felt():
    spread = []
    for tau in (0.0001, 0.5, 1.0):
        torch.manual_seed(0)
        spread.append(sample_scenes(tiny("lom-genesis-v2").ordered, 50, tau).image.std(0).mean())
    assert spread[0] < 0.01 * spread[1] < 0.01 * spread[2]


def test_the_shuffled_posterior_is_of_the_same_slots(scenes):
    system = tiny("lom-genesis-v2")
    orderless = Reader(system, CPU).infer(float_images(scenes.images))
    exact = orderless._replace(scale=torch.full_like(orderless.scale, 1e-9))
    shuffled = shuffled_posterior(system, exact)
    components = system.orderless.model.render(orderless.loc).components
    assert shuffled.components.shape == components.shape
    sums = [part.detach().flatten(2).sum(-1).flatten().sort().values for part in (shuffled.components, components)]
    torch.testing.assert_close(*sums, rtol=1e-3, atol=1e-3)


def opened(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("system", "names"),
    [
        ("lom-genesis-v2", ["reconstructions", "samples", "interpolation", "curves"]),
        ("genesis-v2", ["reconstructions", "samples", "curves"]),
        ("scene-autoregressive-emorl", ["reconstructions", "samples", "curves"]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", [None, 7])
def test_pictures(system, names, channels, step, scenes, tmp_path):
    scenes = replace(scenes, images=scenes.images[..., :channels])
    run = Run(tmp_path)
    paths = draw(tiny(system, scenes.image_shape), scenes, CPU, run, seed=0, step=step)
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in names]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    for path in paths:
        shown = opened(path)
        assert 200 < shown.shape[0] < 2000 and 500 < shown.shape[1] < 3000
        assert shown.std() > 5


def test_drawing_leaves_training_alone(scenes, tmp_path):
    """What comes after a picture may not depend on whether it was drawn: every step seeds itself, parameters stay."""
    system = tiny("lom-genesis-v2")
    before = [{k: v.clone() for k, v in part.state_dict().items()} for pair in system for part in pair]
    training = [part.training for pair in system for part in pair]
    draw(system, scenes, CPU, Run(tmp_path), seed=0)
    after = [part.state_dict() for pair in system for part in pair]
    assert all(torch.equal(old[name], new[name]) for old, new in zip(before, after, strict=True) for name in old)
    assert [part.training for pair in system for part in pair] == training
    assert all(parameter.grad is None for pair in system for part in pair for parameter in part.parameters())
