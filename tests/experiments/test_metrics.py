"""Every metric of a run: its keys, within their ranges, words for each, and refusals if the data lack what it needs."""

import math
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.evaluation import held_out as held_out_module
from experiments.evaluation.held_out import HeldOut, Reading, checksum
from experiments.evaluation.metrics import METRICS, frechet_distances, measure
from experiments.evaluation.summary import summary_lines
from experiments.evaluation.tables import TABLES, Row, markdown
from experiments.evaluation.words import QUANTITIES, number, split, title
from experiments.report import page
from pyro_lom.errors import UserError
from pyro_lom.metrics.features import EfficientNetLite0
from pyro_lom.metrics.stacks import break_stacks
from pyro_lom.metrics.structure import cut_and_paste
from pyro_lom.types import Rendering

SETTINGS = dict(temperature=0.8, likelihood_images=3, likelihood_samples=2, inception_weights=None)
SOURCES = {"encoder", "orderless", "ordered"}


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def lom(run):
    return HeldOut.open(run)


@pytest.fixture
def orderless(alone, tmp_path):
    return HeldOut.open(shutil.copytree(alone, tmp_path / "alone"))


def with_scenes(held_out, **changes):
    held_out.scenes = replace(held_out.scenes, **changes)
    return held_out


def tiled(held_out, times):
    """More held-out scenes: the same ones again."""

    def again(values):
        return np.tile(np.asarray(values), (times, *[1] * (np.ndim(values) - 1)))

    scenes = held_out.scenes
    factors = {name: again(values) for name, values in scenes.factors.items()}
    return with_scenes(held_out, images=again(scenes.images), labels=again(scenes.labels), factors=factors)


def test_it_reads_the_test_split(lom, towers):
    assert len(lom) == 16 and (lom.scenes.images == towers.images[48:]).all()
    assert list(lom.system) == ["orderless", "ordered"] and lom.final is lom.system["ordered"]
    assert lom.source == ("orderless", lom.system["orderless"])


def test_segments_are_those_of_every_source(lom, orderless):
    assert set(lom.reading.segments) == SOURCES and set(orderless.reading.segments) == {"encoder", "model"}
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
    monkeypatch.setattr(lom.source[1].guide, "log_masks", lambda inferred: None)
    assert set(measure("ari", lom, SETTINGS)) == {
        f"{key}_{source}" for key in ("ari_fg", "ari_all") for source in ("orderless", "ordered")
    }
    assert measure("binding", lom, SETTINGS) == {"binding_largest": "no masks"}
    lom.__dict__["untrained"] = lom.system
    assert measure("baselines", lom, SETTINGS)["ari_fg_untrained"] == "no masks"


def test_cells_of_pairs_without_masks_have_the_reason(lom, monkeypatch):
    model = lom.final.model
    monkeypatch.setattr(model, "render", lambda slots, render=model.render: Rendering(render(slots).image))
    found = {name: measure(name, lom, SETTINGS) for name in ("ari", "covering", "stacks", "slot-order", "structure")}
    for name in ("ari_fg", "ari_all"):
        assert found["ari"][f"{name}_ordered"] == "no masks" and isinstance(found["ari"][f"{name}_orderless"], float)
    for name in ("mean_iou", "sc", "msc"):
        assert found["covering"][f"{name}_ordered"] == "no masks"
    assert found["stacks"] == {"stacks_samples": "no masks"} and found["slot-order"] == {"slot_order": "no masks"}
    assert isinstance(found["structure"]["structure_samples"], float)


@pytest.mark.parametrize("system", ["lom", "orderless"])
def test_baselines(system, request):
    values = measure("baselines", request.getfixturevalue(system), SETTINGS)
    assert set(values) == {"ari_fg_kmeans_rgb", "ari_fg_untrained"}
    assert all(-1 <= value <= 1 for value in values.values())


@pytest.mark.parametrize("system", ["lom", "orderless"])
def test_structure(system, request):
    values = measure("structure", request.getfixturevalue(system), SETTINGS)
    generated = {"samples", "samples_tau1", "shuffled_posterior"} | ({"orderless_prior"} if system == "lom" else set())
    assert set(values) == {f"structure_{name}" for name in generated | {"real", "cut_and_paste"}}
    assert all(0 <= value <= 1 for value in values.values())
    assert values["structure_real"] > 0.9 > 0.5 > values["structure_cut_and_paste"]


