"""The processes of a run: one per device, or as torchrun started them."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import torch
from lightning_fabric import Fabric
from torch import distributed

from experiments.config import Config
from pyro_lom.errors import UserError
from pyro_lom.training.non_finite import NonFiniteLoss
from pyro_lom.training.phase import Phase
from pyro_lom.training.trainer import Interrupted

_ERROR = "error of another process"
_OF_TORCHRUN = ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "LOCAL_RANK", "RANK", "GROUP_RANK", "MASTER_PORT")


def processes(devices: int) -> tuple[int, int]:
    """Return the numbers of processes per machine and of machines: torchrun's, or `devices` and 1.

    Raises:
        UserError: `devices` is more than this machine can run, or the variables of torchrun are damaged.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        check_number("--devices", devices)
        return devices, 1
    given = {name: os.environ.get(name, "0") for name in _OF_TORCHRUN}
    remedy = "start the run with torchrun, or unset TORCHELASTIC_RUN_ID"
    for name, value in given.items():
        if not re.fullmatch("[0-9]{1,9}", value):
            raise UserError(f"the environment variable {name} is {value!r} and no number: {remedy}")
    each, total = int(given["LOCAL_WORLD_SIZE"]), int(given["WORLD_SIZE"])
    if not 1 <= each <= total or total % each:
        raise UserError(f"the environment variables LOCAL_WORLD_SIZE = {each} and WORLD_SIZE = {total} clash: {remedy}")
    return each, total // each


def check_number(option: str, processes: int) -> None:
    """Raise UserError if an option asks for more processes than the machine has CPU cores; two are always possible."""
    if processes > (most := max(2, os.cpu_count() or 1)):
        raise UserError(f"{option} is {processes}: this machine runs at most {most} processes, one on each CPU core")


@contextmanager
def one_report(fabric: Fabric) -> Iterator[None]:
    """Let only the first process of a run report its end. Errors of other processes reach it through the store."""
    try:
        yield
    except (UserError, NonFiniteLoss, Interrupted, MemoryError, RuntimeError) as error:
        if fabric.world_size == 1:
            raise
        is_lost_connection = isinstance(error, distributed.DistError) or "gloo" in str(error)
        store = distributed.distributed_c10d._get_default_store()
        if fabric.is_global_zero:
            if not is_lost_connection:
                raise
            unknown = "another process of this run ended without a message, perhaps for lack of memory: resume the run"
            raise UserError(store.get(_ERROR).decode() if store.check([_ERROR]) else unknown) from error
        if not is_lost_connection:
            with suppress(RuntimeError):  # the first process, which keeps the store, has ended
                store.set(_ERROR, " ".join(str(error).split()) or type(error).__name__)
        sys.exit()  # with any other code, the process that started this one is killed without a message
    except KeyboardInterrupt:  # a terminal sends it to all processes
        if fabric.is_global_zero:
            raise
        sys.exit()


def check_cuda_graph(*, on_gpu: bool, num_processes: int = 1) -> None:
    """Raise UserError for a CUDA graph on several devices or on a CPU."""
    if num_processes > 1:
        raise UserError(f"--cuda-graph is for one GPU, not for {num_processes} devices: leave one of them out")
    if not on_gpu:
        raise UserError("--cuda-graph needs a GPU, and this is a CPU: leave it out")


def join_again() -> None:
    """Form the process group of a job that torchrun restarted on one machine; Fabric forms all others.

    The store in which processes find each other outlives them. New processes may find addresses of dead processes in it
    and wait for them (pytorch/pytorch#135712). A prefix for each attempt prevents this. It cannot be used on several
    machines, because they count attempts separately; there, an option of torchrun must request a new store.
    """
    environment = os.environ
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or environment["WORLD_SIZE"] != environment["LOCAL_WORLD_SIZE"]:
        return
    store, rank, world_size = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(f"attempt {attempt}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def with_global_batch_size(config: Config, global_batch_size: int | None, world_size: int, accumulate: int) -> Config:
    """Return the configuration with `global_batch_size` scenes per step of all processes together, in every phase.

    Raises:
        UserError: the scenes cannot be divided equally.
    """
    if global_batch_size is None:
        return config
    shares = world_size * accumulate
    if global_batch_size % shares:
        raise UserError(
            f"--global-batch-size is {global_batch_size}: it must be a multiple of {shares}, the devices times "
            "--accumulate"
        )
    train = replace(config.train, batch_size=global_batch_size // world_size)
    return replace(config, train=train, model=config.model.with_one_batch_size())


def check_batches(phases: list[Phase], num_images: int, *, world_size: int, accumulate: int = 1) -> None:
    """Raise UserError if a batch cannot be divided into equal parts, or requires more images than there are."""
    for size in (phase.batch_size for phase in phases):
        if size % accumulate:
            raise UserError(f"--accumulate is {accumulate}: it must divide the batch of {size} scenes of each device")
        if num_images < (needed := size * world_size):
            raise UserError(
                f"{num_images} training images are fewer than the {needed} of one step: lower the batch size "
                "(--train.batch-size, --global-batch-size, or the one of --model.schedule), or add images"
            )
