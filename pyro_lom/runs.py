"""Run folders: everything a run wrote, and all it needs to start again."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_lom.environment import environment, job_name
from pyro_lom.errors import UserError

_KEPT_CHECKPOINTS = 2


class Progress(NamedTuple):
    """How far a run has come."""

    step: int  # steps done
    seconds: float  # spent training, over all sessions of the run
    images_seen: int


class Run:
    """A folder `runs/00012-NAME-seed0/`: configuration, environment, log, metrics, checkpoints, figures, summary.

    Files are written to a temporary name and renamed, so that a reader, or a run that was killed, never meets half of
    one. A checkpoint is a folder of safetensors and JSON: loading one cannot run code.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @classmethod
    def create(cls, runs_dir: Path, name: str, config: dict) -> "Run":
        """A new numbered folder under `runs_dir`, with `config.json` and `environment.json`."""
        runs_dir = Path(runs_dir)
        with _told(runs_dir):
            runs_dir.mkdir(parents=True, exist_ok=True)
            while True:
                numbers = [int(found[0]) for p in runs_dir.iterdir() if (found := re.match(r"\d{5}(?=-)", p.name))]
                folder = runs_dir / f"{max(numbers, default=-1) + 1:05d}-{name}"
                try:
                    folder.mkdir()
                    break
                except FileExistsError:  # another process took number and name
                    continue
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
        """An existing run.

        Raises:
            UserError: `folder` holds no `config.json`.
        """
        run = cls(folder)
        if not (run.folder / "config.json").is_file():
            raise UserError(f"{folder} is not a run folder: it has no config.json; name one like runs/00000-...")
        return run

    @classmethod
    def restarted(cls, runs_dir: Path, config: dict) -> "Run | None":
        """The run of `config` that this job began before torchrun restarted its processes; None if it began none."""
        job = job_name()
        for folder in sorted(Path(runs_dir).glob("[0-9]*-*"), reverse=True) if job else ():
            run = cls(folder)
            with suppress(UserError):  # others' runs may be damaged
                if run.read_json("environment.json").get("job") == job and run.read_json("config.json") == config:
                    return run
        return None

    @property
    def figures(self) -> Path:
        folder = self.folder / "figures"
        with _told(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def read_json(self, name: str) -> Any:
        """Raises UserError when the file is missing or is not JSON."""
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
        """The logged metrics, a dict a log step; half a line, as a kill or a full disk may leave it, does not count."""
        path, rows = self.folder / "metrics.jsonl", []
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Forget metrics of steps after `step`, from which the run goes on."""
        kept = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        with replacing(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(kept))

    def save_checkpoint(self, progress: Progress, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Path:
        """Write `checkpoints/step-00001000/`, then drop all but the last two."""
        folder = self.folder / "checkpoints" / f"step-{progress.step:08d}"
        temporary = folder.with_name(folder.name + ".tmp")
        with _told(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                save_file(_contiguous(weights), temporary / "weights.safetensors")
                save_file(_contiguous(optimizer), temporary / "optimizer.safetensors")
                (temporary / "state.json").write_text(json.dumps(progress._asdict(), indent=2) + "\n")
                for path in temporary.iterdir():
                    _sync(path)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(temporary, folder)
                _sync(folder.parent)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        for old in (*self.checkpoints()[:-_KEPT_CHECKPOINTS], *folder.parent.glob("*.tmp")):
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("checkpoints/step-*") if p.suffix != ".tmp")

    def load_checkpoint(self) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
        """Progress, weights and optimiser tensors of the last checkpoint.

        Raises:
            UserError: there is none, or it is damaged.
        """
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
        with _told(path), path.open("a") as file:
            file.write(line + "\n")


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load `weights` into `module`, all of them and nothing else.

    Raises:
        UserError: they belong to another architecture; names the first tensor that differs.
    """
    own = module.state_dict()
    for name in [*own, *weights]:
        here, there = own.get(name), weights.get(name)
        if here is None or there is None or here.shape != there.shape:
            found = "nothing" if there is None else f"shape {tuple(there.shape)}"
            wanted = "nothing" if here is None else f"shape {tuple(here.shape)}"
            raise UserError(
                f"the checkpoint in {source} is of another architecture: at {name!r} the model has {wanted}, the "
                f"checkpoint {found}; use the preset and the options of that run"
            )
    module.load_state_dict(weights)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that becomes `path` once it is written, so that no reader meets half of one.

    Raises:
        UserError: the disk is full, or the file may not be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with _told(path):
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns a full disk or a forbidden path into one line that names it."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors tells of the disk in words alone
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full; make room and resume the run" if full else getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {path}: {reason}") from error


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
