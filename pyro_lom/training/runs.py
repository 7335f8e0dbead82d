"""Run folders: configuration, environment, log, metrics, checkpoints, figures and summary of a training run."""

import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from pyro_lom.errors import UserError
from pyro_lom.files import open_own, read_own, replacing, sync, writing
from pyro_lom.training import checkpoints
from pyro_lom.training.checkpoints import Progress
from pyro_lom.training.environment import Environment, environment, job_name

_NUMBERED = re.compile(r"([0-9]{5}|[1-9][0-9]{5})-")
_UNFINISHED = ".unfinished.tmp"  # a run folder before it has a number
_NUM_RECENT = 1000  # runs among which a restarted job looks for its own
_LARGEST = 1 << 20  # bytes of a JSON file; a larger one is damaged
_LARGEST_METRICS = 32 << 20
_LARGEST_NUMBER = 1e308  # of a float
_MOST_METRICS = 1000  # names, each a curve of the report


class Run:
    """A folder such as `runs/00012-NAME-seed0/` that contains the files of one run.

    The log and the metrics are appended to. All other files are written under a temporary name and renamed: a killed
    run leaves no half-written file. No file can run code when it is read.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @classmethod
    def create(
        cls, runs_dir: Path, name: str, config: dict, *, fill: Callable[["Run"], None] = lambda run: None
    ) -> "Run":
        """Create the next numbered folder under `runs_dir`, which contains `config.json` and `environment.json`.

        `fill` may write more into it, before the folder has its name. Processes that create runs wait for each other. A
        kill leaves a complete run, or none.
        """
        runs_dir = Path(runs_dir)
        _check_name(runs_dir)
        with writing(runs_dir):
            runs_dir.mkdir(parents=True, exist_ok=True)
            with _locked(runs_dir, os.O_RDONLY, fcntl.LOCK_EX):
                number = next((number for number, _ in numbered(runs_dir)), -1) + 1
                folder = runs_dir / f"{number:05d}-{name}"
                if not _NUMBERED.match(folder.name):
                    raise UserError(
                        f"{runs_dir} is full: its last run has the number {number - 1}; name another folder"
                    )
                with writing(folder):
                    _make_folder(folder, config, environment(), fill)
        return cls(folder)

    def derive(self, folder: Path, config: dict, *, fill: Callable[["Run"], None]) -> "Run":
        """Create a run of `config` in the new folder `folder`, as computed in the environment of this run.

        `fill` is as in `create`.
        """
        _check_name(folder)
        made_in = msgspec.structs.replace(self.environment(), job=None)  # the job names a host
        with writing(folder), _locked(folder.parent, os.O_RDONLY, fcntl.LOCK_EX):
            _make_folder(folder, config, made_in, fill)
        return Run(folder)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Open an existing run.

        Raises:
            UserError: `folder` has no `config.json`, or contains a symbolic link or a device. They could lead out of
                the folder, or block.
        """
        run = cls(folder)
        _check_name(run.folder)
        if not os.path.isfile(run.folder / "config.json"):
            raise UserError(f"{folder} is not a run folder: it has no config.json; name one like runs/00000-...")
        for place, folders, files in os.walk(run.folder):
            for path in (Path(place, name) for name in (*folders, *files)):
                with suppress(FileNotFoundError):  # another process removed it at this moment
                    mode = path.lstat().st_mode
                    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                        raise UserError(f"{path} is a link or a device, which no run folder contains: remove it")
        return run

    @classmethod
    def restarted(cls, runs_dir: Path, config: dict) -> "Run | None":
        """Return the run of `config` that this job began before torchrun restarted its processes, or None."""
        job = job_name()
        for _, name in numbered(runs_dir)[:_NUM_RECENT] if job else ():
            with suppress(UserError):  # folders of other runs may be damaged
                run = cls(Path(runs_dir, name))
                if run.environment().job == job and run.read_json("config.json") == config:
                    return cls.open(run.folder)
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process, and remove what a killed process left in it.

        Raises:
            UserError: another process holds the run.
        """
        with _locked(self.folder / "config.json", os.O_RDWR, fcntl.LOCK_EX | fcntl.LOCK_NB):
            for leftover in self.folder.glob("checkpoints/*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            self._keep_two_checkpoints()
            yield

    @property
    def figures(self) -> Path:
        folder = self.folder / "figures"
        with writing(folder):
            folder.mkdir(exist_ok=True)
        return folder

    def environment(self) -> Environment:
        """Read `environment.json`; raises UserError as `read_json`."""
        return self.read_json("environment.json", Environment)

    def read_json(self, name: str, kind: Any = dict[str, Any]) -> Any:
        """Read a JSON file of the run; raises UserError if it is missing, is not JSON, or is not of the type `kind`."""
        path = self.folder / name
        try:
            return msgspec.json.decode(read_own(path, _LARGEST), type=kind)
        except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
            raise _unreadable(path, error) from error

    def write_json(self, name: str, content: dict) -> None:
        with replacing(self.folder / name) as temporary:
            temporary.write_bytes(_as_json(content))

    def log(self, line: str) -> None:
        self._append("log.txt", line)

    def log_metrics(self, metrics: dict) -> None:
        self._append("metrics.jsonl", json.dumps(metrics))

    def metrics(self) -> list[dict[str, float]]:
        """Return the logged metrics, one dict per log step, without a last line that a kill or a full disk cut off.

        Raises:
            UserError: a line contains no metrics of a step, or the file cannot be read.
        """
        path, rows, names = self.folder / "metrics.jsonl", [], set()
        try:
            lines = read_own(path, _LARGEST_METRICS).split(b"\n") if path.exists() else []
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = msgspec.json.decode(line, type=dict[str, int | float])
                if not (isinstance(row.get("step"), int) and row["step"] >= 0):
                    raise msgspec.ValidationError("`step` is not a number of steps")
                if any(abs(value) > _LARGEST_NUMBER for value in row.values()):
                    raise msgspec.ValidationError("a number is too large")
                if len(names.union(row)) > _MOST_METRICS:
                    raise msgspec.ValidationError("the metrics have too many names")
                names.update(row)
                rows.append(row)
            except (RecursionError, ValueError, msgspec.MsgspecError) as error:
                raise UserError(f"{path}: line {number} contains no metrics ({error}): remove it") from error
        return rows

    def truncate_metrics(self, step: int) -> None:
        """Delete the metrics of all steps after `step`, the step from which the run resumes."""
        kept = "".join(json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step)
        with replacing(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text(kept)

    def save_checkpoint(self, progress: Progress, weights: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Path:
        """Write a checkpoint such as `checkpoints/step-00001000/`, then delete all checkpoints but the last two."""
        folder = self.folder / "checkpoints" / checkpoints.folder_name(progress.step)
        with writing(folder):
            checkpoints.save(folder, progress, weights, optimizer)
        self._keep_two_checkpoints()
        return folder

    def checkpoints(self) -> list[Path]:
        """Return the folders of all complete checkpoints, oldest first."""
        found = [p for p in self.folder.glob("checkpoints/step-*") if re.fullmatch(r"step-[0-9]{8,16}", p.name)]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def progress(self) -> Progress:
        """Return the counters of the last checkpoint; raises UserError if it is missing, or its files are damaged."""
        return checkpoints.verify(self._last_checkpoint())

    def load_checkpoint(
        self, module: torch.nn.Module | None = None
    ) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
        """Load the last checkpoint, which is for `module`: counters, weights and state of the optimiser.

        Raises:
            UserError: it is missing or damaged, or its files are much larger than those of `module`.
        """
        return checkpoints.load(self._last_checkpoint(), module)

    def _last_checkpoint(self) -> Path:
        if not self.checkpoints():
            raise UserError(f"{self.folder} has no checkpoint to start from")
        return self.checkpoints()[-1]

    def _keep_two_checkpoints(self) -> None:
        with suppress(OSError):
            for old in self.checkpoints()[:-2]:
                checkpoints.remove(old)

    def _append(self, name: str, line: str) -> None:
        path = self.folder / name
        with writing(path), open_own(path, "ab") as file:
            file.write((line + "\n").encode(errors="backslashreplace"))


def numbered(runs_dir: Path) -> list[tuple[int, str]]:
    """Return the numbers and names of all run folders in `runs_dir`, newest first."""
    names = os.listdir(runs_dir) if os.path.isdir(runs_dir) else []
    return sorted(((int(match[1]), name) for name in names if (match := _NUMBERED.match(name))), reverse=True)


def load_weights(module: torch.nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load `weights` into `module`; raises UserError with the first tensor whose name, dtype or shape differs.

    Weights of 16 bits, as packed runs have them, become weights of 32 bits.
    """
    what = f"the checkpoint in {source} is of another architecture"
    weights = {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in weights.items()}
    checkpoints.check_tensors(weights, module.state_dict(), what, "use the preset and the options of that run")
    module.load_state_dict(weights)


