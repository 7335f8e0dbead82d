"""Scenes made by several processes, in order, and the same however many there are."""

import functools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from pyro_lom.data.renderers.renderer import Renderer, RenderScene
from pyro_lom.errors import UserError


class RenderedBlock(NamedTuple):
    """Successive scenes, as `SceneWriter.append` takes them."""

    images: UInt8[np.ndarray, "n H W 3"]
    labels: UInt8[np.ndarray, "n H W"]
    factors: dict[str, Shaped[np.ndarray, "n max_objects"]]


class RenderPool:
    """Processes that render; a context manager, and ready when entered.

    Processes are spawned: an OpenGL context does not survive a fork. They ignore Ctrl-C, which is for this process to
    act on, and end with it even if it is killed.

    Args:
        renderer: what they render.
        workers: how many there are.

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
        except BrokenProcessPool as error:
            self.__exit__()
            raise UserError(f"{self._renderer.engine} ended the process that it was started in") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def blocks(self, seed: int, rows: range) -> Iterator[RenderedBlock]:
        """Scenes `rows` of a seed, in order.

        Raises:
            BrokenProcessPool: a process was killed.
        """
        size, pending = self._renderer.block_size, deque()
        for start in range(rows.start, rows.stop, size):
            pending.append(self._submit(_render, self._renderer, seed, range(start, min(start + size, rows.stop))))
            if len(pending) > 2 * self._workers:  # enough that none is idle while a block is being written
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def _submit(self, *task: Any) -> Future:
        """Start a task, and a process for it unless one is idle."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the new process inherits it
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


def _render(renderer: Renderer, seed: int, rows: range) -> RenderedBlock:
    images, labels, factors = zip(*(_opened(renderer)(seed, row) for row in rows), strict=True)
    stacked = {name: np.stack([values[name] for values in factors]) for name in factors[0]}
    return RenderedBlock(np.stack(images), np.stack(labels), stacked)
