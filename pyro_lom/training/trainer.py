"""The training loop, which writes a run folder. A resumed run continues bit for bit."""

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

from pyro_lom.data.device_minibatches import on_device
from pyro_lom.data.minibatches import Minibatches, to_float
from pyro_lom.errors import UserError
from pyro_lom.objective import Evaluation, Objective
from pyro_lom.training.checkpoints import Progress, check_data, fingerprint
from pyro_lom.training.non_finite import NonFiniteLoss, NonFiniteWatch
from pyro_lom.training.phase import Phase
from pyro_lom.training.progress import pair_line, step_bar
from pyro_lom.training.runs import Run, load_weights
from pyro_lom.training.signals import handling
from pyro_lom.training.step import FUSED_ADAM, MakeOptimizer, TrainingStep

_BATCH = 64  # images whose posteriors are inferred at once


class _StopDrawing(BaseException):
    """Raised by a signal while a preview is drawn."""


class Interrupted(Exception):
    """Raised when a signal stopped the run, after it was saved."""

    def __init__(self, signal_number: int, step: int, run: Run):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}, and saved; --resume {run.folder} goes on from there")
        self.signal_number = signal_number


class Trainer:
    """Minimises the loss of an objective, phase after phase, and writes logs and checkpoints to `run`.

    Noise depends on (seed, rank, step) and minibatches depend on (seed, epoch). A run that was stopped or killed and is
    resumed therefore ends with the same weights, bit for bit, on the same machine with the same number of threads.

    Args:
        images: uint8 (N, H, W, C) array, the training split.
        clip_norm, accumulate, cuda_graph, make_optimizer: see `TrainingStep`.
        preview: called with the step every `preview_every` steps, on rank 0, in evaluation mode; draws figures.
    """

    def __init__(
        self,
        fabric: Fabric,
        objective: Objective,
        images: np.ndarray,
        phases: list[Phase],
        run: Run,
        *,
        seed: int,
        clip_norm: float | None = None,
        accumulate: int = 1,
        cuda_graph: bool = False,
        make_optimizer: MakeOptimizer = FUSED_ADAM,
        log_every: int = 50,
        checkpoint_every: int = 1000,
        preview_every: int | None = None,
        preview: Callable[[int], None] | None = None,
    ):
        self.fabric, self.objective, self.images, self.phases, self.run = fabric, objective, images, phases, run
        self.seed, self.log_every, self.checkpoint_every = seed, log_every, checkpoint_every
        self.preview_every, self.preview = preview_every, preview
        self._step_options = dict(
            clip_norm=clip_norm, accumulate=accumulate, cuda_graph=cuda_graph, make_optimizer=make_optimizer
        )
        self.num_steps = sum(phase.steps for phase in phases)
        self._data = fingerprint(images)
        self.step = 0  # finished steps
        self.seconds = 0.0  # of training, since the first start of the run
        self.images_seen = 0
        self._restored: TrainingStep | None = None  # of a run that resumes within a phase
        self._lines: dict[str, str] = {}  # the last numbers of every pair, for the progress bar
        self._stop_signal = 0
        self._drawing = False

    def resume(self) -> None:
        """Load the run's last checkpoint. Without a checkpoint, the run starts from step 0.

        Raises:
            UserError: the checkpoint is damaged, or is of another model, training or data set.
        """
        if self.run.checkpoints():
            progress, weights, optimizer = self.run.load_checkpoint(self.objective)
            if progress.step > self.num_steps:
                raise UserError(
                    f"the checkpoint in {self.run.folder} is at step {progress.step}, but this configuration has "
                    f"{self.num_steps} steps: restore the config.json that the run began with"
                )
            check_data(progress, self.images, self.run.folder)
            load_weights(self.objective, weights, self.run.folder)
            self.step, self.seconds, self.images_seen = progress.step, progress.seconds, progress.images_seen
            for phase, start in self._unfinished():
                if self.step > start:
                    self._restored = self._training_step(phase)
                    self._restored.load_state(optimizer, self.run.folder, num_steps=self.step)
                break
        self.fabric.barrier()  # all processes have read the checkpoint
        if self.fabric.is_global_zero:
            self.run.truncate_metrics(self.step)

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal of `STOP_SIGNALS` arrived, and the run was saved.
            NonFiniteLoss: a term or a weight is NaN or infinite. The message contains the step and the name.
            UserError: a file cannot be written.
        """
        with handling(self._ask_to_stop):
            self.progress = step_bar(self.num_steps, self.step, disable=not self.fabric.is_global_zero)
            try:
                if not self.run.checkpoints():  # a resumed run must not depend on how weights were initialised
                    self._save({})
                for phase, start in self._unfinished():
                    self._fit_phase(phase, start)
            finally:
                self.progress.close()
                self.objective.at_step(self.step)

    def _unfinished(self) -> Iterator[tuple[Phase, int]]:
        """Yield the phases that are not finished, each with the step at which it starts."""
        start = 0
        for phase in self.phases:
            if self.step < start + phase.steps:
                yield phase, start
            start += phase.steps

    def _training_step(self, phase: Phase) -> TrainingStep:
        return TrainingStep(self.fabric, self.objective, phase.pairs, **self._step_options)

    def _fit_phase(self, phase: Phase, start: int) -> None:
        names = tuple(self.objective.pairs) if phase.pairs is None else phase.pairs
        fabric = self.fabric
        if self.step == start and phase.prepare is not None:
            phase.prepare()
        minibatches = Minibatches(self.images, phase.batch_size, self.seed, fabric.global_rank, fabric.world_size)
        batches = on_device(minibatches, fabric.device)
        began = time.perf_counter()
        known = self._infer_all(names)
        self.seconds += time.perf_counter() - began
        take_step, self._restored = self._restored or self._training_step(phase), None
        self._stop_between_steps()
        self.progress.set_description_str("+".join(names), refresh=False)

        self._watch = NonFiniteWatch(never=self.num_steps + 1)
        self._window_start, self._window_images = time.perf_counter(), self.images_seen
        while self.step < start + phase.steps:
            self._seed(self.step)
            learning_rate = phase.learning_rate_at(self.step - start)
            images, rows = batches(self.step)
            inferred = tree_map_only(Tensor, lambda tensor, rows=rows: tensor[rows], known)
            self.objective.at_step(self.step)
            evaluation = take_step(to_float(images), learning_rate, inferred=inferred)
            self.step += 1
            self._watch.note(self.step, evaluation.terms)
            self.images_seen += phase.batch_size * fabric.world_size
            self.progress.update()
            last = self.step == start + phase.steps
            # Several processes agree at log steps only.
            stop = self._signal() if fabric.world_size == 1 or self.step % self.log_every == 0 else 0
            to_log = self.step % self.log_every == 0 or last or stop
            to_save = self.step % self.checkpoint_every == 0 or last or stop
            if to_log or to_save:  # losses are read back only here
                self._watch.check(fabric, self._last_good())
            if to_log:
                self._log(evaluation, names, learning_rate)
            if to_save:
                self._save({} if last else take_step.state())  # the next phase begins with a new optimiser
            if stop:
                raise Interrupted(stop, self.step, self.run)
            if self.preview and self.preview_every and self.step % self.preview_every == 0 and fabric.is_global_zero:
                self._draw()

    def _draw(self) -> None:
        """Call `preview` in evaluation mode. A signal ends it at once, and stops the run after the next step."""
        began = time.perf_counter()
        self.objective.eval()
        try:
            self._drawing = True
            self.preview(self.step)
        except _StopDrawing:
            pass
        finally:
            self._drawing = False
            self.objective.train()
            self._window_start += time.perf_counter() - began

    @torch.no_grad()
    def _infer_all(self, names: Iterable[str]) -> dict[str, Any]:
        """Infer the posteriors of all training images, by pair, for the pairs that `names` read but that do not train.

        Each image has one sample of the guide's noise.
        """
        known: dict[str, Any] = {}
        for source in {self.objective.pairs[name].reads for name in names} - {None, *names}:
            self._seed(f"{source} posteriors")
            guide, parts = self.objective.pairs[source].guide, []
            for first in range(0, len(self.images), _BATCH):
                self.progress.set_description_str(f"{source} posteriors {first}/{len(self.images)}", refresh=False)
                self.progress.update(0)  # redraws the bar, at most once per interval
                images = torch.from_numpy(self.images[first : first + _BATCH].copy())
                self._stop_between_steps()
                inferred = guide.infer(to_float(self.fabric.to_device(images.permute(0, 3, 1, 2))))
                parts.append(guide.pass_on(inferred))
            # Tensors are concatenated. Other values are equal in all batches.
            known[source] = tree_map(lambda *some: torch.cat(some) if isinstance(some[0], Tensor) else some[0], *parts)
        return known

    def _seed(self, moment: int | str) -> None:
        key = moment if isinstance(moment, int) else int.from_bytes(moment.encode(), "big")
        torch.manual_seed(int(np.random.SeedSequence((self.seed, self.fabric.global_rank, key)).generate_state(1)[0]))

    def _ask_to_stop(self, number: int, frame) -> None:
        self._stop_signal = number
        if self._drawing:
            raise _StopDrawing

    def _stop_between_steps(self) -> None:
        """Stop before a phase's first step if a signal arrived. A checkpoint of this moment exists."""
        if number := self._signal():
            raise Interrupted(number, self.step, self.run)

    def _signal(self) -> int:
        """Return the signal that arrived at this process or, if all call this together, at any other; or 0."""
        if self.fabric.world_size == 1:
            return self._stop_signal
        signals = torch.tensor(self._stop_signal, device=self.fabric.device)
        return int(self.fabric.all_reduce(signals, reduce_op="max"))

    def _count_time(self) -> float:
        """Add the time since the last call, without previews, to `seconds`; return the images per second."""
        now = time.perf_counter()
        elapsed, num_images = now - self._window_start, self.images_seen - self._window_images
        self._window_start, self._window_images = now, self.images_seen
        self.seconds += elapsed
        return num_images / elapsed

    def _last_good(self) -> str:
        saved = self.run.checkpoints()
        return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"

    def _log(self, evaluation: Evaluation, names: tuple[str, ...], learning_rate: float) -> None:
        rate = self._count_time()
        means = self._means({"loss": evaluation.loss, **evaluation.terms})
        metrics = {"step": self.step, "seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)}
        metrics |= {"learning_rate": learning_rate, **means}
        errors = self._means(evaluation.errors)
        for name in names:
            report = self.objective.pairs[name].elbo.report(errors[name])
            metrics |= {f"{name}/{key}": value for key, value in report.items()}
            terms = {key.removeprefix(f"{name}/"): value for key, value in means.items() if key.startswith(f"{name}/")}
            self._lines[name] = pair_line(name, report, terms)
        if self.fabric.is_global_zero:
            self.run.log_metrics(metrics)
            self.progress.set_postfix_str(" | ".join([f"{rate:.0f} img/s", *self._lines.values()]), refresh=False)

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Return the means over all processes, read back from the device in one transfer."""
        means = self.fabric.all_reduce(torch.stack([*values.values()]), reduce_op="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def _save(self, optimizer: dict[str, Tensor]) -> None:
        """Write a checkpoint; raises NonFiniteLoss if a tensor is not finite."""
        weights = self.objective.state_dict()
        for name, tensor in (weights | optimizer).items():
            if not torch.isfinite(tensor).all():
                found = f"{name} became NaN or infinite by step {self.step}"
                raise NonFiniteLoss(f"the weights are not finite: {found}; {self._last_good()}")
        if self.fabric.is_global_zero:
            progress = Progress(self.step, self.seconds, self.images_seen, self._data)
            self.run.save_checkpoint(progress, weights, optimizer)
