"""benchmark.py: every system by name, shares that follow from what is printed, comparisons, mistakes in one line."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import some_slow

from experiments import benchmark
from experiments.benchmark import IDENTITY, SYSTEMS, Arguments, _settings, main
from experiments.benchmarks.step_timing import measure
from experiments.systems import build, preset
from pyro_lom.errors import UserError

TINY = ["--resolutions", "32", "--slots", "2", "--batch-sizes", "1", "--steps", "2"]


@pytest.fixture
def here(monkeypatch):
    """Rows are measured in this process: a new one takes seconds to start."""
    monkeypatch.setattr(benchmark, "_in_a_process_of_its_own", lambda settings, limit: measure(settings))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "system",
    some_slow(SYSTEMS, ["vae"]),
)
def test_a_row_of_every_system(system):
    [settings] = _settings(Arguments((system,), slots=(7,), batch_sizes=(1,), steps=2, device="cpu"))
    row, has_slots = measure(settings), system not in ("vae", "gnm")
    assert {key: row[key] for key in IDENTITY} == {
        "system": system,
        "data": "objects-room",
        "pairs": "all",
        "resolution": 64,
        "slots": 7 if has_slots else None,
        "batch": 1,
        "precision": "32-true",
        "device": "cpu",
        "compiled": False,
        "cuda_graph": False,
        "accumulate": 1,
    }
    assert 0 < row["min_s"] <= row["median_s"] and row["spread_s"] >= 0
    assert row["images_per_second"] == pytest.approx(1 / row["median_s"])
    gflop = {"genesis": 24.71, "genesis-v2": 11.0, "lom-genesis-v2": 135 / 8, "emorl": 943 / 8}.get(system)
    assert row["reference_gflop"] == gflop
    if gflop is None:
        assert row["share_of_peak"] is None
    else:
        assert row["share_of_peak"] == pytest.approx(gflop / row["median_s"] / row["peak_gflops"])
        assert 0 < row["share_of_peak"] < 1.5  # EMORL's first layers take fewer operations than are counted
    assert 100 < row["peak_memory_mb"]
    parts = row["parts"]
    assert {"data", "ELBO", "encoder", "optimiser"} <= set(parts)
    assert ("decoders" in parts) == (
        system not in ("genesis", "gnm")
    )  # they have two decoders, which are parts of its ELBO
    assert ({"matching", "order networks"} <= set(parts)) == system.startswith("lom-")
    assert all(seconds > 0 for seconds in parts.values())
    assert parts.get("decoders", parts["ELBO"]) + parts["encoder"] > parts["data"] + parts["optimiser"]
    assert all(row[f"{name}_images_per_second"] > 0 for name in ("loading", "sampling", "evaluation"))


def test_without_slots_one_row_is_that_of_all_numbers_of_slots():
    options = Arguments(("vae", "genesis-v2"), slots=(2, 3), device="cpu")
    configs = [settings.config for settings in _settings(options)]
    assert [getattr(config.model, "num_slots", None) for config in configs] == [None, 2, 3]
    assert configs[0].model == preset("vae-objects-room").model


@pytest.mark.slow
def test_a_row_without_slots_is_printed_and_compared(command, here):
    options = ("--systems", "vae", *TINY)
    code, _, err = command(main, *options, "--json", "rows.json")
    assert code == 0, err
    code, out, err = command(main, *options, "--compare", "rows.json")
    assert code == 0, err
    [row] = [line.split() for line in out.partition("New over old\n")[2].splitlines()[1:]]
    assert row[:3] == ["vae", "32", "-"] and float(row[-2]) > 0


@pytest.mark.slow
def test_a_preset_with_phases_has_a_row_for_each():
    options = Arguments(("lom-genesis-v2",), data="towers", batch_sizes=(), steps=1, device="cpu")
    rows = [measure(settings) for settings in _settings(options)]
    assert [(row["pairs"], row["batch"]) for row in rows] == [("orderless", 16), ("ordered", 64)]
    assert rows[0]["share_of_peak"] is None
    assert "encoder" not in rows[1]["parts"]  # its posteriors are computed once, before


def test_a_batch_size_holds_for_every_phase():
    options = Arguments(("lom-genesis-v2",), data="towers", batch_sizes=(4,), device="cpu")
    for settings in _settings(options):
        config = settings.config
        system = build(config, (3, 32, 32))
        assert [phase.batch_size for phase in config.model.phases(system, config.train)] == [4, 4]
    with pytest.raises(UserError, match="--accumulate does not go with --model.schedule.ordered-rendered"):
        _settings(replace(options, accumulate=2))


def test_rows_are_printed_written_and_compared(command, here):
    code, out, err = command(main, "--systems", "genesis-v2", *TINY, "--json", "rows.json")
    assert code == 0, err
    assert "parts of a step" in out.lower() and "New over old" not in out
    [row] = json.loads(Path("rows.json").read_text())
    assert f"{row['median_s']:.4f}" in out
    slower = row | {"median_s": row["median_s"] * 1e6}
    Path("rows.json").write_text(json.dumps([slower]))
    code, out, err = command(main, "--systems", "genesis-v2", "lom-genesis-v2", *TINY, "--compare", "rows.json")
    assert code == 0, err
    one, other = out.partition("New over old\n")[2].splitlines()[1:3]
    assert one.startswith("genesis-v2") and one.split()[-2] == "0.00"
    assert other.startswith("lom-genesis-v2") and other.split()[-2:] == ["not", "there"][-2:]


@pytest.mark.slow
def test_a_row_in_a_process_of_its_own(command):
    code, out, err = command(main, "--systems", "genesis-v2", *TINY, "--json", "rows.json")
    assert code == 0, err
    [row] = json.loads(Path("rows.json").read_text())
    with open("/proc/self/status") as status:
        assert row["peak_memory_mb"] < int(status.read().partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--steps", "0"], "--steps is 0: it must be from 1 to 1000000000"),
        (["--accumulate", "3"], "--accumulate is 3: it must divide the batch of 8 scenes of each device"),
        (["--device", "cpu", "--modes", "eager", "cuda-graph"], "--cuda-graph needs a GPU, and this is a CPU"),
        (["--slots", "7", "1"], "--slots is 1: it must be from 2 to 64"),
        (["--batch-sizes", "0"], "--batch-sizes is 0: it must be from 1 to 1000000000"),
        (["--systems"], "--systems needs one or more"),
        (["--precisions"], "--precisions needs one or more"),
        (["--modes"], "--modes needs one or more"),
        (["--resolutions", "50"], "images are 50x50, but models need square ones"),
        (["--data", "moons"], f"there is no preset '{SYSTEMS[0]}-moons'"),
        (["--json", "no/where.json"], "--json no/where.json: name a file in a folder that exists"),
        (["--compare", "nowhere.json"], "nowhere.json cannot be read: "),
    ],
)
def test_mistakes(arguments, line, refusal):
    assert refusal(main, *arguments).startswith(line)


def test_more_mistakes(refusal, monkeypatch):
    assert "nought" in refusal(main, "--systems", "nought")
    for content, line in (
        ("{", "cannot be read"),
        ("3", "cannot be read"),
        ('[{"system": "x"}]', "Object missing required field `data`"),
    ):
        Path("old.json").write_text(content)
        assert line in refusal(main, "--compare", "old.json")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(main, "--device", "cuda") == "--device cuda: torch finds no GPU here; choose cpu"


def test_a_row_that_cannot_be_measured_leaves_the_others(command, monkeypatch):
    def one_system(settings, limit):
        if settings.system == "genesis-v2":
            return measure(settings)
        raise UserError("no luck")

    monkeypatch.setattr(benchmark, "_in_a_process_of_its_own", one_system)
    code, out, err = command(main, "--systems", "lom-genesis-v2", "genesis-v2", *TINY, "--json", "rows.json")
    assert code == 2 and "genesis-v2" in out
    assert "lom-genesis-v2-objects-room at 32, 32-true, eager: no luck" in err
    assert err.splitlines()[-1] == "error: 1 of 2 rows could not be measured, see above"
    assert [row["system"] for row in json.loads(Path("rows.json").read_text())] == ["genesis-v2"]
    code, out, err = command(main, "--systems", "lom-genesis-v2", *TINY)
    assert (code, out) == (2, "") and err.splitlines()[-1] == "error: no luck"


@pytest.mark.slow
def test_each_row_is_written_at_once(command, monkeypatch):
    def measured(settings, limit):
        if settings.config.train.precision == "bf16-mixed":
            raise KeyboardInterrupt
        return measure(settings)

    monkeypatch.setattr(benchmark, "_in_a_process_of_its_own", measured)
    precisions = ["--precisions", "32-true", "bf16-mixed"]
    code, *_ = command(main, "--systems", "genesis-v2", *TINY, *precisions, "--json", "rows.json")
    assert code == 130
    assert [row["precision"] for row in json.loads(Path("rows.json").read_text())] == ["32-true"]


@pytest.mark.slow
def test_the_loss_of_a_row_belongs_to_the_same_steps():
    options = Arguments(("genesis-v2",), resolutions=(32,), slots=(2,), batch_sizes=(1,), steps=1, device="cpu")
    [settings] = _settings(options)
    one, other = measure(settings)["loss"], measure(replace(settings, steps=2))["loss"]
    assert one == pytest.approx(other, rel=1e-5) and one > 0


@pytest.mark.slow
def test_rows_of_older_versions_compare(command, here):
    code, _, err = command(main, "--systems", "genesis-v2", *TINY, "--json", "rows.json")
    assert code == 0, err
    [row] = json.loads(Path("rows.json").read_text())
    del row["cuda_graph"]
    Path("old.json").write_text(json.dumps([row | {"pyro_share": 0.01}]))
    assert [found["cuda_graph"] for found in benchmark.read_rows(Path("old.json"))] == [False]
    code, out, err = command(main, "--systems", "genesis-v2", *TINY, "--compare", "old.json")
    assert code == 0, err
    assert "there" not in out.partition("New over old\n")[2] and "pyro" not in out.lower()


def test_a_process_that_is_killed_is_one_line(refusal, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", Killed())
    assert "was killed, perhaps because memory ran out" in refusal(main, "--systems", "genesis-v2", *TINY)


def test_a_row_that_takes_too_long_is_given_up(refusal, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", Sleeping())
    began = time.monotonic()
    assert refusal(main, "--systems", "genesis-v2", *TINY, "--limit", "1") == "not measured within 1 s (--limit)"
    assert time.monotonic() - began < 60


def test_an_error_of_a_row_is_one_line(refusal, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", Failing())
    assert refusal(main, "--systems", "genesis-v2", *TINY) == "failed: CUDA error: an illegal instruction"


class Sleeping:
    def __call__(self, settings):
        time.sleep(300)


class Failing:
    def __call__(self, settings):
        raise RuntimeError("CUDA error: an illegal instruction\nand a page of advice")


class Killed:
    def __call__(self, settings):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