def _make_folder(folder: Path, config: dict, made_in: Environment, fill: Callable[[Run], None]) -> None:
    """Make the folder of a run, complete or not at all. Only one process may do this in the same place."""
    temporary = folder.with_name(_UNFINISHED)
    if temporary.is_dir() and not temporary.is_symlink():  # a kill left it, or it is the user's
        if (temporary / "config.json").is_file():
            shutil.rmtree(temporary)
        else:
            temporary.rmdir()
    temporary.mkdir()
    try:
        for name, content in {"config.json": config, "environment.json": msgspec.to_builtins(made_in)}.items():
            (temporary / name).write_bytes(_as_json(content))
            sync(temporary / name)
        fill(Run(temporary))
        sync(temporary)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)


@contextmanager
def _locked(path: Path, flags: int, operation: int) -> Iterator[None]:
    """Hold a lock of `path`, which the kernel releases when the process ends."""
    with writing(path):
        descriptor = os.open(path, flags)
    try:
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError as error:
            raise UserError(f"{path.parent} is in use by another process: stop it, or wait for its end") from error
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        os.close(descriptor)


def _check_name(folder: Path) -> None:
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in str(folder)):
        raise UserError(f"the name {str(folder)!r} is not a text in UTF-8 without NUL: choose another one")


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")


def _as_json(content: dict) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
