"""Rendering in several processes. The number of processes changes neither the scenes nor their order."""

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from typing import Any

from pyro_lom.data.renderers.renderer import Renderer, RenderScene
from pyro_lom.data.writer import Stacked, stacked
from pyro_lom.errors import UserError
from pyro_lom.workers import Workers


class RenderPool:
    """A context manager that renders in several processes. Entering it starts the engine in the first process.

    Processes are spawned, because an OpenGL context does not survive a fork.

    Raises:
        UserError: the engine cannot be started.
    """

    def __init__(self, renderer: Renderer, workers: int):
        self._renderer, self._num_workers, self._workers = renderer, workers, Workers(workers)

    def __enter__(self) -> "RenderPool":
        with ExitStack() as stack:
            stack.enter_context(self._workers)
            try:
                self._workers.submit(_open, self._renderer).result()
            except BrokenProcessPool as error:
                raise UserError(f"{self._renderer.engine} ended the process that it was started in") from error
            stack.pop_all()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._workers.__exit__(*reason)

    def blocks(self, seed: int, rows: range) -> Iterator[Stacked]:
        """Yield the scenes `rows` of a seed in order, in blocks.

        Raises:
            BrokenProcessPool: a process was killed.
        """
        size, pending = self._renderer.block_size, deque()
        for start in range(rows.start, rows.stop, size):
            block = range(start, min(start + size, rows.stop))
            pending.append(self._workers.submit(_render, self._renderer, seed, block))
            if len(pending) > 2 * self._num_workers:  # enough to keep all processes busy while a block is written
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


@functools.cache
def _opened(renderer: Renderer) -> RenderScene:
    return renderer.open()


def _open(renderer: Renderer) -> None:
    _opened(renderer)


def _render(renderer: Renderer, seed: int, rows: range) -> Stacked:
    return stacked(_opened(renderer)(seed, row) for row in rows)
