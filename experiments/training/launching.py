"""Parallel trainings: each is a process of `fit.py`, which resumes its run if it was stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.config import Config, from_dict, overrides
from experiments.systems import SYSTEMS, preset
from experiments.training.devices import check_number
from pyro_lom.errors import UserError, printable
from pyro_lom.files import open_own, replacing
from pyro_lom.training.progress import step_bar
from pyro_lom.training.runs import Run, numbered

_LOOK_EVERY = 2.0  # seconds
_MARK = b"Output of fit.py, started by ablate.py\n"
_END = 1 << 16  # bytes at the end of a log that are read


@dataclass(frozen=True)
class Job:
    """A configuration to train in `study`, a folder of runs and of the logs of their processes."""

    config: Config
    study: Path

    @property
    def name(self) -> str:
        return f"{self.config.preset}-seed{self.config.seed}"

    @property
    def log(self) -> Path:
        """The file that contains the output of the process."""
        return self.study / "logs" / f"{self.name}.txt"

    def run(self) -> Run | None:
        """Return the last run of this configuration, finished or not."""
        for number, name in numbered(self.study):
            if name == f"{number:05d}-{self.name}":
                with suppress(UserError):  # no run, a damaged one, or one of another version
                    run = Run.open(self.study / name)
                    if from_dict(run.read_json("config.json"), SYSTEMS) == self.config:
                        return run
        return None

    def finished(self) -> Run | None:
        """Return the last run of this configuration if it is finished."""
        run = self.run()
        return run if run and (run.folder / "summary.json").exists() else None

    def steps_done(self) -> int:
        metrics = run.metrics() if (run := self.run()) else []
        return metrics[-1]["step"] if metrics else 0

    def command(self) -> list[str]:
        if run := self.run():
            options = ["--resume", str(run.folder)]
        else:
            options = [self.config.preset, "--runs-dir", str(self.study)]
            options += overrides(self.config, preset(self.config.preset))
        return [sys.executable, str(Path(__file__).parents[1] / "fit.py"), *options]


def train(jobs: Sequence[Job], *, processes: int) -> dict[Job, str]:
    """Train the unfinished jobs, `processes` at a time, and return the jobs that failed with the reasons.

    Each process has one thread or, on a machine with GPUs, one GPU. Signals that stop this process (`cli.run`) stop the
    trainings as well, and this function waits until they are saved.

    Raises:
        UserError: `processes` is more than this machine can run, or a log cannot be written.
    """
    check_number("--processes", processes)
    waiting = [job for job in jobs if not job.finished()]
    for job in waiting:
        _check_log(job.log)
    free, running, failed = _places(processes), {}, {}
    total = sum(job.config.train.steps for job in jobs)

    def steps_done() -> int:
        unfinished = [*waiting, *(job for job, _ in running.values())]
        return total - sum(job.config.train.steps - job.steps_done() for job in unfinished)

    with _stopping(running), step_bar(total, steps_done()) as bar:
        while waiting or running:
            while waiting and free:
                job, place = waiting.pop(0), free.pop(0)
                running[_start(job, place)] = job, place
            time.sleep(_LOOK_EVERY)
            for process, (job, place) in list(running.items()):
                if process.poll() is not None:
                    del running[process]
                    free.append(place)
                    if not job.finished():
                        failed[job] = _complaint(job, process.returncode)
                        bar.write(printable(f"{job.name} failed: {failed[job]}"), file=sys.stderr)
            ended = len(jobs) - len(waiting) - len(running)
            bar.set_description_str(f"{ended}/{len(jobs)} runs", refresh=False)
            bar.set_postfix_str(f"; at work: {', '.join(job.name for job, _ in running.values())}", refresh=False)
            bar.update(steps_done() - bar.n)
    return failed


def _places(processes: int) -> list[dict[str, str]]:
    """Return the environment variables of each process, which give it one GPU or one thread."""
    if not torch.cuda.is_available():
        return [{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} for _ in range(processes)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(processes)]


def _start(job: Job, place: dict[str, str]) -> subprocess.Popen:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with replacing(job.log) as temporary:
            temporary.write_bytes(_MARK)
        with open_own(job.log, "ab") as log:
            # A new session, so that the process receives no Ctrl-C. `_stopping` stops it.
            return subprocess.Popen(
                job.command(),
                env=os.environ | place,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise UserError(f"cannot write {job.log}: {error.strerror}") from error


def _check_log(path: Path) -> None:
    """Raise UserError if something else than an earlier log is at `path`, or its folder is a link."""
    if path.parent.is_symlink():
        raise UserError(f"{path.parent} is a link: remove it, or name another --study")
    try:
        with open_own(path) as file:
            is_log = file.readline(len(_MARK)) == _MARK
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        is_log = False
    if not is_log:
        raise UserError(f"{path} is in the place of a log: rename it, or name another --study")


def _complaint(job: Job, code: int) -> str:
    """Return the last line of a failed process's output, its exit code, and the path of its log."""
    with open_own(job.log) as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END))
        text = file.read().decode(errors="replace").removeprefix(_MARK.decode())
    *_, last = text.strip().splitlines() or ["it printed nothing"]
    return f"{last.strip()} (exit code {code}; see {job.log})"


@contextmanager
def _stopping(running: dict[subprocess.Popen, tuple]) -> Iterator[None]:
    """Stop the processes that still run and wait for them when the block is left, also by a signal."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
