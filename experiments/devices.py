"""How a run is spread over processes: as many as devices, or as torchrun says."""

import os
from dataclasses import replace

from experiments.config import Config
from pyro_lom.errors import UserError


def processes(devices: int) -> tuple[int, int]:
    """Processes on each machine, and machines: as torchrun started them, or as many as devices on this one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return devices, 1
    each, all_of_them = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return each, all_of_them // each


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
    if accumulate > 1 and train.ordered_rendered is not None:
        raise UserError("--accumulate does not go with --train.ordered-rendered, which saves memory in its place")
    return replace(config, train=train)
