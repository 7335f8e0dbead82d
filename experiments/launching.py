"""Many trainings side by side: each is `fit.py` in a process of its own, which goes on where it was stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from experiments.config import Config, from_dict, overrides
from experiments.presets import preset
from pyro_lom.errors import UserError
from pyro_lom.runs import Run

_LOOK_EVERY = 2.0  # seconds
_LOGS = "logs"


@dataclass(frozen=True)
class Job:
    """A configuration to train, as a run keeps it, in `study`: a folder of runs and of what they say."""

    config: Config
    study: Path

    @property
    def name(self) -> str:
        return f"{self.config.preset}-seed{self.config.seed}"

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.study / _LOGS / f"{self.name}.txt"

    def run(self) -> Run | None:
        """The last run of this very configuration, finished or not."""
        for folder in sorted(self.study.glob(f"?????-{self.name}"), reverse=True):
            run = Run(folder)
            with suppress(UserError):  # no run, a damaged one, or one of another version
                if from_dict(run.read_json("config.json")) == self.config:
                    return run
        return None

    def finished(self) -> Run | None:
        """The same, where it has got to its end."""
        run = self.run()
        return run if run and (run.folder / "summary.json").exists() else None

    def steps_done(self) -> int:
        run = self.run()
        metrics = run.metrics() if run else []
        return metrics[-1]["step"] if metrics else 0

    def command(self) -> list[str]:
        run = self.run()
        if run:
            options = ["--resume", str(run.folder)]
        else:
            base = replace(preset(self.config.preset), seed=self.config.seed)
            options = [self.config.preset, "--seed", str(self.config.seed), "--runs-dir", str(self.study)]
            options += overrides(self.config, base)
        return [sys.executable, str(Path(__file__).with_name("fit.py")), *options]


def train(jobs: Sequence[Job], *, processes: int) -> dict[Job, str]:
    """Train those that are not finished, `processes` at a time, and return what went wrong with those that failed.

    Each process has one thread, or a GPU, in turn, where there are any. When this process is stopped, by Ctrl-C or
    SIGTERM, they are asked to stop, save themselves, and are waited for.
    """
    waiting = [job for job in jobs if not job.finished()]
    free, running, failed = _places(processes), {}, {}
    done = sum(job.config.train.steps for job in jobs if job not in waiting)
    with (
        _stopping(running),
        tqdm(
            total=sum(job.config.train.steps for job in jobs),
            initial=done + sum(job.steps_done() for job in waiting),
            unit="step",
            mininterval=0.5 if sys.stderr.isatty() else 15,
            dynamic_ncols=True,
            bar_format="{desc} {n_fmt}/{total_fmt} steps {bar:12} {elapsed}<{remaining}{postfix}",
        ) as bar,
    ):
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
                        bar.write(f"{job.name} failed: {failed[job]}", file=sys.stderr)
            at_work = [job for job, _ in running.values()]
            steps = sum(job.config.train.steps for job in jobs if job not in waiting and job not in at_work)
            steps += sum(job.steps_done() for job in [*waiting, *at_work])
            ended = len(jobs) - len(waiting) - len(running)
            bar.set_description_str(f"{ended}/{len(jobs)} runs", refresh=False)
            bar.set_postfix_str(f"; at work: {', '.join(job.name for job in at_work)}", refresh=False)
            bar.update(steps - bar.n)
    return failed


def _places(processes: int) -> list[dict[str, str]]:
    """The environment of each process: its GPU, or one thread."""
    if not torch.cuda.is_available():
        return [{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} for _ in range(processes)]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = named.split(",") if named else [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} for number in range(processes)]


def _start(job: Job, place: dict[str, str]) -> subprocess.Popen:
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("w") as log:
            # Its own session: Ctrl-C reaches this process alone, which passes it on.
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


def _complaint(job: Job, code: int) -> str:
    """The last line that a process said, and where the others are."""
    lines = job.log.read_text(errors="replace").replace("\r", "\n").split("\n")
    said = [line.strip() for line in lines if line.strip()] or ["it said nothing"]
    return f"{said[-1]} (exit code {code}; see {job.log})"


@contextmanager
def _stopping(running: dict[subprocess.Popen, tuple]) -> Iterator[None]:
    """Ask what still runs to stop, and wait for it, however this block is left, by Ctrl-C or SIGTERM, too."""

    def leave(number: int, frame) -> None:
        sys.exit(128 + number)

    handler = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        signal.signal(signal.SIGTERM, handler)
