"""evaluate.py: one JSON a run, nothing computed twice, tables in Markdown, mistakes in one line."""

import csv
import functools
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.evaluate import evaluate, main
from experiments.evaluation.held_out import HeldOut
from experiments.evaluation.metrics import METRICS
from experiments.fit import parse
from experiments.loading import read_config
from pyro_lom.data.hdf5 import read_scenes, write_scenes
from pyro_lom.errors import UserError
from pyro_lom.training.runs import Run

FAST = ["--metrics", "ari", "slot-order"]


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def test_numbers_are_written_and_remembered(command, run, monkeypatch):
    code, out, err = command(main, run, *FAST)
    assert code == 0 and "error" not in err, err
    found = json.loads((run / "evaluation.json").read_text())
    assert set(found) == {"ari", "slot-order"}
    assert found["ari"]["protocol"]["num_images"] == 16 and found["ari"]["protocol"]["checkpoint"] == "step-00000006"

    for reads in ("inferred", "samples"):
        monkeypatch.setattr(HeldOut, reads, lambda *_: pytest.fail("computed twice"))
    assert command(main, run, *FAST)[:2] == (0, out)


def test_every_metric_at_once(command, run):
    code, out, err = command(main, run, "--likelihood-images", "3", "--likelihood-samples", "2")
    assert code == 0, err
    assert "fd-pca64 not computed: 64 principal components need at least 65 images" in err
    heads = ("Table 2", "Structure: towers", "Stacks: scenes", "Likelihood, nats", "Segmentation**", "Made by")
    for words in (*heads, "ARI-FG ↑, encoder", "mean IoU ↑, encoder", "KL of the slots, other scene"):
        assert words in out
    assert f"python experiments/evaluate.py {run} --likelihood-images 3 --likelihood-samples 2\n" in out
    (line,) = [line for line in out.splitlines() if line.startswith("python experiments/fit.py")]
    assert line.startswith("python experiments/fit.py lom-genesis-v2-towers --seed 0 ") and " --data.path " in line
    assert parse(shlex.split(line)[2:]).config == read_config(Run(run))
    assert "FID" not in out.replace("FD-EfficientNet", "")


