"""The numbers and pictures of a run: every promised number is there and finite, unless it cannot be computed."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

from experiments.evaluation import metrics, summary
from experiments.evaluation.drawing import draw
from experiments.evaluation.held_out import HeldOut
from experiments.evaluation.reading import (
    guide_trace,
    infer_batches,
    latents,
    prior_scenes,
    reconstruct,
    render_scenes,
    sample_scenes,
    shuffled_batches,
    signs_of_binding,
)
from experiments.evaluation.summary import summarise, summary_lines
from experiments.systems import build
from pyro_lom.data.minibatches import float_images
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.system import infer, result
from pyro_lom.training.runs import Run

GENERATED = {"samples", "samples_tau1", "shuffled_posterior"}
OF_ANY_SYSTEM = {
    "kl_slots",
    "binding_largest",
    "binding_stability",
    "binding_sameness",
    "binding_explained",
    "binding_explainable",
    "binding_scattered",
}
OF_ANY_SYSTEM_ON_LABELS = {"ari_fg_encoder", "ari_all_encoder", "ari_fg_kmeans_rgb", "ari_fg_untrained"}
OF_A_LOM = {"kl_scene", "kl_slots_other_scene"}
# What summary.json had before the system's options moved, but for what the command itself adds.
PROMISED = [
    "ari_fg_encoder",
    "ari_fg_orderless",
    "ari_fg_ordered",
    "ari_all_encoder",
    "ari_fg_kmeans_rgb",
    "ari_fg_untrained",
    "binding_largest",
    "binding_stability",
    "binding_sameness",
    "binding_explained",
    "binding_explainable",
    "binding_scattered",
    "rmse_orderless",
    "rmse_ordered",
    "explained_variance_orderless",
    "explained_variance_ordered",
    "kl_orderless",
    "kl_scene",
    "kl_slots",
    "kl_slots_other_scene",
    "structure_real",
    "structure_cut_and_paste",
    "structure_samples",
    "structure_samples_tau1",
    "structure_orderless_prior",
    "structure_shuffled_posterior",
    "fd_pca64_samples",
    "fd_pca64_orderless_prior",
    "fd_pca64_shuffled_posterior",
]
OF_THE_COMMAND = ["images_per_second", "train_minutes", "parameters", "seed"]


NO_RUN = Run(Path("no-run"))


def of_pairs(*pairs):
    return {f"{name}_{pair}" for name in ("rmse", "explained_variance", "kl") for pair in pairs}


def of_pairs_on_labels(*pairs):
    return {f"{name}_{pair}" for name in ("ari_fg", "ari_all") for pair in pairs}


def of_generated(name, *more):
    return {f"{name}_{generated}" for generated in {*GENERATED, *more}}


BOTH = ("orderless", "ordered")
OF_A_LOM_ON_TOWERS = {"structure_real", "structure_cut_and_paste"} | of_generated("structure", "orderless_prior")


def tiny(system, image_shape=(3, 32, 32)):
    torch.manual_seed(0)
    built = build(tiny_config(system, "compact"), image_shape)
    Objective(built).eval()
    return built


def held_out_of(system, scenes, **config):
    """A system that is not trained, beside its scenes, without a run."""
    config = replace(tiny_config(system, "compact"), **config)
    return HeldOut(NO_RUN, config, tiny(system, scenes.image_shape), scenes)


@pytest.fixture
def scenes(towers):
    return towers.split("test")


def tiled(scenes, times):
    """More scenes: the same ones again."""

    def again(values):
        return np.tile(values, (times, *[1] * (np.ndim(values) - 1)))

    return replace(
        scenes,
        images=again(scenes.images),
        labels=again(scenes.labels),
        factors={name: again(values) for name, values in scenes.factors.items()},
        splits={"test": range(times * len(scenes.images))},
    )


def bare(scenes, **changes):
    """Scenes without labels and factors."""
    return replace(scenes, labels=None, factors={}, num_background=0, name="photographs", **changes)


def summary_of(system, scenes, **config):
    return summarise(held_out_of(system, scenes, **config))


def known(summary):
    assert all(value is None or math.isfinite(value) for value in summary.values())
    return {name for name, value in summary.items() if value is not None and not name.startswith("explained")}


def without_explained(keys):
    return {key for key in keys if not key.startswith("explained")}


@pytest.mark.parametrize("lom", ["lom-genesis-v2", "lom-emorl"])
def test_of_a_lom_on_towers(lom, scenes):
    everything = OF_ANY_SYSTEM | OF_ANY_SYSTEM_ON_LABELS | OF_A_LOM | OF_A_LOM_ON_TOWERS
    everything |= without_explained(of_pairs(*BOTH)) | of_pairs_on_labels(*BOTH)
    summary = summary_of(lom, scenes)
    assert known(summary) == everything
    assert all(-1 <= summary[name] <= 1 for name in everything if name.startswith("ari"))
    assert all(0 <= summary[name] <= 1 for name in everything if name.startswith("structure"))
    assert all(summary[name] >= 0 for name in everything if name.startswith(("rmse", "kl")))
    assert summary["kl_ordered"] == pytest.approx(summary["kl_scene"] + summary["kl_slots"])
    # The system is as untrained as the one to compare with. What is real stands, what is cut and pasted does not.
    assert summary["ari_fg_encoder"] == pytest.approx(summary["ari_fg_untrained"], abs=0.1)
    assert summary["structure_real"] > 0.9 > 0.5 > summary["structure_cut_and_paste"]


def test_it_computes_its_list_of_the_metrics_of_evaluate(scenes, monkeypatch):
    assert set(summary.METRICS) <= set(metrics.METRICS)
    computed = []

    def measure(name, held_out, settings):
        computed.append(name)
        if name == "kl":
            raise UserError("the data lack what it needs")
        return {f"{name}_there": 1.0, f"{name}_lacking": "no masks"}

    monkeypatch.setattr(summary, "measure", measure)
    found = summary_of("lom-genesis-v2", scenes)
    assert tuple(computed) == summary.METRICS
    expected = {name: {f"{name}_there": 1.0, f"{name}_lacking": None} for name in computed if name != "kl"}
    assert found == {key: value for part in expected.values() for key, value in part.items()}


def test_numbers_are_those_of_evaluate(scenes):
    """The end of a run has no metrics of its own: its numbers are equal to those that the metrics return."""
    held_out = held_out_of("lom-genesis-v2", scenes)
    found = summarise(held_out)
    for name in set(summary.METRICS) - {"fd-pca64", "gap"}:
        for key, value in metrics.measure(name, held_out, {"temperature": 0.8}).items():
            assert found[key] == value


def test_the_keys_of_before(scenes, finished):
    many = tiled(scenes, 5)
    found = summary_of("lom-genesis-v2", many)
    assert [key for key in PROMISED if found.get(key) is None] == []
    of_the_run = Run(finished).read_json("summary.json")
    assert [key for key in OF_THE_COMMAND if key not in of_the_run] == []
    lacking = [key for key in PROMISED if key not in of_the_run]
    assert lacking == [key for key in PROMISED if key.startswith("fd")]  # 16 images are too few


@pytest.mark.parametrize("system", ["autoregressive-emorl", "scene-autoregressive-emorl"])
def test_of_an_autoregressive_prior(system, scenes):
    """It has all that a LOM has; without a scene latent there is no KL of it."""
    summary, lom = summary_of(system, scenes), summary_of("lom-emorl", scenes)
    assert known(summary) == known(lom) - (OF_A_LOM if system == "autoregressive-emorl" else set())
    of_scene = 0 if system == "autoregressive-emorl" else summary["kl_scene"]
    assert summary["kl_ordered"] == pytest.approx(of_scene + summary["kl_slots"])


def test_of_sri(scenes):
    """It has all that a LOM has, and the KLs are those of the plain ELBO, without the rollout."""
    summary = summary_of("sri-genesis-v2", scenes)
    assert known(summary) == known(summary_of("lom-genesis-v2", scenes))
    assert summary["kl_ordered"] == pytest.approx(summary["kl_scene"] + summary["kl_slots"])


@pytest.mark.parametrize("orderless", ["genesis-v2", "emorl"])
def test_of_an_orderless_model_alone(orderless, scenes):
    summary = summary_of(orderless, scenes)
    assert known(summary) == (
        OF_ANY_SYSTEM
        | OF_ANY_SYSTEM_ON_LABELS
        | without_explained(of_pairs("model"))
        | of_pairs_on_labels("model")
        | {"structure_real", "structure_cut_and_paste"}
        | of_generated("structure")
    )
    assert not OF_A_LOM & set(summary) and not any("order" in key for key in summary)
    assert summary["kl_model"] == summary["kl_slots"]


def test_without_labels(scenes):
    summary = summary_of("lom-genesis-v2", bare(scenes))
    assert known(summary) == OF_ANY_SYSTEM | OF_A_LOM | without_explained(of_pairs(*BOTH))
    assert not any(key.startswith(("ari", "structure")) for key in summary)


def test_with_labels_but_no_scene_of_two_objects(scenes):
    alone = replace(scenes, labels=np.minimum(scenes.labels, scenes.num_background))
    summary = summary_of("lom-genesis-v2", alone)
    unknown = {name for name, value in summary.items() if value is None}
    assert unknown == {name for name in summary if name.startswith("ari_fg")}
    assert {"ari_fg_encoder", "ari_fg_orderless", "ari_fg_ordered", "ari_fg_kmeans_rgb", "ari_fg_untrained"} == unknown
    assert summary["ari_all_encoder"] is not None


@pytest.mark.parametrize("num_scenes", [1, 2, 3])
def test_of_very_few_scenes(scenes, num_scenes):
    few = bare(scenes, images=scenes.images[:num_scenes], splits={"test": range(num_scenes)})
    summary = summary_of("lom-genesis-v2", few)
    expected = OF_ANY_SYSTEM | OF_A_LOM | without_explained(of_pairs(*BOTH))
    if num_scenes == 1:  # there is no other scene
        expected = {name for name in expected if not name.startswith("binding") and name != "kl_slots_other_scene"}
    assert known(summary) == expected


def test_images_that_are_all_alike_have_no_variance_to_explain(scenes):
    flat = bare(scenes, images=np.full_like(scenes.images, 77))
    summary = summary_of("lom-genesis-v2", flat)
    assert summary["explained_variance_orderless"] is None and summary["rmse_orderless"] > 0


def test_of_more_scenes_than_components(scenes):
    many = bare(tiled(scenes, 5))
    summary = summary_of("lom-genesis-v2", many)
    of_many = of_generated("fd_pca64", "orderless_prior")
    assert known(summary) == OF_ANY_SYSTEM | OF_A_LOM | without_explained(of_pairs(*BOTH)) | of_many
    assert all(summary[name] > 0 for name in of_many)


def test_grey_images(scenes):
    grey = replace(scenes, images=scenes.images[..., :1], factors={}, name="grey")
    expected = OF_ANY_SYSTEM | OF_ANY_SYSTEM_ON_LABELS | OF_A_LOM
    expected |= without_explained(of_pairs(*BOTH)) | of_pairs_on_labels(*BOTH)
    assert known(summary_of("lom-genesis-v2", grey)) == expected


def test_numbers_repeat(scenes):
    """They depend on nothing that was drawn before; the run's seed decides about the untrained system alone."""
    first = summary_of("lom-genesis-v2", scenes)
    torch.manual_seed(7)
    assert summary_of("lom-genesis-v2", scenes) == first
    other = summary_of("lom-genesis-v2", scenes, seed=1)
    assert {key for key in first if first[key] != other[key]} == {"ari_fg_untrained"}


