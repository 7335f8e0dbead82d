"""The training loop: minibatches in, run folder out; it stops cleanly and goes on exactly where it stopped."""

import signal
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from pyro_lom.data.device_minibatches import on_device
from pyro_lom.data.minibatches import Minibatches, to_float
from pyro_lom.errors import UserError
from pyro_lom.non_finite import NonFiniteLoss, NonFiniteWatch
from pyro_lom.objective import Evaluation, Objective
from pyro_lom.optimizer_state import foreign_names, load_named_state, named_state
from pyro_lom.phase import Phase
from pyro_lom.progress import progress_line
from pyro_lom.runs import Progress, Run, load_weights
from pyro_lom.step import TrainingStep
from pyro_lom.types import OrderlessPosterior


class Interrupted(Exception):
    """The run was asked to stop, and saved itself."""

    def __init__(self, signal_number: int, step: int, run: Run):
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after step {step}, and saved; --resume {run.folder} goes on from there")
        self.signal_number = signal_number


class Trainer:
    """Maximises an objective, phase after phase, and keeps `run` up to date.

    All randomness derives from (seed, rank, step) and minibatches from (seed, epoch), so that a run which was stopped
    or killed and is resumed ends, on the same machine and threads, in the same weights bit for bit.

    Args:
        images: uint8 (N, H, W, C) array, the training split.
        accumulate: parts that each process takes its share of a batch in, to save memory; they must be equal.
        cuda_graph: take steps as a CUDA graph, on one GPU.
        preview: called with the step every `preview_every` steps, on rank 0; draws figures.
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
        log_every: int = 50,
        checkpoint_every: int = 1000,
        preview_every: int | None = None,
        preview: Callable[[int], None] | None = None,
    ):
        self.fabric, self.objective, self.images, self.phases, self.run = fabric, objective, images, phases, run
        self.seed, self.clip_norm, self.accumulate, self.cuda_graph = seed, clip_norm, accumulate, cuda_graph
        self.log_every, self.checkpoint_every = log_every, checkpoint_every
        self.preview_every, self.preview = preview_every, preview
        self.num_steps = sum(phase.steps for phase in phases)
        self.step = 0  # steps done
        self.seconds = 0.0  # spent training, over all sessions of the run
        self.images_seen = 0
        self._optimizer_tensors: dict[str, Tensor] | None = None
        self._watched: dict[str, float] = {}  # the last metrics of every pair, for the progress bar
        self._stop_signal = 0

    def resume(self) -> None:
        """Take up the run's last checkpoint; a run that was killed before its first begins again."""
        if self.run.checkpoints():
            progress, weights, self._optimizer_tensors = self.run.load_checkpoint()
            load_weights(self.objective, weights, self.run.folder)
            self.step, self.seconds, self.images_seen = progress
        if self.fabric.is_global_zero:
            self.run.truncate_metrics(self.step)

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; the run was saved.
            NonFiniteLoss: names the step, the site and the last good checkpoint.
        """
        handlers = {number: signal.signal(number, self._ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        terminal = sys.stderr.isatty()
        self.progress = tqdm(
            total=self.num_steps,
            initial=self.step,
            disable=not self.fabric.is_global_zero,
            mininterval=0.5 if terminal else 15,
            dynamic_ncols=True,
            unit="step",
            bar_format="{desc} {n_fmt}/{total_fmt} {bar:12} {elapsed}<{remaining}{postfix}",
        )
        try:
            start = 0
            for phase in self.phases:
                if self.step < start + phase.steps:
                    self._fit_phase(phase, start)
                start += phase.steps
        finally:
            self.progress.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _fit_phase(self, phase: Phase, start: int) -> None:
        names = tuple(self.objective.pairs) if phase.pairs is None else phase.pairs
        if self.step == start and phase.prepare is not None:
            phase.prepare()
        fabric = self.fabric
        minibatches = Minibatches(self.images, phase.batch_size, self.seed, fabric.global_rank, fabric.world_size)
        batches = on_device(minibatches, fabric.device)
        cache = None if "orderless" in names else self._infer_all()
        options = dict(clip_norm=self.clip_norm, accumulate=self.accumulate, cuda_graph=self.cuda_graph)
        take_step = TrainingStep(fabric, self.objective, names, **options)
        self._restore(take_step)
        self.progress.set_description_str("+".join(names), refresh=False)

        self._watch = NonFiniteWatch(never=self.num_steps + 1)
        self._begin_window()
        while self.step < start + phase.steps:
            self._seed(self.step)
            learning_rate = phase.learning_rate_at(self.step - start)
            images, rows = batches(self.step)
            orderless = None if cache is None else OrderlessPosterior(cache.loc[rows], cache.scale[rows])
            evaluation = take_step(to_float(images), learning_rate, orderless=orderless)
            self.step += 1
            self._watch.note(self.step, evaluation.terms)
            self.images_seen += phase.batch_size * fabric.world_size
            self.progress.update()
            last = self.step == start + phase.steps
            stop = self._signal_to_obey()
            if self.step % self.log_every == 0 or last or stop:
                self._log(evaluation, names, learning_rate)
            if self.step % self.checkpoint_every == 0 or last or stop:
                self._save(None if last else take_step)  # the next phase begins with a fresh optimiser
            if stop:
                raise Interrupted(stop, self.step, self.run)
            if self.preview and self.preview_every and self.step % self.preview_every == 0 and fabric.is_global_zero:
                self._count_time()
                self.preview(self.step)
                self._begin_window()
        self._optimizer_tensors = None

    def _restore(self, take_step: TrainingStep) -> None:
        """The optimiser's state, of a run that goes on within a phase."""
        if self._optimizer_tensors:
            names = [*take_step.trained]
            if others := foreign_names(self._optimizer_tensors, names):
                raise UserError(
                    f"the checkpoint in {self.run.folder} was training {others[0]}, which does not train at step "
                    f"{self.step} of this configuration: restore the config.json that the run began with"
                )
            load_named_state(take_step.optimizer, names, self._optimizer_tensors)

    @torch.no_grad()
    def _infer_all(self, batch_size: int = 64) -> OrderlessPosterior:
        """The orderless posterior of every training image, once, while the orderless pair stands still."""
        self._seed("orderless posteriors")
        guide, parts = self.objective.pairs["orderless"].guide, []
        for first in range(0, len(self.images), batch_size):
            self.progress.set_description_str(f"orderless posteriors {first}/{len(self.images)}")
            images = torch.from_numpy(self.images[first : first + batch_size].copy())
            inferred = guide.infer(to_float(self.fabric.to_device(images.permute(0, 3, 1, 2))))
            parts.append((inferred.loc, inferred.scale))
        return OrderlessPosterior(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _seed(self, moment: int | str) -> None:
        key = moment if isinstance(moment, int) else int.from_bytes(moment.encode(), "big")
        torch.manual_seed(int(np.random.SeedSequence((self.seed, self.fabric.global_rank, key)).generate_state(1)[0]))

    def _ask_to_stop(self, number: int, frame) -> None:
        self._stop_signal = number

    def _signal_to_obey(self) -> int:
        """The signal that arrived, or 0. Several processes agree on one at log steps, since that synchronises them."""
        if self.fabric.world_size == 1:
            return self._stop_signal
        if self.step % self.log_every:
            return 0
        signals = torch.tensor(self._stop_signal, device=self.fabric.device)
        return int(self.fabric.all_reduce(signals, reduce_op="max"))

    # Bookkeeping. Tensors are read back at log steps only.

    def _begin_window(self) -> None:
        self._window_start, self._window_images = time.perf_counter(), self.images_seen

    def _count_time(self) -> float:
        """Add the time since the last call to the run's; returns images per second over it."""
        now = time.perf_counter()
        elapsed = now - self._window_start
        rate = (self.images_seen - self._window_images) / elapsed
        self.seconds += elapsed
        self._window_start, self._window_images = now, self.images_seen
        return rate

    def _last_good(self) -> str:
        saved = self.run.checkpoints()
        return f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"

    def _log(self, evaluation: Evaluation, names: tuple[str, ...], learning_rate: float) -> None:
        self._watch.check(self.fabric, self._last_good())
        rate = self._count_time()
        metrics = {"step": self.step, "seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)}
        metrics["learning_rate"] = learning_rate
        metrics |= self._means({"loss": evaluation.loss, **evaluation.terms})
        errors = self._means(evaluation.errors)
        for name in names:
            elbo = self.objective.pairs[name].elbo
            metrics[f"{name}/rmse"] = elbo.target.rmse(errors[name])
            metrics[f"{name}/rmse_target"] = elbo.target.rmse(elbo.target.nats)
            metrics[f"{name}/multiplier"] = elbo.multiplier.item()
        if self.fabric.is_global_zero:
            self.run.log_metrics(metrics)
            self._watched |= metrics
            still = (name for name in self.objective.pairs if name not in names and f"{name}/rmse" in self._watched)
            self.progress.set_postfix_str(progress_line(self._watched, (*names, *still)), refresh=False)

    def _means(self, values: dict[str, Tensor]) -> dict[str, float]:
        """Over all processes, read back at once."""
        means = self.fabric.all_reduce(torch.stack([*values.values()]), reduce_op="mean")
        return dict(zip(values, means.tolist(), strict=True))

    def _save(self, take_step: TrainingStep | None = None) -> None:
        """Write a checkpoint, of finite numbers only."""
        self._watch.check(self.fabric, self._last_good())
        weights = self.objective.state_dict()
        tensors = {} if take_step is None else named_state(take_step.optimizer, [*take_step.trained])
        for name, tensor in (weights | tensors).items():
            if not torch.isfinite(tensor).all():
                found = f"{name} became NaN or infinite by step {self.step}"
                raise NonFiniteLoss(f"the weights are not finite: {found}; {self._last_good()}")
        if self.fabric.is_global_zero:
            self.run.save_checkpoint(Progress(self.step, self.seconds, self.images_seen), weights, tensors)
