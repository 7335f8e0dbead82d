"""One row of the benchmark: the trainer's steps, timed as a whole and in parts."""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from experiments.benchmarks.step_parts import Parts, wait
from experiments.config import Config
from experiments.evaluation.reading import reconstruct
from experiments.systems import build
from experiments.training.optimizers import optimizer
from pyro_lom.data.device_minibatches import Minibatch, Prefetched, on_device
from pyro_lom.data.hdf5 import Scenes, read_scenes, write_scenes
from pyro_lom.data.minibatches import Minibatches, to_float
from pyro_lom.objective import Objective
from pyro_lom.system import infer
from pyro_lom.training.compilation import compile_networks
from pyro_lom.training.cuda_graph import WARM_UP
from pyro_lom.training.precision import make_fabric
from pyro_lom.training.step import TrainingStep

NUM_IMAGES = 1024
_FIRST_STEPS = 8  # of which a graph replays the last five
_TIMED_PARTS = 3
_GPU_BLOCK = 10


@dataclass(frozen=True)
class Settings:
    """The settings of a row: one phase of a configuration's training on a device."""

    config: Config
    system: str
    data: str
    device: str
    compiled: bool
    cuda_graph: bool
    accumulate: int
    steps: int
    phase: int = 0

    def __str__(self) -> str:
        mode = "-".join(["compiled"] * self.compiled + ["cuda-graph"] * self.cuda_graph) or "eager"
        train, size = self.config.train, self.config.data.image_size
        return f"{self.config.preset} at {size}, {train.precision}, {mode}"


@pyro.validation_enabled(False)
def measure(settings: Settings) -> dict[str, Any]:
    """Measure a row of the benchmark, in seconds, MiB, GFLOP/s and images per second."""
    config, shape = settings.config, (3, settings.config.data.image_size, settings.config.data.image_size)
    torch.manual_seed(0)
    fabric = make_fabric(settings.device, precision=config.train.precision, devices=1)
    device, on_gpu = fabric.device, fabric.device.type == "cuda"
    system = build(config, shape)
    objective = Objective(system)
    fabric.to_device(objective)
    phase = config.model.phases(system, config.train)[settings.phase]
    pairs = tuple(system) if phase.pairs is None else phase.pairs
    trains_all = len(pairs) == len(system)
    compiled = settings.compiled and compile_networks(objective, partial(print, file=sys.stderr))
    options = dict(clip_norm=config.train.clip_norm, accumulate=settings.accumulate, cuda_graph=settings.cuda_graph)
    take_step = TrainingStep(fabric, objective, pairs, make_optimizer=optimizer(config.train), **options)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        write_scenes(path, _random_scenes(shape), source="the benchmark", seed=0)
        minibatches = Minibatches(read_scenes(path).images, phase.batch_size, seed=0)
        batches = on_device(minibatches, device)
        first = to_float(batches(0).images)
        readers = [name for name in pairs if system[name].reads not in (None, *pairs)]
        objective.eval()
        received = infer(system, first, readers)
        objective.train()
        given = {system[name].reads: received[name] for name in readers}

        def step(number: int, batches: Callable[[int], Minibatch] = batches) -> Tensor:
            torch.manual_seed(number)
            objective.at_step(number)
            return take_step(to_float(batches(number).images), 1e-4, inferred=given).loss

        step_times = partial(_times, number=settings.steps, device=device, block=_GPU_BLOCK if on_gpu else 1)
        peaks = [_matrix_product_gflops(device, config.train.precision)]
        for number in range(WARM_UP):
            step(number)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)  # compilers and cuDNN free most of what they allocate
        step(WARM_UP)  # a graph is recorded here, so its memory counts
        losses = [step(number).item() for number in range(WARM_UP + 1, _FIRST_STEPS)]
        times = step_times(step)
        memory = _peak_memory_mb(device)
        peaks.append(_matrix_product_gflops(device, config.train.precision))
        seconds = {"loading": statistics.median(_times(minibatches, 100, device))}
        if on_gpu:  # the rate for data that do not fit on the GPU
            read_ahead = partial(step, batches=Prefetched(minibatches, device))
            seconds["read_ahead"] = statistics.median(step_times(read_ahead))
        *_, last = system
        objective.eval()
        with torch.no_grad():
            for name, work in {
                "sampling": lambda _: system[last].model(num_scenes=phase.batch_size),
                "evaluation": lambda _: reconstruct(system[last], first, infer(system, first)[last]),
            }.items():
                seconds[name] = statistics.median(_times(work, 4, device)[1:])  # the first one warms up
        objective.train()
        parts = {}
        if not settings.cuda_graph:  # a graph has no parts
            stopwatch = Parts(objective, take_step.optimizer, device)
            for number in range(_TIMED_PARTS):
                with stopwatch.within("data"):
                    batch = batches(number)
                with stopwatch.within("ELBO"):
                    take_step(to_float(batch.images), 1e-4, inferred=given)
            parts = {part: total / _TIMED_PARTS for part, total in stopwatch.seconds.items()}

    median = statistics.median(times)
    gflop = config.model.reference_gflop(shape) if trains_all else None
    return {
        "system": settings.system,
        "data": settings.data,
        "pairs": "all" if trains_all else "+".join(pairs),
        "resolution": config.data.image_size,
        "slots": getattr(config.model, "num_slots", None),
        "batch": phase.batch_size,
        "precision": config.train.precision,
        "device": settings.device,
        "compiled": compiled,
        "cuda_graph": settings.cuda_graph,
        "accumulate": settings.accumulate,
        "threads": torch.get_num_threads(),
        "median_s": median,
        "min_s": min(times),
        "spread_s": float(np.subtract(*np.percentile(times, (90, 10)))),
        "images_per_second": phase.batch_size / median,
        "peak_memory_mb": memory,
        "peak_gflops": max(peaks),
        "reference_gflop": gflop and gflop * phase.batch_size,
        "share_of_peak": gflop and gflop * phase.batch_size / (median * max(peaks)),
        "loss": losses[-1],
        "parts": parts,
        "read_ahead_images_per_second": None,
        **{f"{name}_images_per_second": phase.batch_size / of_batch for name, of_batch in seconds.items()},
    }


