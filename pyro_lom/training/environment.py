"""The software and hardware that a run was computed with."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from torch import distributed


def job_name() -> str | None:
    """Return the torchrun job of this process as "RDZV_ID HOST AGENT_PID"; None without torchrun."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    return job and f"{job} {platform.node()} {os.getppid()}"


def environment() -> dict:
    """Return the commit, job name, versions, numbers of threads and of training processes, and device names."""
    root, git = Path(__file__).parent.parent, ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, cwd=root, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # git is not installed
        commit = ""
    packages = ("torch", "pyro-ppl", "lightning-fabric", "numpy", "h5py", "safetensors")
    return {
        "commit": commit or None,
        "job": job_name(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "processes": distributed.get_world_size() if distributed.is_initialized() else 1,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
    }
