"""Every metric of a run: the numbers that were promised, within their ranges, and refusals where there is no sense."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import held_out as held_out_module
from experiments.held_out import HeldOut
from experiments.measures import Settings, frechet_by_temperature, measure
from pyro_lom.errors import UserError

SETTINGS = Settings(num_images=16, temperature=0.8, likelihood_images=3, likelihood_samples=2, inception_weights=None)
SOURCES = {"encoder", "orderless", "ordered"}


@pytest.fixture
def lom(finished):
    return HeldOut(finished)


@pytest.fixture
def orderless(alone):
    return HeldOut(alone)


def with_scenes(held_out, **changes):
    held_out.scenes = replace(held_out.scenes, **changes)
    return held_out


def test_it_reads_the_test_split(lom, towers):
    assert len(lom) == 16 and (lom.scenes.images == towers.images[48:]).all()
    assert list(lom.pairs) == ["orderless", "ordered"]


def test_segments_are_those_of_every_source(lom, orderless):
    assert set(lom.reading.segments) == SOURCES and set(orderless.reading.segments) == SOURCES - {"ordered"}
    for segments in lom.reading.segments.values():
        assert segments.shape == (16, 32, 32) and segments.dtype == np.uint8 and segments.max() < 3
    assert lom.reading.slots.shape == (16, 3, 8)


@pytest.mark.parametrize("system", ["lom", "orderless"])
@pytest.mark.parametrize(("name", "keys"), [("ari", ["ari_fg", "ari_all"]), ("covering", ["mean_iou", "sc", "msc"])])
def test_segmentation_by_source(system, name, keys, request):
    held_out = request.getfixturevalue(system)
    values = measure(name, held_out, SETTINGS)
    assert set(values) == {f"{key}_{source}" for key in keys for source in held_out.reading.segments}
    assert all(-1 <= value <= 1 for value in values.values())


def test_a_system_without_encoder_masks_reports_the_others(lom, monkeypatch):
    infer = lom.reader.infer
    monkeypatch.setattr(lom.reader, "infer", lambda images: infer(images)._replace(log_masks=None))
    assert set(measure("ari", lom, SETTINGS)) == {
        f"{key}_{source}" for key in ("ari_fg", "ari_all") for source in ("orderless", "ordered")
    }


@pytest.mark.parametrize("system", ["lom", "orderless"])
def test_structure(system, request):
    values = measure("structure", request.getfixturevalue(system), SETTINGS)
    assert values["structure_labels_intact"] == 1 and values["structure_labels_broken"] == 0
    assert all(0 <= value <= 1 for value in values.values()) and len(values) == 6


def test_likelihood(lom, orderless):
    values = measure("likelihood", lom, SETTINGS)
    parts = {"elbo", "kl_scene", "kl_slots", "log_likelihood"}
    assert set(values) == {f"{part}_{pair}" for part in parts for pair in ("orderless", "ordered")}
    assert values["kl_scene_orderless"] == 0 < values["kl_scene_ordered"]
    assert set(measure("likelihood", orderless, SETTINGS)) == {f"{part}_orderless" for part in parts}


def test_slot_order(lom):
    values = measure("slot-order", lom, SETTINGS)
    assert 0 <= values["slot_order"] <= 1 and values["slot_order_chance"] == pytest.approx(1 / 3)


def test_dci(lom, towers):
    try:
        values = measure("dci", lom, SETTINGS)
    except UserError as refusal:  # an untrained model may draw too few objects
        assert "DCI needs 20 objects" in str(refusal)
    else:
        assert set(values) == {"dci_disentanglement", "dci_completeness", "dci_informativeness"}


def test_frechet(lom):
    pytest.importorskip("efficientnet_lite_pytorch")
    values = measure("fd-efficientnet", lom, SETTINGS)
    assert 0 < values["fd_efficientnet"] < math.inf
    assert frechet_by_temperature("fd_efficientnet", lom, [0.8, 0.1]) == [
        pytest.approx(values["fd_efficientnet"]),
        pytest.approx(frechet_by_temperature("fd_efficientnet", lom, [0.1])[0]),
    ]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("fd-pca64", "64 principal components need at least 65 images, not 16: use more images"),
        ("fid", "FID needs the weights of Inception-v3"),
    ],
)
def test_what_cannot_be_is_refused(name, line, lom):
    with pytest.raises(UserError, match=f"^{line}"):
        measure(name, lom, SETTINGS)


@pytest.mark.parametrize("name", ["ari", "covering", "structure", "dci"])
def test_without_labels(name, lom):
    with pytest.raises(UserError, match="^the data set has no labels$"):
        measure(name, with_scenes(lom, labels=None), SETTINGS)


def test_without_factors(lom):
    of_scenes = {"camera": np.ones((len(lom.scenes.images), 1), np.float32)}
    for factors in ({}, of_scenes):
        with pytest.raises(UserError, match="^DCI needs factors/<name> of objects in the data set, and it has none$"):
            measure("dci", with_scenes(lom, factors=factors), SETTINGS)


def test_without_objects(lom):
    background = np.minimum(np.asarray(lom.scenes.labels), 1)
    with_scenes(lom, labels=background)
    assert measure("ari", lom, SETTINGS)["ari_fg_encoder"] is None
    assert measure("covering", lom, SETTINGS)["sc_encoder"] is None
    with pytest.raises(UserError, match="^structure accuracy needs scenes of two objects or more"):
        measure("structure", lom, SETTINGS)


def test_constant_images(lom):
    with_scenes(lom, images=np.full_like(np.asarray(lom.scenes.images), 128))
    for name in ("ari", "covering", "likelihood"):
        assert all(value is None or math.isfinite(value) for value in measure(name, lom, SETTINGS).values())


@pytest.mark.parametrize("name", ["ari", "covering", "structure", "likelihood", "slot-order"])
def test_no_number_depends_on_what_was_asked_before(name, finished):
    first, other = HeldOut(finished), HeldOut(finished)
    torch.manual_seed(7)
    measure("slot-order", other, SETTINGS)
    assert measure(name, first, SETTINGS) == measure(name, other, SETTINGS)


def test_batches_make_no_difference(finished, monkeypatch):
    """But for noise, which is drawn batch by batch: the order of slots and everything that is not random agrees."""
    monkeypatch.setattr(held_out_module, "BATCH", 5)
    few = HeldOut(finished, num_images=11)
    assert len(few) == 11 and len(few.reading.slots) == 11
    assert sum(len(sample.image) for sample in few.samples(few.system.final, 11, 0.8, "sampling")) == 11
