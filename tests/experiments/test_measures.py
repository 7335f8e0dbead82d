"""Every metric of a run: the numbers that were promised, within their ranges, and refusals where there is no sense."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import held_out as held_out_module
from experiments.held_out import HeldOut, Reading
from experiments.measures import MEASURES, frechet_distances, measure
from pyro_lom.errors import UserError
from pyro_lom.metrics.features import EfficientNetLite0

SETTINGS = dict(temperature=0.8, likelihood_images=3, likelihood_samples=2, inception_weights=None)
SOURCES = {"encoder", "orderless", "ordered"}


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def lom(run):
    return HeldOut(run)


@pytest.fixture
def orderless(alone, tmp_path):
    return HeldOut(shutil.copytree(alone, tmp_path / "alone"))


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


def test_dci(lom):
    """Of slots that are the factors themselves, under masks that are the labels."""
    labels, factors = np.array(lom.scenes.labels), lom.scenes.factors
    slots = torch.zeros(len(lom), 5, len(factors))
    slots[:, 2:] = torch.from_numpy(np.stack(list(factors.values()), axis=-1))
    lom.reading = Reading(slots, {"orderless": labels})
    values = measure("dci", lom, SETTINGS)
    assert set(values) == {"dci_disentanglement", "dci_completeness", "dci_informativeness"}
    assert 0.5 < min(values.values()) and max(values.values()) <= 1


def test_frechet(lom):
    pytest.importorskip("efficientnet_lite_pytorch")
    values = measure("fd-efficientnet", lom, SETTINGS)
    assert 0 < values["fd_efficientnet"] < math.inf
    extractor = EfficientNetLite0(lom.device)
    (alone,) = frechet_distances(lom, extractor, [0.1])
    assert frechet_distances(lom, extractor, [0.8, 0.1]) == pytest.approx([values["fd_efficientnet"], alone])


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
    with pytest.raises(UserError, match="^structure accuracy is for scenes of one stack: 0% of the real ones show one"):
        measure("structure", lom, SETTINGS)


def test_with_one_object(lom):
    with_scenes(lom, labels=np.minimum(np.asarray(lom.scenes.labels), 2))
    assert measure("ari", lom, SETTINGS)["ari_fg_encoder"] is None  # one object says nothing of agreement
    with pytest.raises(UserError, match="^structure accuracy needs scenes of two objects or more"):
        measure("structure", lom, SETTINGS)


def test_constant_images(lom):
    with_scenes(lom, images=np.full_like(np.asarray(lom.scenes.images), 128))
    for name in ("ari", "covering", "likelihood", "slot-order"):
        assert all(value is None or math.isfinite(value) for value in measure(name, lom, SETTINGS).values())


@pytest.mark.parametrize("name", ["ari", "covering", "structure", "likelihood", "slot-order"])
def test_no_number_depends_on_what_was_asked_before(name, lom, finished, tmp_path):
    other = HeldOut(shutil.copytree(finished, tmp_path / "other"))
    torch.manual_seed(7)
    measure("slot-order", other, SETTINGS)
    assert measure(name, lom, SETTINGS) == measure(name, other, SETTINGS)


def test_a_number_is_kept_with_what_it_depends_on(lom):
    measure("ari", lom, SETTINGS)
    measure("slot-order", lom, SETTINGS)
    kept = {name: known["protocol"] for name, known in lom.run.read_json("evaluation.json").items()}
    source = {"num_images": 16, "checkpoint": "step-00000006", "data": "towers, version 2"}
    assert kept == {"ari": source, "slot-order": {"temperature": 0.8} | source}


def test_a_number_is_computed_once_and_anew_where_it_depends_on_what_changed(lom, monkeypatch):
    def counted(held_out, *, temperature):
        seen.append(temperature)
        return {"number": math.inf}

    seen = []
    monkeypatch.setitem(MEASURES, "ari", counted)
    for temperature, samples in ((0.8, 2), (0.8, 5), (1.0, 5), (1.0, 2)):
        settings = SETTINGS | {"temperature": temperature, "likelihood_samples": samples}
        assert measure("ari", lom, settings) == {"number": None}
    assert seen == [0.8, 1.0]


def test_scenes_are_counted_once_whatever_the_batches(run, monkeypatch):
    monkeypatch.setattr(held_out_module, "BATCH", 5)
    few = HeldOut(run, num_images=11)
    assert len(few) == 11 and len(few.reading.slots) == 11
    assert sum(len(sample.image) for sample in few.samples(few.system.final, 11, 0.8, "sampling")) == 11