def test_of_a_system_that_renders_part_of_a_batch_in_training(scenes):
    """Numbers are those of whole batches."""
    torch.manual_seed(0)
    config = tiny_config("lom-genesis-v2", "compact", rendered=5)
    system = build(config, scenes.image_shape)
    model, guide, *_ = system["ordered"]
    terms = TraceScene_ELBO().terms(model, guide, float_images(scenes.images))
    assert [len(term) for term in (terms.log_likelihood["x"], terms.kl["s"], terms.kl["z"])] == [5, 16, 16]
    held_out = HeldOut(NO_RUN, config, system, scenes)
    assert known(summarise(held_out)) >= OF_A_LOM and {len(kl) for kl in held_out.kls.values()} == {16}


@pytest.mark.parametrize("lom", ["lom-genesis-v2", "lom-emorl"])
def test_more_scenes_than_a_batch(lom, scenes):
    system = tiny(lom)
    images = float_images(scenes.images).repeat(9, 1, 1, 1)  # 144
    batches = list(infer_batches(system, images))
    assert [len(batch) for batch, _ in batches] == [128, 16]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), images)
    for batch, received in batches:
        for name, pair in system.items():
            assert len(reconstruct(pair, batch, received[name]).image) == len(batch)
        assert len(system["orderless"].guide.log_masks(received["orderless"])) == len(batch)
    assert signs_of_binding(system, images) is not None
    assert sample_scenes(result(system), 130, 0.8).image.shape == (130, 3, 32, 32)