@pytest.mark.parametrize("system", ["lom", "orderless"])
def test_stacks(system, request):
    values = measure("stacks", request.getfixturevalue(system), SETTINGS)
    assert values["stacks_labels_intact"] == 1 and values["stacks_labels_broken"] == 0
    assert all(0 <= value <= 1 for value in values.values()) and len(values) == 5


def test_structure_is_a_rule_on_pixels_and_stacks_a_rule_on_masks(lom, monkeypatch):
    """Images and masks that contradict each other: each rule sees its own."""
    scenes = lom.scenes
    intact, labels = np.array(scenes.images), np.array(scenes.labels)
    _, broken = break_stacks(intact, labels, num_background=scenes.num_background, seed=0)
    images = torch.from_numpy(intact).movedim(-1, -3) / 255

    def drawn(images, labels):
        log_masks = torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 6).movedim(-1, -3).unsqueeze(-3)
        rendering = Rendering(images, None, (log_masks + 1e-9).log())
        monkeypatch.setattr(HeldOut, "samples", lambda *_, **__: iter([rendering]))
        found = [measure(name, lom, SETTINGS)[f"{name}_samples"] for name in ("structure", "stacks")]
        monkeypatch.undo()
        return found

    pasted = torch.from_numpy(cut_and_paste(images.numpy()))
    assert drawn(images, labels)[0] > 0.9 and drawn(images, labels)[1] == 1
    assert drawn(images, broken)[0] > 0.9 and drawn(images, broken)[1] == 0
    assert drawn(pasted, labels)[0] < 0.5 and drawn(pasted, labels)[1] == 1


def test_structure_needs_no_labels_and_stacks_need_no_towers(lom):
    of_labels = measure("structure", lom, SETTINGS)
    assert measure("structure", with_scenes(lom, labels=None), SETTINGS) == of_labels
    labels = np.asarray(HeldOut.open(lom.run.folder).scenes.labels)
    with_scenes(lom, labels=labels, name="shapestacks", factors={})
    assert measure("stacks", lom, SETTINGS)["stacks_labels_intact"] == 1
    with pytest.raises(UserError, match="^structure is a rule for towers, and the data are shapestacks$"):
        measure("structure", lom, SETTINGS)


def test_reconstruction(lom, orderless):
    values = measure("reconstruction", lom, SETTINGS)
    assert set(values) == {f"{name}_{pair}" for name in ("rmse", "explained_variance") for pair in lom.system}
    images = np.asarray(lom.scenes.images) / 255
    variance = np.square(images - images.mean(0)).mean()
    for pair in lom.system:
        assert values[f"explained_variance_{pair}"] == pytest.approx(1 - values[f"rmse_{pair}"] ** 2 / variance, 1e-4)
    assert set(measure("reconstruction", orderless, SETTINGS)) == {"rmse_model", "explained_variance_model"}


def test_likelihood_and_kl(lom, orderless):
    values = measure("likelihood", lom, SETTINGS)
    assert set(values) == {f"{part}_{pair}" for part in ("elbo", "log_likelihood") for pair in lom.system}
    kls = measure("kl", lom, SETTINGS)
    assert set(kls) == {"kl_orderless", "kl_ordered", "kl_scene", "kl_slots", "kl_slots_other_scene"}
    assert all(value > 0 for value in kls.values())
    assert kls["kl_ordered"] == pytest.approx(kls["kl_scene"] + kls["kl_slots"])
    assert set(measure("likelihood", orderless, SETTINGS)) == {"elbo_model", "log_likelihood_model"}
    kls = measure("kl", orderless, SETTINGS)  # it has no scene latent
    assert set(kls) == {"kl_model", "kl_slots"} and kls["kl_model"] == kls["kl_slots"] > 0


def test_slot_order(lom):
    values = measure("slot-order", lom, SETTINGS)
    assert 0 <= values["slot_order"] <= 1 and values["slot_order_chance"] == pytest.approx(1 / 3)


def test_dci(lom):
    """The slots are the factors themselves, and the masks are the labels."""
    labels, factors = np.array(lom.scenes.labels), lom.scenes.factors
    slots = torch.zeros(len(lom), 5, len(factors))
    slots[:, 2:] = torch.from_numpy(np.stack(list(factors.values()), axis=-1))
    lom.reading = Reading(slots, {"orderless": labels}, {})
    values = measure("dci", lom, SETTINGS)
    assert set(values) == {"dci_disentanglement", "dci_completeness", "dci_informativeness"}
    assert 0.5 < min(values.values()) and max(values.values()) <= 1


