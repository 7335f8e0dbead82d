"""Rows over seeds: mean and standard deviation; runs that differ in anything but the seed have rows of their own."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from tiny import tiny_config

from experiments.evaluation.tables import Row, markdown
from experiments.fit import parse
from experiments.systems import PRESETS

FD = "Frechet distances of generated scenes"


def row(number, seed, values, config=None):
    config = replace(config or tiny_config(), seed=seed)
    return Row(Path(f"runs/{number:05d}-tiny-seed{seed}"), config, "step-00000010", 2000, values)


def table(rows):
    return markdown(rows, command=lambda folders: f"evaluate {' '.join(map(str, folders))}")


def tables(text):
    """The lines of each table, by its title."""
    parts = text.split("\n\n")
    return {head.strip("*"): body.splitlines() for head, body in pairwise(parts) if body.startswith("|")}


def cells(text, head, start):
    """The cells of the row that begins with `start`, in the table called `head`."""
    (line,) = [line for line in tables(text)[head] if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_share_a_row():
    numbers = [1.0, 2.0, 4.5]
    text = table([row(seed, seed, {"fd_pca64_samples": number}) for seed, number in enumerate(numbers)])
    assert cells(text, FD, "model") == ["model", "runs", "data", "size", "K", "images (N)", "FD-PCA64 ↓, samples"]
    assert cells(text, FD, "tiny") == ["tiny", "3", "?", "32x32", "-", "2000", "2.5 ± 1.8"]
    assert "\nevaluate runs/00000-tiny-seed0 runs/00001-tiny-seed1 runs/00002-tiny-seed2\n" in text


def test_runs_with_another_orderless_pair_have_a_row_of_their_own():
    other = row(1, 1, {"fd_pca64_samples": 4.0})._replace(orderless="runs/00009-tiny")
    text = table([row(0, 0, {"fd_pca64_samples": 1.0}), other])
    assert [cells(text, FD, f"tiny ({name})")[-1] for name in ("00000", "00001")] == ["1.0", "4.0"]
    with_it = row(0, 0, {"fd_pca64_samples": 1.0}, PRESETS["demo"])._replace(orderless="runs/00009-tiny")
    assert "--seed 0 --orderless runs/00009-tiny\n" in table([with_it])


def test_one_run_has_no_deviation_and_percent_are_percent():
    text = table([row(0, 0, {"structure_samples": 0.8234})])
    head = "Structure: towers that stand, by a rule on pixels, % of scenes"
    assert cells(text, head, "tiny") == ["tiny", "1", "?", "32x32", "-", "2000", "82.3"]
    assert cells(text, head, "model")[-1] == "structure ↑, samples"


def test_a_unit_is_in_the_title_if_all_columns_have_it_and_in_the_columns_if_not():
    text = table(
        [row(0, 0, {"kl_scene": 5.0, "kl_slots": 7.0, "rmse_ordered": 0.1, "explained_variance_ordered": 0.5})]
    )
    assert cells(text, "KL, nats per scene", "model")[6:] == ["KL of the scene", "KL of the slots"]
    columns = ["RMSE ↓, ordered (per pixel and channel)", "explained variance of pixels ↑, ordered"]
    assert cells(text, "Reconstruction", "model")[6:] == columns


def test_other_options_are_another_row():
    config = tiny_config()
    other = replace(config, train=replace(config.train, steps=99))
    text = table([row(0, 0, {"fd_pca64_samples": 1.0}), row(4, 0, {"fd_pca64_samples": None}, other)])
    assert cells(text, FD, "tiny (00000)")[-1] == "1.0"
    assert cells(text, FD, "tiny (00004)")[-1] == "-"


def test_a_run_that_was_stopped_early_is_another_row():
    stopped = row(1, 1, {"fd_pca64_samples": 3.0})._replace(checkpoint="step-00000005")
    text = table([row(0, 0, {"fd_pca64_samples": 1.0}), stopped])
    assert cells(text, FD, "tiny (00000)")[-1] == "1.0" and cells(text, FD, "tiny (00001)")[-1] == "3.0"


def test_a_cell_without_a_number_has_the_reason():
    other = tiny_config("genesis-v2")
    text = table([row(0, 0, {"ari_fg_ordered": 0.5}), row(1, 0, {"ari_fg_ordered": "no masks"}, other)])
    head = "Samples and segmentation, in the shape of the paper's Table 2"
    assert cells(text, head, "tiny (00000)")[-1] == "0.50" and cells(text, head, "tiny (00001)")[-1] == "no masks"


def test_runs_are_made_by_their_presets_and_options():
    demo = PRESETS["demo"]
    geco = replace(demo.model.geco, goal_relative=False)
    changed = replace(demo, train=replace(demo.train, steps=7), model=replace(demo.model, geco=geco))
    values = {"fd_pca64_samples": 1.0}
    text = table([row(0, 3, values, demo), row(1, 4, values, changed), row(2, 0, {})])
    lines = text.partition("```\n")[2].splitlines()
    assert "python experiments/fit.py lom-genesis-v2-towers --seed 3" in lines
    assert "# trained by a preset that does not exist here: tiny, seed 0" in lines
    (line,) = [line for line in lines if "--seed 4" in line]
    assert {"--train.steps 7", "--model.geco.no-goal-relative"} == {
        option.strip() for option in line.partition("--seed 4 ")[2].replace(" --", "\n--").splitlines()
    }
    assert parse(line.split()[2:]).config == replace(changed, seed=4)


def test_columns_and_tables_without_numbers_are_left_out():
    text = table([row(0, 0, {"fd_pca64_samples": 1.0, "fid_samples": None})])
    assert "FID" not in text and "Likelihood" not in text and "FD-PCA64" in text


def test_lines_are_of_one_length():
    values = {"fd_pca64_samples": 1.0, "structure_samples": 0.5, "elbo_ordered": -1234.5}
    found = tables(table([row(0, 0, values)])).values()
    assert len(found) == 4 and all(len({len(line) for line in lines}) == 1 for lines in found)


@pytest.mark.parametrize("images", [(2000, 2000), (16, 2000)])
def test_the_number_of_images_is_a_range_if_runs_differ(images):
    rows = [row(n, n, {"kl_scene": 1.0})._replace(num_images=number) for n, number in enumerate(images)]
    expected = "2000" if images[0] == images[1] else "16 to 2000"
    assert cells(table(rows), "KL, nats per scene", "tiny")[5] == expected


def test_tables_say_what_was_evaluated_and_what_the_masks_are():
    values = {"msc_encoder": 0.5, "ari_fg_encoder": 0.7, "elbo_gap_ordered": 12.34, "kl_scene": 1.0}
    text = table([row(0, 0, values)._replace(data="rooms, version 1", num_slots=7)])
    for head in ("Segmentation", "KL, nats per scene"):
        assert cells(text, head, "model")[1:6] == ["runs", "data", "size", "K", "images (N)"]
        assert cells(text, head, "tiny")[1:6] == ["1", "rooms, version 1", "32x32", "7", "2000"]
    paragraphs = text.split("\n\n")
    notes = {
        head.strip("*").split(",")[0]: note
        for head, _, note in zip(paragraphs, paragraphs[1:], paragraphs[2:], strict=False)
    }
    assert notes["Segmentation"].startswith(
        "True masks are the labels of the data set. The masks of a column are those"
    )
    assert notes["Segmentation"].endswith("mSC is what the field also calls mBO, the mean best overlap of objects.")
    assert (
        notes["Samples and segmentation"].startswith("True masks are")
        and "mBO" not in notes["Samples and segmentation"]
    )
    assert notes["Likelihood"].startswith("A large gap shows that scenes were learned by heart")
    assert not notes["KL"].startswith(("True", "A large"))
    assert cells(text, "Likelihood, nats per scene", "model")[-1] == "training minus held-out ELBO ↓, ordered"


def test_runs_on_other_data_have_a_row_of_their_own():
    values = {"kl_scene": 1.0}
    rows = [row(0, 0, values)._replace(data="rooms"), row(1, 1, values)._replace(data="rooms at 48x48")]
    assert cells(table(rows), "KL, nats per scene", "tiny (00001)")[2] == "rooms at 48x48"
