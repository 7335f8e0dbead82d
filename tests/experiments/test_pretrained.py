"""Packed runs need no data set, and runs of the project are found by name."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from experiments import load_run, loading
from experiments.config import to_dict
from experiments.evaluate import main as evaluate_main
from experiments.evaluation.tables import Row, by_configuration
from experiments.fit import main as fit_main
from experiments.interpolate import main as interpolate_main
from experiments.report import main as report_main
from experiments.retrieve import main as retrieve_main
from experiments.sample import main as sample_main
from experiments.systems import preset
from experiments.weights import _without_places
from experiments.weights import main as weights_main
from pyro_lom.training.runs import Run


@pytest.fixture
def packed(finished, command, tmp_path):
    """A packed copy of a run, which is in the folder of the tests."""
    assert command(weights_main, "pack", finished, "small") == (0, "small\n", "")
    return tmp_path / "small"


@pytest.fixture
def named(packed, monkeypatch, tmp_path):
    """The name of the packed run as one of the project's; the data set of the run does not exist."""
    folder = tmp_path / "project" / "pretrained"
    folder.mkdir(parents=True)
    packed.rename(folder / "tiny")
    monkeypatch.setattr(loading, "PRETRAINED", folder)
    return "pretrained/tiny"


def test_a_packed_run_has_the_weights_and_scenes_of_the_run(packed, finished):
    config, system, scenes = load_run(finished)
    packed_config, packed_system, kept = load_run(packed)
    held_out = scenes.split("test")
    assert kept.splits == {"test": range(16)}
    np.testing.assert_array_equal(np.asarray(kept.images), held_out.images)
    np.testing.assert_array_equal(np.asarray(kept.labels), held_out.labels)
    assert (packed_config.model, packed_config.train) == (config.model, config.train)
    for name, tensor in system["ordered"].model.state_dict().items():
        found = packed_system["ordered"].model.state_dict()[name]
        assert found.dtype == tensor.dtype and (found == tensor.half()).all()
    assert (packed / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()


@pytest.mark.parametrize("summary", ["[]", '{"a": ' * 900 + "1" + "}" * 900, '{"rmse_ordered": [1]}'])
def test_a_run_with_a_damaged_summary_is_not_packed(finished, refusal, tmp_path, summary):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").write_text(summary)
    assert refusal(weights_main, "pack", run, "small").startswith(f"{run}/summary.json cannot be read: ")
    assert not Path("small").exists()


def test_damaged_imported_tensors_are_not_packed(finished, refusal, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "published.safetensors").write_bytes(bytes(100))
    line = f"{run}/published.safetensors is damaged: import the weights again"
    assert refusal(weights_main, "pack", run, "small") == line


def test_a_packed_run_names_no_place_of_the_machine(alone, tiny, command):
    code, _, err = command(fit_main, *tiny, "--orderless", alone)
    assert code == 0, err
    (run,) = Path("runs").iterdir()
    made_in = json.loads((run / "environment.json").read_text()) | {"job": "a-job host 3"}
    (run / "environment.json").write_text(json.dumps(made_in))
    assert str(alone) in (run / "config.json").read_text()
    assert command(weights_main, "pack", run, "small")[0] == 0
    texts = [path.read_text() for path in Path("small").rglob("*.json")]
    with h5py.File("small/scenes.h5") as file:
        texts.append(str(dict(file.attrs)))
    assert len(texts) >= 4 and not any(
        place in text for text in texts for place in ("a-job", "/tmp", str(alone.parents[1]))
    )
    config = json.loads(Path("small/config.json").read_text())
    assert (config["data"]["path"], config["orderless"]) == ("small.h5", alone.name)


def test_a_packed_run_keeps_the_path_of_its_presets_data():
    config = preset("genesis-v2-objects-room")
    for path, expected in {
        "/home/a/data/objects-room.h5": "data/objects-room.h5",
        "/home/a/mine.h5": "mine.h5",
    }.items():
        there = replace(config, data=replace(config.data, path=path))
        assert _without_places(to_dict(there), there)["data"]["path"] == expected


def test_at_most_64_scenes_are_packed(finished, command, monkeypatch):
    monkeypatch.setattr("experiments.weights._NUM_PACKED", 5)
    command(weights_main, "pack", finished, "small")
    assert len(load_run("small")[2].images) == 5


def test_commands_open_runs_of_the_project_by_name(named, command, tmp_path):
    folder = loading.PRETRAINED / "tiny"
    assert command(sample_main, named, "--num-scenes", "4")[0] == 0
    assert (folder / "figures" / "samples-ordered-slots.png").is_file()
    code, out, _ = command(evaluate_main, named, "--metrics", "ari", "reconstruction", "kl")
    assert code == 0 and "ARI" in out
    assert command(interpolate_main, named)[0] == 0
    assert command(report_main, named)[0] == 0
    assert not (tmp_path / "pretrained").exists()


def test_a_run_folder_here_comes_first(named, finished, command, tmp_path):
    shutil.copytree(finished, tmp_path / "pretrained" / "tiny")
    assert loading.find_run(named).folder.resolve() == (tmp_path / "pretrained" / "tiny").resolve()


@pytest.mark.parametrize("name", ["pretrained/none", "pretrained", "pretrained/../pretrained/tiny"])
def test_other_names_are_refused_with_those_that_exist(name, named, refusal):
    line = refusal(sample_main, name)
    assert line == f"there is no run {name}; name a run folder, or one of: pretrained/tiny"


def test_a_packed_run_has_no_training_scenes_to_retrieve_from(named, refusal):
    assert "is packed, without training scenes to search" in refusal(retrieve_main, named)
    with h5py.File(loading.PRETRAINED / "tiny" / "scenes.h5", "r+") as file:
        file.attrs["split_train"] = [0, 0]
    assert "is packed, without training scenes to search" in refusal(retrieve_main, named)


def test_a_packed_run_is_not_trained_further(named, refusal):
    assert "tiny is packed, without training scenes" in refusal(fit_main, "--resume", named)


def test_an_existing_folder_is_not_packed_into(finished, refusal, tmp_path):
    (tmp_path / "small").mkdir()
    assert refusal(weights_main, "pack", finished, "small") == "small: name a new folder in a folder that exists"
    assert "in a folder that exists" in refusal(weights_main, "pack", finished, "none/small")


def test_a_run_without_held_out_scenes_is_not_packed(packed, refusal):
    with h5py.File(packed / "scenes.h5", "r+") as file:
        file.attrs["split_test"] = [5, 5]
    line = f"the data of {packed} have no scenes in a split test, and a packed run consists of such"
    assert refusal(weights_main, "pack", packed, "smaller") == line


def test_scenes_of_a_packed_run_may_be_damaged(packed, refusal):
    (packed / "scenes.h5").write_bytes(b"no scenes")
    assert "scenes.h5" in refusal(sample_main, packed)


def test_counts_of_a_run_of_the_project_are_not_lost(named, refusal):
    (loading.PRETRAINED / "tiny" / "stacks.csv").write_text("number,stands_by_hand\n1,yes\n")
    assert "stacks.csv" in refusal(evaluate_main, named, "--sheet", "4")


def test_a_run_is_not_named_twice_by_its_name_and_its_folder(named, refusal):
    assert "is named twice" in refusal(sample_main, named, loading.PRETRAINED / "tiny")


def test_an_orderless_pair_is_taken_over_from_a_run_of_the_project(named, tiny, command):
    assert command(fit_main, *tiny, "--orderless", named)[0] == 0
    (run,) = Path("runs").iterdir()
    assert json.loads((run / "config.json").read_text())["orderless"] == str((loading.PRETRAINED / "tiny").resolve())


def test_an_unfinished_run_is_not_packed(finished, refusal, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished)
    (unfinished / "summary.json").unlink()
    assert "finish it first with --resume" in refusal(weights_main, "pack", unfinished, "small")


def test_packed_runs_have_rows_of_their_own():
    rows = [
        Row(
            Path(name),
            replace(preset("demo"), train=replace(preset("demo").train, steps=steps)),
            1,
            4,
            {},
            "towers",
            5,
            None,
        )
        for steps, name in enumerate(["small-a", "small-b", "00003-demo-seed0"])
    ]
    assert list(by_configuration(rows)) == [
        f"lom-genesis-v2-towers ({name})" for name in ("small-a", "small-b", "00003")
    ]


def test_the_runs_of_the_project_are_small_and_whole(command):
    makefile = (loading.PRETRAINED.parents[1] / "Makefile").read_text()
    names = re.search(r"^PRETRAINED := (.*)$", makefile, re.MULTILINE)[1].split()
    paths = sorted(loading.PRETRAINED.glob("*/config.json"))
    assert {*names, "pretrained/lom-genesis-v2-towers"} <= {f"pretrained/{path.parent.name}" for path in paths}
    for path in paths:
        assert sum(file.stat().st_size for file in path.parent.rglob("*") if "figures" not in file.parts) <= 3_000_000
        config, _, scenes = load_run(f"pretrained/{path.parent.name}")
        assert Run(path.parent).progress().data == "" and len(scenes.images) == 64
        assert config.preset == path.parent.name