def test_frechet(lom):
    pytest.importorskip("efficientnet_lite_pytorch")
    values = measure("fd-efficientnet", lom, SETTINGS)
    assert set(values) == {"fd_efficientnet_samples"} and 0 < values["fd_efficientnet_samples"] < math.inf
    extractor = EfficientNetLite0(lom.device)
    (alone,) = frechet_distances(lom, extractor, [0.1])
    both = [values["fd_efficientnet_samples"], alone]
    assert frechet_distances(lom, extractor, [0.8, 0.1]) == pytest.approx(both)


def test_frechet_of_pixels(lom):
    values = measure("fd-pca64", tiled(lom, 5), SETTINGS)
    sets = ("samples", "samples_tau1", "orderless_prior", "shuffled_posterior")
    assert set(values) == {f"fd_pca64_{name}" for name in sets} and all(value > 0 for value in values.values())


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


@pytest.mark.parametrize("name", ["ari", "baselines", "covering", "stacks", "dci"])
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
    assert measure("ari", lom, SETTINGS)["ari_fg_encoder"] == "no objects in the labels"
    assert measure("covering", lom, SETTINGS)["sc_encoder"] is None
    with pytest.raises(UserError, match="^stacks is for scenes of one stack: 0% of the real ones show one"):
        measure("stacks", lom, SETTINGS)


def test_with_one_object(lom):
    with_scenes(lom, labels=np.minimum(np.asarray(lom.scenes.labels), 2))
    assert measure("ari", lom, SETTINGS)["ari_fg_encoder"] is None  # agreement needs two objects
    with pytest.raises(UserError, match="^stacks needs scenes of two objects or more"):
        measure("stacks", lom, SETTINGS)


def test_constant_images(lom):
    with_scenes(lom, images=np.full_like(np.asarray(lom.scenes.images), 128))
    for name in ("ari", "baselines", "covering", "binding", "reconstruction", "kl", "likelihood", "slot-order"):
        assert all(value is None or math.isfinite(value) for value in measure(name, lom, SETTINGS).values())


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"fid", "fd-pca64", "fd-efficientnet", "dci"}))
def test_no_number_depends_on_what_was_computed_before(name, lom, finished, tmp_path):
    other = HeldOut.open(shutil.copytree(finished, tmp_path / "other"))
    torch.manual_seed(7)
    measure("slot-order", other, SETTINGS)
    assert measure(name, lom, SETTINGS) == measure(name, other, SETTINGS)


def test_a_number_is_kept_with_what_it_depends_on(lom):
    measure("ari", lom, SETTINGS, remember=True)
    measure("slot-order", lom, SETTINGS, remember=True)
    kept = {name: known["protocol"] for name, known in lom.run.read_json("evaluation.json").items()}
    source = {"num_images": 16} | lom.provenance
    assert source.keys() == {"num_images", "checkpoint", "config", "data"}
    assert kept == {"ari": source, "slot-order": {"temperature": 0.8} | source}


def test_a_number_is_computed_once_and_anew_where_it_depends_on_what_changed(lom, monkeypatch):
    def counted(held_out, *, temperature):
        seen.append(temperature)
        return {"number": math.inf}

    seen = []
    monkeypatch.setitem(METRICS, "ari", counted)
    for temperature, samples in ((0.8, 2), (0.8, 5), (1.0, 5), (1.0, 2)):
        settings = SETTINGS | {"temperature": temperature, "likelihood_samples": samples}
        assert measure("ari", lom, settings, remember=True) == {"number": None}
    assert seen == [0.8, 1.0]


def test_the_checksum_is_that_of_everything_that_a_number_can_depend_on(lom):
    scenes = lom.scenes
    images, labels = np.array(scenes.images), np.array(scenes.labels)
    factors = {name: np.array(values) for name, values in scenes.factors.items()}
    assert checksum(replace(scenes, images=images, labels=labels, factors=factors)) == checksum(scenes)
    reordered = dict(reversed(factors.items()))
    assert checksum(replace(scenes, factors=reordered)) == checksum(scenes)
    images[3, 4, 5, 0] ^= 1
    labels[15, 31, 31] ^= 1
    name = next(iter(factors))
    factors[name][15, -1] += 1
    changes = [
        dict(images=images),
        dict(labels=labels),
        dict(labels=None),
        dict(factors=factors),
        dict(factors={}),
        dict(num_background=scenes.num_background + 1),
        dict(name="rooms"),
    ]
    sums = {checksum(scenes), checksum(scenes.split("test", 15))}
    sums |= {checksum(replace(scenes, **change)) for change in changes}
    assert len(sums) == 2 + len(changes)


