"""The software and hardware that a run was computed with."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import distributed

_PATIENCE = 10  # seconds that git may take, which can wait for a disk of the network


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `environment.json`."""

    commit: str | None  # None without git, or if it hangs or prints too much
    job: str | None = None  # `job_name`
    python: str
    platform: str
    packages: dict[str, str]  # versions by name
    threads: int
    processes: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    devices: list[str]


def job_name() -> str | None:
    """Return the torchrun job of this process as "RDZV_ID HOST AGENT_PID"; None without torchrun."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return job and f"{job} {platform.node()} {os.getppid()}"


def environment() -> Environment:
    """Return the environment of this process."""
    packages = ("torch", "pyro-ppl", "lightning-fabric", "numpy", "h5py", "safetensors")
    return Environment(
        commit=_commit(),
        job=job_name(),
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: version(name) for name in packages},
        threads=torch.get_num_threads(),
        processes=distributed.get_world_size() if distributed.is_initialized() else 1,
        devices=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
    )


def _commit() -> str | None:
    # Without its option, git locks and writes the index of the repository.
    root, git = Path(__file__).parent.parent, ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
    output, given = os.pipe()  # holds 64 KiB: a git that prints more waits, and is stopped
    os.set_blocking(output, False)
    try:
        silent = subprocess.DEVNULL
        subprocess.run(git, cwd=root, stdin=silent, stdout=given, stderr=silent, timeout=_PATIENCE)
        return os.read(output, 1 << 16).decode(errors="backslashreplace").strip() or None  # a tag may not be UTF-8
    except (OSError, subprocess.TimeoutExpired):  # git is not installed, or prints nothing, or hangs
        return None
    finally:
        os.close(output)
        os.close(given)
