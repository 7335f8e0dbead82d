"""A pool of worker processes that leaves signals to the process that started it, and ends with it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any

from pyro_lom.training.signals import STOP_SIGNALS


class Workers:
    """A context manager for a pool of `number` spawned processes.

    Signals that stop a command may reach all processes of a terminal or of a job. Workers ignore them, except for
    SIGTERM, which ends a worker. They are killed when the block is left by an exception, and end when the parent
    process ends, even if it is killed.
    """

    def __init__(self, number: int):
        self._number = number

    def __enter__(self) -> "Workers":
        with _blocked():
            resource_tracker.ensure_running()  # a process of `multiprocessing`; it unblocks some signals here
        with _blocked():
            spawn = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self._number, mp_context=spawn, initializer=_start)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.kill()
        self._executor.shutdown(cancel_futures=True)

    def submit(self, *task: Any) -> Future:
        """Submit a function and its arguments. The pool starts a new process for it unless a process is idle."""
        with _blocked():
            return self._executor.submit(*task)


@contextmanager
def _blocked() -> Iterator[None]:
    """Delay signals. A process that is started here inherits this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start() -> None:
    for number in STOP_SIGNALS:
        is_for_workers = number == signal.SIGTERM  # the pool ends its workers by it if one of them was killed
        signal.signal(number, signal.SIG_DFL if is_for_workers else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
