"""Workers leave signals to the process that started them, and never outlive it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyro_lom.training.signals import STOP_SIGNALS
from pyro_lom.workers import Workers

ROOT = Path(__file__).parents[2]
SLEEPS = r"""
import os, signal, sys, time
from pyro_lom.training.signals import handling
from pyro_lom.workers import Workers

def tell():
    os.write(1, f"{os.getpid()}\n".encode())  # at once, since two processes write
    time.sleep(300)

def stop(number, frame):
    raise KeyboardInterrupt(number)

if __name__ == "__main__":
    try:
        with handling(stop), Workers(2) as workers:
            [task.result() for task in [workers.submit(tell), workers.submit(tell)]]
    except KeyboardInterrupt as stopped:
        sys.exit(128 + stopped.args[0])
"""


def is_alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def sleeping(tmp_path):
    """A process whose two workers sleep, in a group of its own, and the numbers of the workers."""
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "sleeps.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process, [int(process.stdout.readline()) for _ in range(2)]
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_all_processes_ends_them_without_a_word(sleeping, number):
    process, workers = sleeping
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (128 + number, "")
    assert not any(map(is_alive, workers))


def test_they_end_with_a_parent_that_is_killed(sleeping):
    process, workers = sleeping
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_alive, workers))


def test_an_exception_does_not_wait_for_them():
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError), Workers(1) as workers:
        workers.submit(time.sleep, 300)
        raise ZeroDivisionError
    assert time.monotonic() - began < 60


def test_signals_reach_this_process_as_before():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Workers(1) as workers:
        assert workers.submit(abs, -1).result() == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
