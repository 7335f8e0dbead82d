"""Run folders: configuration, environment, log, metrics, checkpoints, figures and summary of a training run."""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_lom.errors import UserError
from pyro_lom.files import replacing, writing
from pyro_lom.training.environment import environment, job_name


class Progress(NamedTuple):
    """The counters in a checkpoint."""

    step: int  # finished steps
    seconds: float  # training time since the first start of the run, without interruptions
    images_seen: int


class Run:
    """A folder such as `runs/00012-NAME-seed0/` that contains the files of one run.

    The log and the metrics are appended to. All other files are written under a temporary name and renamed: a killed
    run leaves no half-written file. A checkpoint consists of safetensors and JSON files: loading it cannot run code.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @classmethod
    def create(cls, runs_dir: Path, name: str, config: dict) -> "Run":
        """Create the next numbered folder under `runs_dir` and write `config.json` and `environment.json` into it."""
        runs_dir = Path(runs_dir)
        with writing(runs_dir):
            runs_dir.mkdir(parents=True, exist_ok=True)
            while True:
                numbers = [int(found[0]) for p in runs_dir.iterdir() if (found := re.match(r"\d{5}(?=-)", p.name))]
                folder = runs_dir / f"{max(numbers, default=-1) + 1:05d}-{name}"
                with suppress(FileExistsError):  # another process created this folder first
                    folder.mkdir()
                    break
        run = cls(folder)
        try:
            run.write_json("config.json", config)
            run.write_json("environment.json", environment())
        except UserError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open an existing run; raises UserError if `folder` contains no `config.json`."""
        run = cls(folder)
        if not (run.folder / "config.json").is_file():
            raise UserError(f"{folder} is not a run folder: it has no config.json; name one like runs/00000-...")
        return run

    @classmethod
    def restarted(cls, runs_dir: Path, config: dict) -> "Run | None":
        """Return the run of `config` that this job began before torchrun restarted its processes, or None."""
        job = job_name()
        for folder in sorted(Path(runs_dir).glob("[0-9]*-*"), reverse=True) if job else ():
            run = cls(folder)
            with suppress(UserError):  # folders of other runs may be damaged
                if run.read_json("environment.json").get("job") == job and run.read_json("config.json") == config:
                    return run
        return None

    @property
    def figures(self) -> Path:
        folder = self.folder / "figures"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run; raises UserError if the file is missing or is not JSON."""
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from error

    def write_json(self, name: str, content: dict) -> None:
        with replacing(self.folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def log(self, line: str) -> None:
        self._append("log.txt", line)

    def log_metrics(self, metrics: dict) -> None:
        self._append("metrics.jsonl", json.dumps(metrics))

    def metrics(self) -> list[dict]:
        """Return the logged metrics, one dict per log step. Lines that a kill or a full disk cut off are skipped."""
        path, rows = self.folder / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Delete the metrics of all steps after `step`, the step from which the run resumes."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        with replacing(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(kept))

    def save_checkpoint(self, progress: Progress, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Path:
        """Write a checkpoint such as `checkpoints/step-00001000/`, then delete all checkpoints but the last two."""
        folder = self.folder / "checkpoints" / f"step-{progress.step:08d}"
        temporary = folder.with_name(folder.name + ".tmp")
        with writing(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                for name, tensors in (("weights", weights), ("optimizer", optimizer)):
                    # Copies, because some modules register a tensor under two names, as Pyro's spline flows do.
                    own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
                    save_file(own, temporary / f"{name}.safetensors")
                (temporary / "state.json").write_text(json.dumps(progress._asdict(), indent=2) + "\n")
                for path in temporary.iterdir():
                    _sync(path)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
                _sync(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in (*self.checkpoints()[:-2], *folder.parent.glob("*.tmp")):
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def checkpoints(self) -> list[Path]:
        """Return the folders of all complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("checkpoints/step-*") if p.suffix != ".tmp")

    def load_checkpoint(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
        """Load the last checkpoint: counters, weights, optimiser; raises UserError if it is missing or damaged."""
        if not self.checkpoints():
            raise UserError(f"{self.folder} has no checkpoint to start from")
        folder = self.checkpoints()[-1]
        try:
            state = json.loads((folder / "state.json").read_text())
            progress = Progress(int(state["step"]), float(state["seconds"]), int(state["images_seen"]))
            return progress, load_file(folder / "weights.safetensors"), load_file(folder / "optimizer.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint {folder} is damaged ({error}); remove it to go on from the one before"
            ) from error

    def _append(self, name: str, line: str) -> None:
        path = self.folder / name
        with writing(path), path.open("a") as file:
            file.write(line + "\n")


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load `weights` into `module`; raises UserError with the first tensor whose name or shape differs."""
    own = module.state_dict()
    for name in [*own, *weights]:
        here, there = (f"shape {tuple(t[name].shape)}" if name in t else "nothing" for t in (own, weights))
        if here != there:
            raise UserError(
                f"the checkpoint in {source} is of another architecture: at {name!r} the model has {here}, the "
                f"checkpoint {there}; use the preset and the options of that run"
            )
    module.load_state_dict(weights)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
