"""How a run is spread over processes: as many as devices, or as torchrun says."""

import os
from dataclasses import replace

import torch
from torch import distributed

from experiments.config import Config
from pyro_lom.errors import UserError


def processes(devices: int) -> tuple[int, int]:
    """Processes on each machine, and machines: as torchrun started them, or as many as devices on this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, 1
    each, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return each, all_of_them // each


def check_cuda_graph(config: Config, *, on_gpu: bool, num_processes: int = 1) -> None:
    """Refuse a CUDA graph where there can be none.

    Raises:
        UserError: several processes, no GPU, or matching on the CPU.
    """
    if num_processes > 1:
        raise UserError(f"--cuda-graph is for one GPU, not for {num_processes} devices: leave one of the two out")
    if not on_gpu:
        raise UserError("--cuda-graph is for a GPU, and this is for the CPU: leave it out")
    if config.model.matching == "hungarian":
        raise UserError(
            "--cuda-graph does not go with --model.matching hungarian, which works on the CPU: take greedy, or leave "
            "the graph out"
        )


def join_again() -> None:
    """Form the process group of a job that torchrun restarted on one machine; any other is left to Fabric.

    The store in which processes find each other outlives them, and so new ones may find addresses of dead ones there
    and wait for them (pytorch/pytorch#135712). Under a prefix for each attempt they do not. On several machines
    attempts are counted by each apart: there torchrun has to be told to make a new store.
    """
    environment = os.environ
    attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if attempt == "0" or environment["WORLD_SIZE"] != environment["LOCAL_WORLD_SIZE"]:
        return
    store, rank, world_size = next(distributed.rendezvous("env://"))
    store = distributed.PrefixStore(f"attempt {attempt}", store)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size)


def shared_out(config: Config, global_batch_size: int | None, world_size: int, accumulate: int) -> Config:
    """With each process's share of the scenes of a step.

    Raises:
        UserError: they cannot be shared out evenly.
    """
    train, shares = config.train, world_size * accumulate
    if global_batch_size is not None:
        if global_batch_size % shares:
            raise UserError(
                f"--global-batch-size is {global_batch_size}: it must be a multiple of {shares}, the devices times "
                "--accumulate"
            )
        train = replace(train, batch_size=global_batch_size // world_size, ordered_batch_size=None)
    for size in (train.batch_size, train.ordered_batch_size or train.batch_size):
        if size % accumulate:
            raise UserError(f"--accumulate is {accumulate}: it must divide the batch of {size} scenes of each device")
    if accumulate > 1 and train.ordered_rendered is not None and config.model.system.startswith("lom-"):
        raise UserError(
            "--accumulate does not go with --train.ordered-rendered, which saves memory in its place: leave one of the "
            "two out (--train.ordered-rendered None)"
        )
    return replace(config, train=train)
