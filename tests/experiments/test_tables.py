"""Rows over seeds: mean and standard deviation, told apart by everything but the seed."""

from dataclasses import replace
from pathlib import Path

from tiny import tiny_config

from experiments import cli
from experiments.fitting import Arguments
from experiments.presets import PRESETS
from experiments.tables import Row, markdown


def row(number, seed, values, config=None):
    config = replace(config or tiny_config(), seed=seed)
    return Row(Path(f"runs/{number:05d}-tiny-seed{seed}"), config, "step-00000010", 2000, values)


def table(rows):
    return markdown(rows, command=lambda folders: f"evaluate {' '.join(map(str, folders))}")


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_seeds_share_a_row():
    text = table([row(0, 0, {"fd_pca64": 1.0}), row(1, 1, {"fd_pca64": 2.0}), row(2, 2, {"fd_pca64": 4.5})])
    assert cells(text, "tiny") == ["tiny", "3", "2000", "2.5 ± 1.8"]
    assert "\nevaluate runs/00000-tiny-seed0 runs/00001-tiny-seed1 runs/00002-tiny-seed2\n" in text


def test_one_run_has_no_deviation_and_percent_are_percent():
    text = table([row(0, 0, {"structure": 0.8234})])
    assert cells(text.partition("**Structure")[0], "tiny") == ["tiny", "1", "2000", "82.3"]


def test_other_options_are_another_row():
    config = tiny_config()
    other = replace(config, train=replace(config.train, steps=99))
    text = table([row(0, 0, {"fd_pca64": 1.0}), row(4, 0, {"fd_pca64": None}, other)])
    assert cells(text, "tiny (00000)")[-1] == "1.0"
    assert cells(text, "tiny (00004)")[-1] == "-"


def test_a_run_that_was_stopped_early_is_another_row():
    text = table([row(0, 0, {"fd_pca64": 1.0}), row(1, 1, {"fd_pca64": 3.0})._replace(checkpoint="step-00000005")])
    assert cells(text, "tiny (00000)")[-1] == "1.0" and cells(text, "tiny (00001)")[-1] == "3.0"


def test_runs_are_made_by_their_presets_and_options():
    demo = PRESETS["demo"]()
    changed = replace(demo, train=replace(demo.train, steps=7, geco=replace(demo.train.geco, goal_relative=False)))
    text = table([row(0, 3, {"fd_pca64": 1.0}, demo), row(1, 4, {"fd_pca64": 1.0}, changed), row(2, 0, {})])
    lines = text.partition("```\n")[2].splitlines()
    assert "python experiments/fit.py lom-genesis-v2-towers --seed 3" in lines
    assert "# trained by a preset that is no more: tiny, seed 0" in lines
    (line,) = [line for line in lines if "--seed 4" in line]
    assert line.endswith("--seed 4 --train.steps 7 --train.geco.no-goal-relative")
    options = cli.parse(Arguments, line.split()[3:], default=Arguments(demo), prog="fit.py", description="")
    assert options.config == replace(changed, seed=4)


def test_columns_and_tables_without_numbers_are_left_out():
    text = table([row(0, 0, {"fd_pca64": 1.0, "fid": None})])
    assert "FID" not in text and "Likelihood" not in text


def test_lines_are_of_one_length():
    text = table([row(0, 0, {"fd_pca64": 1.0, "structure": 0.5, "elbo_ordered": -1234.5})])
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 3 and all(len({len(line) for line in lines}) == 1 for lines in tables)