def test_the_function_returns_what_the_command_writes(command, run, finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    values = evaluate(other, metrics=["ari", "slot-order"], temperature=0.5)
    assert command(main, run, *FAST, "--temperature", "0.5")[0] == 0
    found = json.loads((run / "evaluation.json").read_text())
    assert values == found["ari"]["values"] | found["slot-order"]["values"]
    assert found == json.loads((other / "evaluation.json").read_text())
    with pytest.raises(UserError, match="fid: FID needs the weights"):
        evaluate(other, metrics=["fid"])
    with pytest.raises(UserError, match="^--num-images is 0"):
        evaluate(other, num_images=0)


@pytest.fixture
def corrected(run, data, tmp_path):
    """`corrected(**changes)` writes the data of the run anew, in place; without changes they are as they were."""
    path = tmp_path / "own.h5"
    config = json.loads((run / "config.json").read_text())
    config["data"]["path"] = str(path)
    (run / "config.json").write_text(json.dumps(config))
    scenes = read_scenes(data)

    def rewrite(**changes):
        write_scenes(path, replace(scenes, **changes), source="tests, corrected", seed=4, compression="lzf")

    rewrite()
    return rewrite


@pytest.fixture
def computed(monkeypatch):
    """The names of the metrics that were computed, in order."""
    names = []

    def counting(name, function):
        @functools.wraps(function)
        def counted(*arguments, **settings):
            names.append(name)
            return function(*arguments, **settings)

        return counted

    for name in ("ari", "slot-order", "reconstruction"):
        monkeypatch.setitem(METRICS, name, counting(name, METRICS[name]))
    return names


def test_corrected_data_give_new_numbers_and_unchanged_data_do_not(command, run, data, corrected, computed):
    def evaluated():
        computed.clear()
        assert command(main, run, *FAST)[0] == 0
        found = json.loads((run / "evaluation.json").read_text())
        return tuple(computed), found["ari"]["protocol"]["data"], found["ari"]["values"]["ari_fg_encoder"]

    scenes = read_scenes(data)
    names, checksum, ari = evaluated()
    assert names == ("ari", "slot-order")
    assert evaluated() == ((), checksum, ari)
    corrected()  # the same scenes in a file of another layout
    assert evaluated() == ((), checksum, ari)

    labels = np.roll(np.asarray(scenes.labels), 7, axis=2)
    corrected(labels=labels)
    names, of_labels, other_ari = evaluated()
    assert names == ("ari", "slot-order") and of_labels != checksum and other_ari != ari
    assert evaluated() == ((), of_labels, other_ari)

    factors = {name: np.array(values) for name, values in scenes.factors.items()}
    factors["hue"] = factors["hue"][::-1].copy()
    corrected(factors=factors)
    names, of_factors, first_ari = evaluated()
    assert names == ("ari", "slot-order") and of_factors not in (checksum, of_labels) and first_ari == ari

    corrected()
    assert evaluated()[1:] == (checksum, ari)


def test_other_images_give_new_numbers_or_are_refused(command, run, data, corrected, computed):
    assert command(main, run, *FAST)[0] == 0
    images = np.array(read_scenes(data).images)
    images[48] = 255 - images[48]  # held out
    corrected(images=images)
    computed.clear()
    assert command(main, run, *FAST)[0] == 0 and computed == ["ari", "slot-order"]
    images[:48] = 255 - images[:48]  # trained on
    corrected(images=images)
    code, out, err = command(main, run, *FAST)
    assert (code, out) == (2, "") and f"error: {run} was trained on other images than those at its data path" in err


def test_a_sheet_to_count_by_hand(command, run):
    assert command(main, run, "--metrics", "slot-order", "--sheet", "7")[0] == 0
    with (run / "stacks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == [str(number) for number in range(7)]
    assert {row["stands_by_rule"] for row in rows} <= {"0", "1"} and {row["stands_by_hand"] for row in rows} == {""}
    with Image.open(run / "figures" / "stacks.png") as sheet:
        sheet.verify()
    counted = (run / "stacks.csv").read_text().replace("0,", "0,yes")
    (run / "stacks.csv").write_text(counted)
    code, out, err = command(main, run, "--metrics", "slot-order", "--sheet", "7")
    assert (code, out) == (2, "") and "exists and may hold your counts: rename or remove it first" in err
    assert (run / "stacks.csv").read_text() == counted


def test_tables_are_written_to_a_file(command, run):
    code, out, _ = command(main, run, *FAST, "--output", "tables.md")
    assert code == 0 and Path("tables.md").read_text().startswith(f"{out}<!-- pyro_lom ") and "--output" not in out
    assert command(main, run, *FAST, "--output", "tables.md")[0] == 0  # its own file is replaced
    Path("notes.md").write_text("precious")
    Path("edited.md").write_text("My notes.\n" + Path("tables.md").read_text())
    for name, reason in {
        "notes.md": "that this command did not write",
        "edited.md": "or that was edited",
        str(run / "config.json"): "name a file that ends in .md",
    }.items():
        code, _, err = command(main, run, *FAST, "--output", name)
        assert code == 2 and err.startswith(f"error: --output {name}: ") and reason in err
    assert Path("notes.md").read_text() == "precious"


def test_an_orderless_model_alone(command, alone, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    code, out, err = command(main, run, *FAST)
    assert (
        code == 0
        and "ARI-FG ↑, model" in out
        and "order" not in out.partition("**Made by**")[0].replace("slot order", "")
    )


def test_a_metric_asked_for_alone_refuses(refusal, run):
    assert refusal(main, run, "--metrics", "fid").startswith(f"{run}: fid: FID needs the weights of Inception-v3")
    assert refusal(main, run, "--metrics", "fd-pca64") == (
        f"{run}: fd-pca64: 64 principal components need at least 65 images, not 16: use more images"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "name one or more run folders: evaluate.py runs/00000-..."),
        (["nowhere"], "nowhere is not a run folder: it has no config.json; name one like runs/00000-..."),
        (["--num-images", "0"], "--num-images is 0: it must be from 1 to 1000000000"),
        (["--temperature", "-1"], "--temperature is -1.0: it must be a finite number above 0, at most 1e30"),
        (["--sheet", "-1"], "--sheet is -1: it must be from 0 to 1000"),
    ],
)
def test_mistakes(arguments, line, refusal):
    assert refusal(main, *arguments) == line


def test_a_metric_named_by_the_user_is_refused_if_it_cannot_be_computed(command, run):
    code, out, err = command(main, run, "--metrics", "slot-order", "fd-pca64")
    assert (code, out) == (2, "") and f"error: {run}: fd-pca64: 64 principal components need at least 65 images" in err
    assert set(json.loads((run / "evaluation.json").read_text())) == {"slot-order"}  # what was done is kept


def test_more_mistakes(refusal, run):
    assert refusal(main, run, "--metrics").startswith("--metrics needs one or more of: ari, baselines, covering")
    assert refusal(main, run, f"{run}/../{run.name}") == f"{run}/../{run.name} is named twice: name each run once"
    assert refusal(main, run, "--output", "missing/tables.md") == (
        "--output missing/tables.md: name a file in a folder that exists"
    )
    shutil.rmtree(run / "checkpoints")
    assert refusal(main, run) == f"{run} has no checkpoint to start from"


def test_an_unknown_metric_lists_those_there_are(refusal, run):
    line = refusal(main, run, "--metrics", "beauty")
    assert "beauty" in line and "slot-order" in line


def test_the_second_run_is_looked_at_before_the_first_is_measured(refusal, run):
    assert "nowhere is not a run folder" in refusal(main, run, "nowhere")


def test_weights_that_render_no_images(command, refusal, huge):
    reason = "the images of the model are NaN or infinite, since its weights are too large: name another run"
    assert refusal(main, huge, "--metrics", "structure") == f"{huge}: structure: {reason}"
    code, _, err = command(main, huge, "--likelihood-images", "3", "--likelihood-samples", "2")
    assert code == 0 and f"{huge}: ari not computed: {reason}" in err and "Traceback" not in err


def test_a_damaged_memory_is_refused(command, run):
    (run / "evaluation.json").write_text("{")
    for options in (FAST, []):
        code, out, err = command(main, run, *options)
        assert (code, out) == (2, "") and f"error: {run}/evaluation.json cannot be read" in err
        assert err.splitlines()[-1].endswith("; remove the file to compute its numbers again")
