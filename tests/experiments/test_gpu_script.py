"""gpu.sh: its mistakes, the way of training that it selects, and rehearsals of both commands on a CPU."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.benchmarks import fastest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "gpu.sh"
PLAIN = {
    "system": "lom",
    "data": "objects-room",
    "pairs": "all",
    "resolution": 64,
    "slots": 9,
    "batch": 32,
    "precision": "32-true",
    "device": "cuda",
    "compiled": False,
    "cuda_graph": False,
    "accumulate": 1,
    "median_s": 0.1,
    "peak_memory_mb": 1.0,
    "loss": 1000.0,
}
GRAPH = PLAIN | {"cuda_graph": True, "median_s": 0.01}
HALF = PLAIN | {"precision": "bf16-mixed", "median_s": 0.05, "loss": 1010.0}
COMPILED = PLAIN | {"compiled": True, "median_s": 0.07, "loss": 1000.5}


def selected(*rows, failed=()):
    return fastest.correct_rows(list(rows), "lom", set(failed))


def test_correct_rows_are_sorted_by_time():
    other = GRAPH | {"system": "emorl", "median_s": 0.001}
    assert selected(PLAIN, HALF, other, GRAPH, COMPILED) == [GRAPH, HALF, COMPILED, PLAIN]


@pytest.mark.parametrize("loss", [1002.0, 998.0, float("nan"), float("inf")])
def test_a_row_with_another_loss_is_not_correct(loss):
    assert selected(PLAIN, GRAPH | {"loss": loss}) == [PLAIN]


def test_bfloat16_may_differ_more():
    assert selected(PLAIN, HALF | {"loss": 1019.0}) and HALF in selected(PLAIN, HALF)
    assert selected(PLAIN, HALF | {"loss": 1021.0}) == [PLAIN]


def test_a_way_with_a_failed_test_is_not_correct():
    name = "test_a_graph_takes_the_same_steps[32-true-lom]"
    assert selected(PLAIN, GRAPH, COMPILED, failed=[name]) == [COMPILED, PLAIN]
    assert selected(PLAIN, GRAPH, failed=[name.replace("lom", "emorl")]) == [GRAPH, PLAIN]


def test_without_the_plain_row_nothing_is_known_to_be_correct():
    assert selected(GRAPH, HALF) == []


def test_options_of_fit_are_printed(command):
    Path("rows.json").write_text(json.dumps([PLAIN, GRAPH, HALF]))
    Path("tests.xml").write_text(
        '<testsuites><testsuite><testcase name="test_steps_in_bfloat16_are_finite[lom]"><failure/></testcase>'
        '<testcase name="test_a_graph_takes_the_same_steps[lom]"/></testsuite></testsuites>'
    )
    code, out, err = command(fastest.main, "lom", "rows.json", "tests.xml")
    assert (code, err) == (0, "")
    assert out.splitlines() == ["0.01000 --cuda-graph --train.precision 32-true", "0.10000 --train.precision 32-true"]


def test_mistakes_in_one_line(refusal):
    assert refusal(fastest.main, "lom").startswith("name a system")
    assert refusal(fastest.main, "lom", "no.json", "no.xml").startswith("no.xml cannot be read")


@pytest.mark.parametrize("arguments", [[], ["chekc"], ["check", "--rehearsal"], ["pack", "--rehearse"]])
def test_the_script_refuses_other_arguments(arguments):
    done = subprocess.run(["bash", SCRIPT, *arguments], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: usage: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(1_900)
def test_rehearsals(tmp_path, mujoco):
    shutil.rmtree(ROOT / "runs" / "gpu-rehearsal", ignore_errors=True)
    limits = {"check": 3 * 240, "train": 3 * 360}
    for work, limit in limits.items():
        command = ["bash", SCRIPT, work, "--rehearse"]
        # A session of its own shows which processes are left.
        process = subprocess.Popen(command, env=os.environ | {"OUT": str(tmp_path)}, start_new_session=True)
        assert process.wait(timeout=limit) == 0, (tmp_path / work / "log.txt").read_text()
        left = subprocess.run(["ps", "-o", "args=", "-s", str(process.pid)], capture_output=True, text=True).stdout
        assert left == ""
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        *(f"check/{name}" for name in ("log.txt", "tests.xml", "benchmark.json")),
        *(f"train/{name}" for name in ("log.txt", "report.html", "run.tar.gz", "samples.png", "weights.safetensors")),
    }
    assert all(0 < (tmp_path / name).stat().st_size < 16 * 2**20 for name in files)
    rows = json.loads((tmp_path / "check" / "benchmark.json").read_text())
    assert [(row["system"], row["precision"]) for row in rows] == [
        ("lom-genesis-v2", "32-true"),
        ("lom-emorl", "32-true"),
    ]
    assert fastest.failed_tests(tmp_path / "check" / "tests.xml") == set()