def test_scenes_are_counted_once_whatever_the_batches(run, monkeypatch):
    monkeypatch.setattr(held_out_module, "BATCH", 5)
    few = HeldOut.open(run, num_images=11)
    assert len(few) == 11 and len(few.reading.slots) == 11
    assert {len(errors) for errors in few.reading.squared_errors.values()} == {11}
    assert {len(kl) for kl in few.kls.values()} >= {11}
    assert sum(len(sample.image) for sample in few.samples(few.final, 0.8, "sampling", num_scenes=11)) == 11
    assert sum(len(sample.image) for sample in few.samples(few.final, 0.8, "sampling")) == 11


@pytest.fixture
def everything(lom, monkeypatch):
    """The values of every metric, and the run; features of Inception are replaced, because its weights are large."""
    lom = tiled(lom, 5)
    monkeypatch.setattr("pyro_lom.metrics.dci.MIN_OBJECTS", 10)  # this decoder draws few
    monkeypatch.setitem(METRICS, "fid", lambda held_out: {"fid_samples": 12.5})
    try:
        import efficientnet_lite_pytorch  # noqa: F401
    except ImportError:
        monkeypatch.setitem(METRICS, "fd-efficientnet", lambda held_out: {"fd_efficientnet_samples": 2.5})
    values = {name: measure(name, lom, SETTINGS, remember=True) for name in METRICS}
    assert all(isinstance(value, float) for found in values.values() for value in found.values())
    return lom, {key: value for found in values.values() for key, value in found.items()}


def test_every_key_has_words_and_all_places_use_the_same(everything):
    """A key's title and unit are the same in tables, on the report page and at the end of a run."""
    lom, values = everything
    for key in [*values, "images_per_second", "train_minutes", "parameters", "seed"]:
        name, of = split(key)
        quantity = QUANTITIES[name]
        compared_with = any(word in key for word in ("kmeans", "untrained", "broken", "cut_and_paste", "chance"))
        head = quantity.title.rstrip(" ↑↓") if compared_with else quantity.title  # an arrow points to better values
        assert title(key, unit=False) == (f"{head}, {of}" if of else head)
        assert title(key) == title(key, unit=False) + (f" ({quantity.unit})" if quantity.unit else "")
        assert "_" not in title(key) and "_" not in number(key, 1.0)
    assert len({title(key) for key in values}) == len(values)
    with_unit = {name for name, quantity in QUANTITIES.items() if quantity.unit}
    of_likelihoods = {"kl", "kl_scene", "kl_slots", "elbo", "elbo_gap", "log_likelihood"}
    assert {split(key)[0] for key in values} & with_unit == {"rmse", "structure", "stacks"} | of_likelihoods

    row = Row(Path("runs/00000-tiny-seed0"), lom.config, "step-00000006", len(lom), values)
    tables = [part for part in markdown([row], command=str).split("\n\n") if "|" in part or "**" in part]
    heads = {head.strip("*"): body.splitlines()[0] for head, body in zip(tables[::2], tables[1::2], strict=False)}
    assert [head.partition(", %")[0].partition(", nats")[0] for head in heads if head != "Made by"] == list(TABLES)
    columns = {cell.strip(): head for head, line in heads.items() for cell in line.strip("|").split("|")}
    for key in values:
        head = columns.get(title(key)) or columns[title(key, unit=False)]
        assert title(key) in columns or head.endswith(QUANTITIES[split(key)[0]].unit)

    shown = page(lom.run)
    for key, value in values.items():
        assert f"<tr><td>{escape(title(key))}</td>" in shown and number(key, value) in shown

    lines = summary_lines(values)
    assert len(lines) == len({split(key)[0] for key in values})
    for key, value in values.items():
        name, of = split(key)
        head = ", ".join(filter(None, QUANTITIES[name][:2]))
        (line,) = [line for line in lines if line.startswith(f"{head}  ")]
        assert f"{of} {number(key, value)}".strip() in line.removeprefix(head).strip().split("; ")
