"""evaluate.py: one JSON a run, nothing computed twice, tables in Markdown, mistakes in one line."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from experiments.evaluating import main
from experiments.held_out import HeldOut

FAST = ["--metrics", "ari", "slot-order"]


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs" / finished.name)


def test_numbers_are_written_and_remembered(command, run, monkeypatch):
    code, out, err = command(main, run, *FAST)
    assert code == 0 and "error" not in err
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
    for title in ("Table 2", "Structure accuracy", "Likelihood", "masks of the encoder", "Made by"):
        assert title in out
    assert f"python experiments/evaluate.py {run} --likelihood-images 3 --likelihood-samples 2\n" in out
    assert "python experiments/fit.py lom-genesis-v2-towers --seed 0 --data.path " in out
    assert "FID" not in out.replace("FD-EfficientNet", "")


def test_a_sheet_to_count_by_hand(command, run):
    assert command(main, run, "--metrics", "slot-order", "--sheet", "7")[0] == 0
    with (run / "structure.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["sample"] for row in rows] == [str(number) for number in range(7)]
    assert {row["stands_by_rule"] for row in rows} <= {"0", "1"} and {row["stands_by_hand"] for row in rows} == {""}
    with Image.open(run / "figures" / "structure.png") as sheet:
        sheet.verify()
    counted = (run / "structure.csv").read_text().replace("0,", "0,yes")
    (run / "structure.csv").write_text(counted)
    code, out, err = command(main, run, "--metrics", "slot-order", "--sheet", "7")
    assert (code, out) == (2, "") and "may hold your counts: rename or remove it first" in err
    assert (run / "structure.csv").read_text() == counted


def test_tables_are_written_to_a_file(command, run):
    code, out, _ = command(main, run, *FAST, "--output", "tables.md")
    assert code == 0 and Path("tables.md").read_text() == out and "--output" not in out


def test_an_orderless_model_alone(command, alone, tmp_path):
    run = shutil.copytree(alone, tmp_path / "run")
    code, out, err = command(main, run, *FAST)
    assert code == 0 and "of ordered decoder" not in out and "of orderless decoder" in out


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
        (["--num-images", "0"], "--num-images is 0: it must be 1 or more"),
        (["--temperature", "-1"], "--temperature is -1.0: it must be a finite number above 0"),
        (["--sheet", "-1"], "--sheet is -1: it must be 0 or more"),
    ],
)
def test_mistakes(arguments, line, refusal):
    assert refusal(main, *arguments) == line


def test_what_is_asked_by_name_is_refused_where_it_makes_no_sense(command, run):
    code, out, err = command(main, run, "--metrics", "slot-order", "fd-pca64")
    assert (code, out) == (2, "") and f"error: {run}: fd-pca64: 64 principal components need at least 65 images" in err
    assert set(json.loads((run / "evaluation.json").read_text())) == {"slot-order"}  # what was done is kept


def test_more_mistakes(refusal, run):
    assert refusal(main, run, "--metrics").startswith("--metrics needs one or more of: ari, covering")
    assert refusal(main, run, f"{run}/../{run.name}") == f"{run}/../{run.name} is named twice: name each run once"
    assert refusal(main, run, "--output", "missing/tables.md") == (
        "--output missing/tables.md: name a file in a folder that is there"
    )
    shutil.rmtree(run / "checkpoints")
    assert refusal(main, run) == f"{run} has no checkpoint to start from"


def test_an_unknown_metric_lists_those_there_are(refusal, run):
    line = refusal(main, run, "--metrics", "beauty")
    assert "beauty" in line and "slot-order" in line


def test_the_second_run_is_looked_at_before_the_first_is_measured(refusal, run):
    assert "nowhere is not a run folder" in refusal(main, run, "nowhere")


def test_a_damaged_memory_is_told(command, run):
    (run / "evaluation.json").write_text("{")
    for options in (FAST, []):
        code, out, err = command(main, run, *options)
        assert (code, out) == (2, "") and f"error: {run}/evaluation.json cannot be read" in err
        assert err.splitlines()[-1].endswith("; remove the file to compute its numbers again")
