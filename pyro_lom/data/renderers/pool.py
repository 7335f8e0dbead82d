"""Rendering in several processes. The number of processes changes neither the scenes nor their order."""

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from pyro_lom.data.renderers.renderer import Renderer, RenderScene
from pyro_lom.data.writer import Stacked, stacked
from pyro_lom.errors import UserError


class RenderPool:
    """A context manager that renders in several processes. Entering it starts the engine in the first process.

    Processes are spawned, because an OpenGL context does not survive a fork. They ignore Ctrl-C, which only the parent
    process handles. They end when the parent process ends, even if it is killed.

    Raises:
        UserError: the engine cannot be started.
    """

    def __init__(self, renderer: Renderer, workers: int):
        self._renderer, self._workers = renderer, workers

    def __enter__(self) -> "RenderPool":
        spawn = multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_end_with_parent)
        try:
            self._submit(_open, self._renderer).result()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, BrokenProcessPool):
                raise UserError(f"{self._renderer.engine} ended the process that it was started in") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def blocks(self, seed: int, rows: range) -> Iterator[Stacked]:
        """Yield the scenes `rows` of a seed in order, in blocks.

        Raises:
            BrokenProcessPool: a process was killed.
        """
        size, pending = self._renderer.block_size, deque()
        for start in range(rows.start, rows.stop, size):
            pending.append(self._submit(_render, self._renderer, seed, range(start, min(start + size, rows.stop))))
            if len(pending) > 2 * self._workers:  # enough to keep all processes busy while a block is written
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _submit(self, *task: Any) -> Future:
        """Submit a task. The executor starts a new process for it unless a process is idle."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a new process inherits the mask
        try:
            return self._executor.submit(*task)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent() -> None:
    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.cache
def _opened(renderer: Renderer) -> RenderScene:
    return renderer.open()


def _open(renderer: Renderer) -> None:
    _opened(renderer)


def _render(renderer: Renderer, seed: int, rows: range) -> Stacked:
    return stacked(_opened(renderer)(seed, row) for row in rows)