def test_the_temperature_is_felt():
    spread = []
    for tau in (0.0001, 0.5, 1.0):
        torch.manual_seed(0)
        spread.append(sample_scenes(result(tiny("lom-genesis-v2")), 50, tau).image.std(0).mean())
    assert spread[0] < 0.01 * spread[1] < 0.01 * spread[2]


@pytest.mark.parametrize("system", ["lom-genesis-v2", "lom-emorl"])
def test_the_shuffled_posterior_is_of_the_same_slots(system, scenes):
    system = tiny(system)
    pair, images = system["orderless"], float_images(scenes.images)
    slots = latents(pair.model, guide_trace(pair, images, infer(system, images)["orderless"]))
    (shuffled,) = shuffled_batches(pair, slots)
    with torch.no_grad():
        components = pair.model.render(slots).components
    assert shuffled.components.shape == components.shape
    assert not torch.allclose(shuffled.components, components, rtol=1e-3, atol=1e-3)
    sums = [part.detach().flatten(2).sum(-1).flatten().sort().values for part in (shuffled.components, components)]
    torch.testing.assert_close(*sums, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("system", ["lom-genesis-v2", "scene-autoregressive-emorl"])
def test_scenes_are_rendered_at_the_means_of_slots(system):
    pair = result(tiny(system))
    scenes = prior_scenes(pair, 5)
    assert torch.equal(render_scenes(pair, scenes).image, render_scenes(pair, scenes).image)


def test_lines_have_titles_units_and_numbers():
    lines = summary_lines({"rmse_orderless": 0.125, "rmse_ordered": 0.25, "structure_samples_tau1": 0.5, "seed": 3})
    assert lines[0].split("  ")[0] == "RMSE ↓, per pixel and channel"
    assert [line.split("  ")[-1].strip() for line in lines] == [
        "orderless 0.125; ordered 0.250",
        "samples at tau 1 50.0",
        "3",
    ]
    assert summary_lines({}) == [] and summary_lines({"kl_scene": None}) == []


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
        ("autoregressive-emorl", ["reconstructions", "samples", "curves"]),
        ("scene-autoregressive-emorl", ["reconstructions", "samples", "interpolation", "curves"]),
        ("sri-genesis-v2", ["reconstructions", "samples", "interpolation", "curves"]),
    ],
)
@pytest.mark.parametrize(("channels", "step"), [(1, None), (3, 7)])
def test_pictures(system, names, channels, step, scenes, tmp_path):
    scenes = replace(scenes, images=scenes.images[..., :channels])
    paths = draw(tiny(system, scenes.image_shape), scenes, Run(tmp_path), seed=0, step=step)
    assert paths == [tmp_path / "figures" / f"{name}.png" for name in names]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    for path in paths:
        shown = opened(path)
        assert 200 < shown.shape[0] < 2000 and 500 < shown.shape[1] < 3000
        assert shown.std() > 5


def test_drawing_leaves_training_alone(scenes, tmp_path):
    """Training after a picture does not depend on whether it was drawn: every step seeds itself, parameters stay."""
    system = tiny("lom-genesis-v2")
    parts = [part for pair in system.values() for part in (pair.model, pair.guide, pair.criterion)]
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    training = [part.training for part in parts]
    draw(system, scenes, Run(tmp_path), seed=0)
    after = [part.state_dict() for part in parts]
    assert all(torch.equal(old[name], new[name]) for old, new in zip(before, after, strict=True) for name in old)
    assert [part.training for part in parts] == training
    assert all(parameter.grad is None for part in parts for parameter in part.parameters())
