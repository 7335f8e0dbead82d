"""Ways to take training steps, the fastest first: `python -m experiments.benchmarks.fastest SYSTEM ROWS TESTS`.

ROWS is a file of `benchmark.py --json`, and TESTS is a file of `pytest --junit-xml`. Each printed line has the seconds
of a step and the options of `fit.py`. `experiments/gpu.sh` trains with the first line that works.
"""

from pathlib import Path
from xml.etree import ElementTree

from experiments import cli
from experiments.benchmark import Row, read_rows
from pyro_lom.errors import UserError

_TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 2e-2}  # of the loss, relative to the same steps without options
_TESTS = {
    "compiled": "test_compiled_networks_take_the_same_step",
    "cuda_graph": "test_a_graph_takes_the_same_steps",
    "bf16-mixed": "test_steps_in_bfloat16_are_finite",
}
"""The test of `tests/test_gpu.py` that each way of taking a step must pass."""


def correct_rows(rows: list[Row], system: str, failed: set[str]) -> list[Row]:
    """Return the rows of a system whose losses and tests show that their steps are correct, the fastest first.

    Args:
        failed: the names of failed tests, such as `test_a_graph_takes_the_same_steps[32-true-lom-emorl]`.
    """
    of_system = [row for row in rows if row["system"] == system]
    plain = [row for row in of_system if not _ways(row)]
    if not plain:
        return []
    broken = {way for way, test in _TESTS.items() if any(name.startswith(test) and system in name for name in failed)}
    expected = plain[0]["loss"]
    correct = [
        row
        for row in of_system
        if abs(row["loss"] - expected) <= _TOLERANCE[row["precision"]] * abs(expected) and not broken & _ways(row)
    ]
    return sorted(correct, key=lambda row: row["median_s"])


def _ways(row: Row) -> set[str]:
    return {way for way in ("compiled", "cuda_graph") if row[way]} | ({row["precision"]} - {"32-true"})


def failed_tests(path: Path) -> set[str]:
    """Return the names of failed tests in a file of `pytest --junit-xml`."""
    cases = ElementTree.parse(path).iter("testcase")
    return {
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    }


def main(arguments: list[str]) -> None:
    if len(arguments) != 3:
        raise UserError("name a system, the rows of benchmark.py --json, and the results of pytest --junit-xml")
    system, rows, tests = arguments
    try:
        failed = failed_tests(Path(tests))
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{tests} cannot be read: {error}") from error
    for row in correct_rows(read_rows(Path(rows)), system, failed):
        ways = ["--compile"] * row["compiled"] + ["--cuda-graph"] * row["cuda_graph"]
        print(f"{row['median_s']:.5f}", *ways, "--train.precision", row["precision"])


if __name__ == "__main__":
    cli.run(main)
