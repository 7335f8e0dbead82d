"""One row of the benchmark: a training step as the trainer takes it, timed from outside and part by part."""

import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor, nn

from experiments.config import Config
from experiments.pyro_share import seconds_of_pyro
from experiments.step_parts import Parts, seconds
from experiments.systems import Pair, System, build_objective, build_phases, build_system
from pyro_lom.compilation import compile_networks
from pyro_lom.cuda_graph import WARM_UP
from pyro_lom.data.device_minibatches import Minibatch, Prefetched, on_device
from pyro_lom.data.hdf5 import Scenes, read_scenes, write_scenes
from pyro_lom.data.minibatches import Minibatches, to_float
from pyro_lom.precision import make_fabric
from pyro_lom.step import TrainingStep
from pyro_lom.types import OrderlessPosterior

# GFLOP of a training step at 64x64, K = 7, batch 8, of products that its equations ask for: forward, and twice as many
# backward. Fixed, so that doing fewer counts as faster and doing needless ones does not.
REFERENCE_GFLOP = {"genesis-v2": 88, "lom-genesis-v2": 135, "emorl": 943}
_NUM_IMAGES = 1024
_TIMED_PARTS = 3
_GPU_BLOCK = 10


@dataclass(frozen=True)
class Settings:
    """What is measured: one phase of a configuration's training."""

    config: Config
    data: str
    resolution: int
    device: str
    compiled: bool
    cuda_graph: bool
    accumulate: int
    steps: int
    phase: int = 0


@pyro.validation_enabled(False)
def measure(settings: Settings) -> dict[str, Any]:
    """A row of the benchmark, in seconds, MB and images per second."""
    config, shape = settings.config, (3, settings.resolution, settings.resolution)
    torch.manual_seed(0)
    fabric = make_fabric(settings.device, precision=config.train.precision, devices=1)
    system = build_system(config, shape)
    objective = build_objective(config, system, shape)
    fabric.to_device(objective)
    phase = build_phases(config, system)[settings.phase]
    pairs = tuple(objective.pairs) if phase.pairs is None else phase.pairs
    compiled = settings.compiled and compile_networks(objective, partial(print, file=sys.stderr))
    options = dict(clip_norm=config.train.clip_norm, accumulate=settings.accumulate)
    take_step = TrainingStep(fabric, objective, pairs, cuda_graph=settings.cuda_graph, **options)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.h5"
        write_scenes(path, _random_scenes(shape), source="the benchmark", seed=0)
        minibatches = Minibatches(read_scenes(path).images, phase.batch_size, seed=0)
        batches = on_device(minibatches, fabric.device)
        first = to_float(batches(0).images)
        given = None if "orderless" in pairs else _inferred(system.orderless.guide, first)

        def step(number: int, batches: Callable[[int], Minibatch] = batches) -> None:
            take_step(to_float(batches(number).images), 1e-4, orderless=given)

        peak = partial(_matrix_product_gflops, fabric.device, config.train.precision)
        peaks = [peak()]
        for number in range(WARM_UP):
            step(number)
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(fabric.device)  # a compiler and cuDNN try what they do not keep
        step(WARM_UP)  # a graph is recorded, and what it holds counted
        times = _step_times(step, settings.steps, fabric.device)
        memory = _peak_memory_mb(fabric.device)
        peaks.append(peak())
        loading = [seconds(lambda number=number: minibatches(number), fabric.device) for number in range(100)]
        read_ahead = None
        if fabric.device.type == "cuda":  # as where the data do not fit on it
            prefetched = partial(step, batches=Prefetched(minibatches, fabric.device))
            read_ahead = phase.batch_size / statistics.median(_step_times(prefetched, settings.steps, fabric.device))
        parts = Parts(fabric.device)
        if not settings.cuda_graph:  # within which nothing can be told apart
            with parts.watched(objective, take_step.optimizer):
                for number in range(_TIMED_PARTS):
                    with parts.within("data"):
                        batch = batches(number)
                    with parts.within("ELBO"):
                        take_step(to_float(batch.images), 1e-4, orderless=given)

    median = statistics.median(times)
    sampling = _median(partial(_sample, system.final, phase.batch_size), fabric.device)
    evaluation = _median(partial(_reconstruct, system, first), fabric.device)
    reference = REFERENCE_GFLOP.get(config.model.system)
    whole = config.model.encoder == "published" and len(pairs) == len(objective.pairs)
    comparable = reference and whole and settings.resolution == 64 and config.model.num_slots == 7
    reference = reference * phase.batch_size / 8 if comparable else None
    pyro_share = None  # of a replayed step, in which Pyro does not run
    if not settings.cuda_graph:
        pyro_share = seconds_of_pyro(objective, first, orderless=given, only=pairs) / median
    return {
        "system": config.model.system,
        "data": settings.data,
        "pairs": "all" if len(pairs) == len(objective.pairs) else "+".join(pairs),
        "resolution": settings.resolution,
        "slots": config.model.num_slots,
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
        "reference_gflop": reference,
        "share_of_peak": reference / (median * max(peaks)) if reference else None,
        "pyro_share": pyro_share,
        "parts": {part: total / _TIMED_PARTS for part, total in parts.seconds.items()},
        "read_ahead_images_per_second": read_ahead,
        "loading_images_per_second": phase.batch_size / statistics.median(loading),
        "sampling_images_per_second": phase.batch_size / sampling,
        "evaluation_images_per_second": phase.batch_size / evaluation,
    }


@torch.no_grad()
def _sample(pair: Pair, num_scenes: int) -> None:
    pair.model(num_scenes=num_scenes)


@torch.no_grad()
def _reconstruct(system: System, images: Tensor) -> None:
    orderless = system.orderless.guide.infer(images)
    with poutine.trace() as tracer:
        system.final.guide(images, orderless=orderless)
    with poutine.replay(trace=tracer.trace):
        system.final.model(num_scenes=len(images))


@torch.no_grad()
def _inferred(guide: nn.Module, images: Tensor) -> OrderlessPosterior:
    found = guide.infer(images)
    return OrderlessPosterior(found.loc, found.scale)


def _random_scenes(shape: tuple[int, int, int]) -> Scenes:
    images = np.random.default_rng(0).integers(256, size=(_NUM_IMAGES, *shape[1:], shape[0]), dtype=np.uint8)
    splits = {"train": range(_NUM_IMAGES)}
    return Scenes(images, None, {}, num_background=0, splits=splits, name="random", version=1)


def _step_times(step: Callable[[int], None], number: int, device: torch.device) -> list[float]:
    """Seconds of a step; those of a GPU by ten, as it works on one while the CPU prepares the next."""
    block = _GPU_BLOCK if device.type == "cuda" else 1

    def steps(first: int) -> None:
        for index in range(first, first + block):
            step(index)

    return [seconds(partial(steps, block * index), device) / block for index in range(number)]


def _matrix_product_gflops(device: torch.device, precision: str, products: int = 20, at_most_s: float = 3.0) -> float:
    """The fastest of some products of square matrices, in the arithmetic that convolutions have there.

    One product alone, where it takes long: bfloat16 on a CPU that has no instructions for it.
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
            times.append(seconds(lambda: left @ right, device))
        return 2 * size**3 / min(times) / 1e9
    finally:
        torch.set_float32_matmul_precision(before)


def _peak_memory_mb(device: torch.device) -> float:
    """Of the process, interpreter and libraries included; on a GPU, of what torch took there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, it does not count the process that this one was started from
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _median(work: Callable[[], Any], device: torch.device, times: int = 3) -> float:
    work()
    return statistics.median(seconds(work, device) for _ in range(times))