def _random_scenes(shape: tuple[int, int, int]) -> Scenes:
    images = np.random.default_rng(0).integers(256, size=(NUM_IMAGES, *shape[1:], shape[0]), dtype=np.uint8)
    splits = {"train": range(NUM_IMAGES)}
    return Scenes(images, None, {}, num_background=0, splits=splits, name="random", version=1)


def _times(work: Callable[[int], Any], number: int, device: torch.device, block: int = 1) -> list[float]:
    """Return the seconds of a call of `work`: `number` means over `block` calls, because a GPU lags behind the CPU."""
    times = []
    for first in range(0, number * block, block):
        wait(device)
        start = time.perf_counter()
        for index in range(first, first + block):
            work(index)
        wait(device)
        times.append((time.perf_counter() - start) / block)
    return times


def _matrix_product_gflops(device: torch.device, precision: str, products: int = 20, at_most_s: float = 3.0) -> float:
    """Return the rate of the fastest of some products of square matrices, with the arithmetic of convolutions.

    `at_most_s` limits the time, because bfloat16 is slow on a CPU without instructions for it.
    """
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    left, right = torch.rand(2, size, size, device=device, dtype=dtype)
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    try:
        times: list[float] = []
        while not times or (len(times) < products and sum(times) < at_most_s):
            times += _times(lambda _: left @ right, 1, device)
        return 2 * size**3 / min(times) / 1e9
    finally:
        torch.set_float32_matmul_precision(before)


def _peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory of the process, including libraries, or on a GPU of torch's tensors, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, it does not count the parent process
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
