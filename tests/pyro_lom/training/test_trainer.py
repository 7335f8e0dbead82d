"""A run that is stopped, killed or gone wrong loses nothing: it goes on bit for bit, and never keeps a bad number."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pyro
import pytest
import torch
from fixed_noise import FixedNoise
from lightning_fabric import Fabric
from recorded import pretend
from safetensors.torch import load_file
from tiny import SYSTEMS, tiny_config, tiny_images, tiny_objective, tiny_system
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.systems import build
from experiments.systems.lom import LomSchedule
from pyro_lom.data.device_minibatches import Prefetched, Resident
from pyro_lom.data.minibatches import Minibatches, to_float
from pyro_lom.data.towers import make_towers
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.training import step as step_module
from pyro_lom.training import trainer as trainer_module
from pyro_lom.training.non_finite import NonFiniteLoss, NonFiniteWatch
from pyro_lom.training.phase import Phase
from pyro_lom.training.progress import pair_line
from pyro_lom.training.runs import Run
from pyro_lom.training.signals import STOP_SIGNALS
from pyro_lom.training.step import TrainingStep
from pyro_lom.training.trainer import Interrupted, Trainer

NUM_STEPS = 10
IMAGES = make_towers(12, seed=1).images
IN_TURN, AT_ONCE = 0.5, 0.0  # shares of the steps that train the orderless pair alone


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program may answer it."""


def make_trainer(
    folder, *, config=None, orderless_first=IN_TURN, seed=0, at=None, phases=None, images=IMAGES, **options
):
    """A trainer on a run in `folder`; `at` maps steps to what happens after them."""
    folder.mkdir(exist_ok=True)
    config = config or tiny_config(networks="compact", schedule=LomSchedule(orderless_first=orderless_first))
    config = replace(config, train=replace(config.train, steps=NUM_STEPS, learning_rate=1e-3))
    torch.manual_seed(seed)
    system = build(config, (3, 32, 32))
    at = {} if at is None else at
    return Trainer(
        Fabric(accelerator="cpu", devices=1),
        Objective(system),
        images,
        phases or config.model.phases(system, config.train),
        Run(folder),
        seed=seed,
        **dict(log_every=2, checkpoint_every=3, preview_every=1) | options,
        preview=lambda step: at.get(step, lambda: None)(),
    )


def kill():
    raise Killed


class Stop:
    """A signal to this process, when it is called; it counts what ran after it."""

    def __init__(self, kind):
        self.kind, self.went_on = kind, False

    def __call__(self):
        os.kill(os.getpid(), self.kind)
        self.went_on = True


def final_weights(folder):
    run = Run(folder)
    assert run.checkpoints()[-1].name == f"step-{NUM_STEPS:08d}"
    return load_file(run.checkpoints()[-1] / "weights.safetensors")


def assert_same(here, there):
    assert here.keys() == there.keys()
    different = [name for name in here if not torch.equal(here[name], there[name])]
    assert not different


def steps_logged(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Final weights, and metrics but for their times, of runs that nothing stopped."""

    def train(orderless_first):
        folder = tmp_path_factory.mktemp("uninterrupted")
        make_trainer(folder, orderless_first=orderless_first).fit()
        return final_weights(folder), untimed_metrics(folder)

    return {share: train(share) for share in (IN_TURN, AT_ONCE)}


def untimed_metrics(folder):
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in Run(folder).metrics()]


def test_a_preview_sees_programs_in_evaluation_mode_and_steps_in_training_mode(tmp_path):
    modes = {}
    trainer = make_trainer(
        tmp_path, at={step: lambda step=step: modes.update({step: modes_of(trainer)}) for step in (2, 4)}
    )
    before = modes_of(trainer)
    trainer.fit()
    assert before == modes_of(trainer) == {True} and modes == {2: {False}, 4: {False}}


def modes_of(trainer):
    return {module.training for module in trainer.objective.modules()}


# Checkpoints are written after steps 3, 6, 9 and at the end of phases, 5 and 10.
@pytest.mark.parametrize("orderless_first", [IN_TURN, AT_ONCE], ids=["in-turn", "at-once"])
@pytest.mark.parametrize("kills", [[2], [4], [5], [8], [3, 4, 7, 9]], ids=str)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, uninterrupted, orderless_first, kills):
    for step in kills:
        killed = make_trainer(tmp_path, orderless_first=orderless_first, at={step: kill})
        killed.resume()
        with pytest.raises(Killed):
            killed.fit()
    last = make_trainer(tmp_path, orderless_first=orderless_first)
    last.resume()
    last.fit()
    weights, metrics = uninterrupted[orderless_first]
    assert_same(final_weights(tmp_path), weights)
    assert untimed_metrics(tmp_path) == metrics
    assert last.images_seen == sum(phase.steps * phase.batch_size for phase in last.phases)


@pytest.mark.parametrize("way", [Resident, Prefetched])
def test_however_images_come_to_the_device_the_run_is_the_same(tmp_path, uninterrupted, monkeypatch, way):
    monkeypatch.setattr(trainer_module, "on_device", way)
    with pytest.raises(Killed):
        make_trainer(tmp_path, at={7: kill}).fit()
    resumed = make_trainer(tmp_path)
    resumed.resume()
    resumed.fit()
    assert_same(final_weights(tmp_path), uninterrupted[IN_TURN][0])


# At 4, a signal is obeyed after the last step of the first phase.
@pytest.mark.parametrize(("kind", "step"), [(signal.SIGTERM, 1), *((kind, 4) for kind in STOP_SIGNALS)])
def test_a_signal_during_a_preview_saves_and_stops(tmp_path, uninterrupted, kind, step):
    before, stop = signal.getsignal(kind), Stop(kind)
    stopped = make_trainer(tmp_path, at={step: stop})
    with pytest.raises(
        Interrupted, match=f"^stopped by {kind.name} after step {step + 1}, .*--resume {tmp_path} "
    ) as interrupted:
        stopped.fit()
    assert interrupted.value.signal_number == kind
    assert signal.getsignal(kind) is before
    assert not stop.went_on  # drawing, which may take longer than a scheduler waits, ended at once
    assert Run(tmp_path).checkpoints()[-1].name == f"step-{step + 1:08d}"
    assert steps_logged(tmp_path)[-1] == step + 1

    resumed = make_trainer(tmp_path)
    resumed.resume()
    assert resumed.step == step + 1
    resumed.fit()
    assert_same(final_weights(tmp_path), uninterrupted[IN_TURN][0])


# Twelve batches are inferred before step 6, the first one of the ordered pair.
@pytest.mark.parametrize(("kind", "done"), [*((kind, 0) for kind in STOP_SIGNALS), (signal.SIGTERM, 11)])
def test_a_signal_while_posteriors_are_inferred_stops_before_the_next_batch(
    tmp_path, uninterrupted, monkeypatch, kind, done
):
    made, calls = make_trainer(tmp_path), []
    orderless = made.objective.pairs["orderless"].guide
    infer = orderless.infer

    def infer_and_stop(images):
        calls.append(made.step)
        if calls.count(5) == done + 1:
            os.kill(os.getpid(), kind)
        return infer(images)

    orderless.infer = infer_and_stop
    with (
        monkeypatch.context() as patch,
        pytest.raises(Interrupted, match=f"^stopped by {kind.name} after step 5, and "),
    ):
        patch.setattr(trainer_module, "_BATCH", 1)
        made.fit()
    assert calls.count(5) == done + 1
    assert Run(tmp_path).load_checkpoint()[0].step == 5
    resumed = make_trainer(tmp_path)
    resumed.resume()
    resumed.fit()
    assert_same(final_weights(tmp_path), uninterrupted[IN_TURN][0])
    assert untimed_metrics(tmp_path) == uninterrupted[IN_TURN][1]


def test_the_time_of_posteriors_counts_as_training(tmp_path):
    made = make_trainer(tmp_path)
    orderless = made.objective.pairs["orderless"].guide
    infer = orderless.infer
    orderless.infer = lambda images: time.sleep(made.step == 5) or infer(images)  # a second before the ordered phase
    made.fit()
    seconds = {row["step"]: row["seconds"] for row in Run(tmp_path).metrics()}
    assert seconds[max(seconds)] - seconds[5] >= 1


@pytest.mark.parametrize("phase", [0, 1])
def test_a_signal_during_preparation_stops_before_the_next_step(tmp_path, phase):
    made = make_trainer(tmp_path)
    made.phases[phase] = replace(made.phases[phase], prepare=Stop(signal.SIGUSR1))
    with pytest.raises(Interrupted, match=f"^stopped by SIGUSR1 after step {5 * phase}, and saved; "):
        made.fit()
    assert Run(tmp_path).load_checkpoint()[0].step == 5 * phase


def test_a_run_that_was_stopped_before_its_first_step_keeps_its_weights(tmp_path):
    """They may be of another run, or of a module of the user, and a resumed run initialises its own."""
    made = make_trainer(tmp_path)
    made.phases[0] = replace(made.phases[0], prepare=Stop(signal.SIGTERM))
    with torch.no_grad():
        next(made.objective.parameters()).fill_(0.25)
    with pytest.raises(Interrupted):
        made.fit()
    resumed = make_trainer(tmp_path)
    resumed.resume()
    assert_same(dict(resumed.objective.state_dict()), dict(made.objective.state_dict()))


def test_a_closed_terminal_does_not_stop_what_ignores_it(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        stop = Stop(signal.SIGHUP)
        make_trainer(tmp_path, at={1: stop}).fit()
        assert stop.went_on and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_running_statistics_are_in_checkpoints(tmp_path):
    """A run of a system that normalises batches goes on bit for bit."""
    config = tiny_config("genesis")
    make_trainer(tmp_path / "whole", config=config).fit()
    with pytest.raises(Killed):
        make_trainer(tmp_path / "killed", config=config, at={4: kill}).fit()
    resumed = make_trainer(tmp_path / "killed", config=config)
    resumed.resume()
    assert resumed.step == 3
    resumed.fit()
    weights = final_weights(tmp_path / "whole")
    assert_same(final_weights(tmp_path / "killed"), weights)
    statistics = [name for name in weights if name.endswith(("running_mean", "running_var"))]
    assert len(statistics) == 20 and all(weights[name].any() for name in statistics)


def test_resuming_a_finished_run_changes_nothing(tmp_path, uninterrupted):
    make_trainer(tmp_path).fit()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()}
    finished = make_trainer(tmp_path)
    finished.resume()
    finished.fit()
    assert finished.step == NUM_STEPS
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.is_file()} == files
    assert_same(dict(finished.objective.state_dict()), uninterrupted[IN_TURN][0])


def test_the_seed_decides(tmp_path, uninterrupted):
    make_trainer(tmp_path / "same").fit()
    assert_same(final_weights(tmp_path / "same"), uninterrupted[IN_TURN][0])
    make_trainer(tmp_path / "other", seed=1).fit()
    with pytest.raises(AssertionError):
        assert_same(final_weights(tmp_path / "other"), uninterrupted[IN_TURN][0])


def test_one_json_object_a_log_step(tmp_path):
    make_trainer(tmp_path, orderless_first=AT_ONCE, log_every=4).fit()
    assert steps_logged(tmp_path) == [4, 8, 10]  # and after a phase's last step
    for row in Run(tmp_path).metrics():
        assert all(math.isfinite(value) for value in row.values())
        assert {"seconds", "images_per_second", "learning_rate", "loss"} < row.keys()
        for pair, sites in {"orderless": ["x", "o"], "ordered": ["x", "s", "z"]}.items():
            assert {f"{pair}/{name}" for name in (*sites, "rmse", "rmse_target", "multiplier")} < row.keys()


# Numbers that are not finite. Pyro's validation, which the tests turn on, would find them first: fit.py turns it off.


@pytest.fixture
def weight():
    """The name of a weight of p(z | h): when it is spoilt, the KL of z is the first to go."""
    pyro.enable_validation(False)
    names = dict(tiny_objective(networks="compact").named_parameters())
    return next(name for name in names if name.startswith("pairs.ordered.model.slot_prior.") and "weight" in name)


def poison(made, name, value=math.nan):
    def spoil():
        with torch.no_grad():
            dict(made.objective.named_parameters())[name].fill_(value)

    return spoil


def assert_only_finite_checkpoints(folder, steps):
    checkpoints = Run(folder).checkpoints()
    assert [int(path.name.removeprefix("step-")) for path in checkpoints] == steps
    for path in checkpoints:
        for file in path.glob("*.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("log_every", [1, 2, 100])  # 100: only a checkpoint asks
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, weight, value, log_every):
    at = {}
    made = make_trainer(tmp_path, orderless_first=AT_ONCE, at=at, log_every=log_every)
    at[4] = poison(made, weight, value)
    with pytest.raises(NonFiniteLoss) as stop:
        made.fit()
    assert str(stop.value) == (
        "the loss is not finite: site ordered/z first became NaN or infinite in step 5; "
        f"the last good checkpoint is {tmp_path}/checkpoints/step-00000003"
    )
    assert_only_finite_checkpoints(tmp_path, [0, 3])


def test_pictures_do_not_hide_the_first_bad_step(tmp_path, weight):
    at = {}
    made = make_trainer(tmp_path, orderless_first=AT_ONCE, at=at, log_every=100, checkpoint_every=100)
    at[1] = poison(made, weight)
    with pytest.raises(NonFiniteLoss, match="in step 2; the last good checkpoint is .*/step-00000000"):
        made.fit()


def test_bad_images_are_found_at_their_site(tmp_path, monkeypatch):
    pyro.enable_validation(False)
    seen = 0

    def to_float(images):
        nonlocal seen
        seen += 1
        return images / 255 if seen < 5 else torch.full(images.shape, math.nan)

    monkeypatch.setattr(trainer_module, "to_float", to_float)
    with pytest.raises(NonFiniteLoss, match="site orderless/x, .* first became NaN or infinite in step 5;"):
        make_trainer(tmp_path, orderless_first=AT_ONCE).fit()
    assert_only_finite_checkpoints(tmp_path, [0, 3])


def test_a_bad_gradient_of_a_finite_loss_is_not_saved(tmp_path, weight):
    at = {}
    made = make_trainer(tmp_path, orderless_first=AT_ONCE, at=at, log_every=1)
    parameter = dict(made.objective.named_parameters())[weight]
    # The loss of step 6 is computed before its gradient spoils the weights that a checkpoint would hold.
    at[5] = lambda: parameter.register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    with pytest.raises(
        NonFiniteLoss, match=f"weights are not finite: {weight} became NaN or infinite by step 6; the last"
    ):
        made.fit()
    assert_only_finite_checkpoints(tmp_path, [0, 3])


def test_nothing_bad_is_saved_when_a_signal_arrives(tmp_path, weight):
    at = {}
    made = make_trainer(tmp_path, orderless_first=AT_ONCE, at=at, log_every=100)

    def spoil_and_stop():
        poison(made, weight)()
        os.kill(os.getpid(), signal.SIGTERM)

    at[4] = spoil_and_stop
    with pytest.raises(NonFiniteLoss, match="in step 5"):
        made.fit()
    assert_only_finite_checkpoints(tmp_path, [0, 3])


# Phases.


def test_pairs_stand_still_while_others_train(tmp_path):
    at, kept = {}, {}
    made = make_trainer(tmp_path, at=at)
    keep = lambda step: kept.setdefault(step, {k: v.clone() for k, v in made.objective.state_dict().items()})  # noqa: E731
    at |= {step: lambda step=step: keep(step) for step in range(1, 10)}
    made.fit()
    kept[NUM_STEPS] = made.objective.state_dict()

    def moved(first, last):
        changed = {name for name in kept[first] if not torch.equal(kept[first][name], kept[last][name])}
        return {name.split(".")[1] for name in changed}

    assert moved(1, 5) == {"orderless"}
    assert moved(6, 10) == {"ordered"}


def test_programs_hold_the_number_of_the_step(tmp_path):
    def watched(**options):
        made, seen = make_trainer(tmp_path, orderless_first=AT_ONCE, **options), []
        for pair in made.objective.pairs.values():
            pair.register_forward_pre_hook(lambda pair, _: seen.append((int(pair.model.step), int(pair.guide.step))))
        return made, seen

    made, seen = watched(at={7: kill})
    with pytest.raises(Killed):
        made.fit()
    assert seen == [(step, step) for step in range(7) for _ in range(2)]
    made, seen = watched()
    made.resume()
    made.fit()
    assert seen == [(step, step) for step in range(6, NUM_STEPS) for _ in range(2)]
    for pair in made.objective.pairs.values():
        assert pair.model.step == pair.guide.step == NUM_STEPS
    assert not [name for name in final_weights(tmp_path) if name.endswith("step")]


def test_phases_are_prepared_once(tmp_path):
    told = []
    phases = [
        Phase(
            steps=5,
            batch_size=2,
            learning_rate=1e-3,
            prepare=lambda n=number: told.append(n),
        )
        for number in (1, 2)
    ]
    with pytest.raises(Killed):
        make_trainer(tmp_path, phases=phases, at={8: kill}).fit()
    assert told == [1, 2]
    told.clear()
    resumed = make_trainer(tmp_path, phases=phases)
    resumed.resume()
    resumed.fit()
    assert told == []


def test_a_phase_of_no_steps_is_left_out(tmp_path, uninterrupted):
    made = make_trainer(tmp_path)
    made.phases.insert(1, Phase(steps=0, batch_size=2, learning_rate=1.0, prepare=kill))
    made.fit()
    assert_same(final_weights(tmp_path), uninterrupted[IN_TURN][0])


# Checkpoints of other trainings. The run stays as it was.


def refused(folder, trainer):
    """The line with which `trainer` refuses to resume the run in `folder`."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as refusal:
        trainer.resume()
    assert "\n" not in str(refusal.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    return str(refusal.value)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The folder of a run that was killed in its second phase, with a checkpoint at step 6."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.raises(Killed):
        make_trainer(folder, at={8: kill}).fit()
    return folder


@pytest.fixture
def stopped(begun, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(begun, tmp_path / "stopped")


def test_a_checkpoint_of_another_phase_is_refused(stopped):
    orderless_only = [Phase(steps=NUM_STEPS, batch_size=2, learning_rate=1e-3, pairs=("orderless",))]
    line = refused(stopped, make_trainer(stopped, phases=orderless_only))
    assert line.startswith(f"the optimiser in the checkpoint in {stopped} is of another training: at 'pairs.orderless.")
    assert line.endswith(" expected; restore its config.json")


def test_a_checkpoint_of_another_architecture_is_refused(stopped):
    other = make_trainer(stopped)
    other.objective.extra = torch.nn.Linear(2, 3)
    expected = (
        "another architecture: at 'extra.weight' there is nothing, but float32 (3, 2) is expected; use the preset"
    )
    assert expected in refused(stopped, other)


def test_a_checkpoint_beyond_the_last_step_is_refused(stopped):
    short = make_trainer(stopped, phases=[Phase(steps=5, batch_size=2, learning_rate=1e-3)])
    line = f"the checkpoint in {stopped} is at step 6, but this configuration has 5 steps: restore the config.json"
    assert refused(stopped, short).startswith(line)


@pytest.mark.parametrize("images", [IMAGES[::-1], IMAGES[:-1], make_towers(12, seed=2).images], ids=len)
def test_other_data_are_refused(stopped, images):
    assert "was trained on other images" in refused(stopped, make_trainer(stopped, images=images))


def changed(optimizer, **slots):
    """The state with other slots of its first parameter, which has more than one element; None leaves a slot out."""
    first = next(key.rsplit("/", 1)[0] for key, tensor in optimizer.items() if tensor.numel() > 1)
    other = optimizer | {f"{first}/{slot}": tensor for slot, tensor in slots.items()}
    return {key: tensor for key, tensor in other.items() if tensor is not None}


OTHER_STATES = {
    "empty": lambda state: {},
    "no step": lambda state: changed(state, step=None),
    "no moments": lambda state: changed(state, exp_avg=None, exp_avg_sq=None),
    "no parameter": lambda state: changed(state, step=None, exp_avg=None, exp_avg_sq=None),
    "a slot too many": lambda state: changed(state, max_exp_avg_sq=torch.zeros(1)),
    "a parameter too many": lambda state: state | {"pairs.none/step": torch.tensor(1.0)},
    "no slash": lambda state: state | {"step": torch.tensor(1.0)},
    "one element": lambda state: changed(state, exp_avg=torch.zeros(1)),
    "no element": lambda state: changed(state, exp_avg_sq=torch.zeros(0)),
    "transposed": lambda state: {key: tensor.T if tensor.ndim == 2 else tensor for key, tensor in state.items()},
    "steps of each element": lambda state: changed(state, step=torch.ones(3)),
    "float16": lambda state: {key: tensor.half() for key, tensor in state.items()},
    "float64": lambda state: {key: tensor.double() for key, tensor in state.items()},
    "int64": lambda state: {key: tensor.long() for key, tensor in state.items()},
    "bool": lambda state: changed(state, step=torch.tensor(True)),
    "a negative step": lambda state: changed(state, step=torch.tensor(-1.0)),
    "a step in the future": lambda state: changed(state, step=torch.tensor(7.0)),
    "nan": lambda state: changed(state, step=torch.tensor(math.nan)),
}


@pytest.mark.parametrize("kind", OTHER_STATES)
def test_other_states_of_the_optimiser_are_refused(stopped, kind):
    """Fused Adam checks nothing: it would write beyond the end of a tensor of one element."""
    progress, weights, optimizer = Run(stopped).load_checkpoint()
    Run(stopped).save_checkpoint(progress, weights, OTHER_STATES[kind](optimizer))
    line = refused(stopped, make_trainer(stopped))
    assert (
        line.startswith(f"the optimiser in the checkpoint in {stopped} is of another") or "is NaN or infinite" in line
    )


def test_an_optimiser_may_have_seen_no_gradient_of_a_parameter(tmp_path):
    def with_a_spare(**options):
        made = make_trainer(tmp_path, orderless_first=AT_ONCE, **options)
        made.objective.pairs["ordered"].model.spare = torch.nn.Parameter(torch.zeros(3))
        return made

    with pytest.raises(Killed):
        with_a_spare(at={4: kill}).fit()
    assert torch.equal(Run(tmp_path).load_checkpoint()[2]["pairs.ordered.model.spare/exp_avg"], torch.zeros(3))
    resumed = with_a_spare()
    resumed.resume()
    resumed.fit()
    assert final_weights(tmp_path)["pairs.ordered.model.spare"].tolist() == [0, 0, 0]


def test_learning_rates():
    phase = Phase(steps=1000, batch_size=1, learning_rate=2.0)
    assert [phase.learning_rate_at(step) for step in (0, 999)] == [2.0, 2.0]
    warm = replace(phase, warmup_steps=4)
    assert [warm.learning_rate_at(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    linear = replace(phase, decay="linear")
    assert [linear.learning_rate_at(step) for step in (0, 500, 750, 999)] == pytest.approx([2.0, 2.0, 1.0, 0.04])
    halving = replace(phase, steps=500_000, decay="halving", warmup_steps=10_000)
    rates = [halving.learning_rate_at(step) for step in (4_999, 10_000, 110_000, 160_000)]
    assert rates == pytest.approx([1.0, 2.0, 1.0, 2.0 * 0.5**1.5])
    cosine = replace(phase, decay="cosine", warmup_steps=200)
    rates = [cosine.learning_rate_at(step) for step in (0, 99, 200, 600, 1000)]
    assert rates == pytest.approx([0.01, 1.0, 2.0, 1.01, 0.02])


def test_gradients_are_clipped(tmp_path, uninterrupted):
    make_trainer(tmp_path, clip_norm=1e-9).fit()
    with pytest.raises(AssertionError):
        assert_same(final_weights(tmp_path), uninterrupted[IN_TURN][0])


@pytest.mark.parametrize("orderless_first", [IN_TURN, AT_ONCE], ids=["in-turn", "at-once"])
def test_a_training_by_a_graph_is_the_training_without(tmp_path, monkeypatch, orderless_first):
    pyro.enable_validation(False)
    pretend(monkeypatch)
    options = dict(orderless_first=orderless_first, cuda_graph=True)
    make_trainer(tmp_path / "graph", **options).fit()
    with pytest.raises(Killed):
        make_trainer(tmp_path / "killed", at={9: kill}, **options).fit()
    resumed = make_trainer(tmp_path / "killed", **options)
    resumed.resume()
    resumed.fit()
    monkeypatch.setattr(step_module, "CudaGraphStep", lambda step, device: step)
    make_trainer(tmp_path / "plain", **options).fit()
    for name in ("graph", "killed"):
        assert_same(final_weights(tmp_path / name), final_weights(tmp_path / "plain"))
        assert untimed_metrics(tmp_path / name) == untimed_metrics(tmp_path / "plain")


def test_progress_shows_what_one_watches():
    report = {"rmse": 0.0512, "rmse_target": 0.035, "multiplier": 0.0213}
    terms = {"x": -5.0, "s": 12.3, "z": 45.6}
    line = "ordered rmse 0.0512/0.035 multiplier 0.0213 nats x -5 s 12 z 46"
    assert pair_line("ordered", report, terms) == line
    assert pair_line("model", {}, {"x": -5.0}) == "model nats x -5"  # a plain ELBO reports nothing more


# One step, however it is computed.

BATCH = tiny_images(8)


def step_of(images, *, fabric=None, first=0, accumulate=1, system="lom-genesis-v2", scale=1.0):
    """What two steps on `images` make of the weights and the multipliers, with noise that belongs to their rows.

    Gradients are not clipped, so that a gradient of another length takes another step.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    objective = tiny_objective(system)
    for parameter in objective.parameters():
        parameter.register_hook(lambda gradient: scale * gradient)
    take_step = TrainingStep(fabric, objective, accumulate=accumulate, make_optimizer=torch.optim.SGD)
    for _ in range(2):
        with FixedNoise(len(BATCH), first):
            take_step(images, 1e-4)
    return {name: tensor.detach().clone() for name, tensor in objective.state_dict().items()}


def assert_same_step(found, expected, system="lom-genesis-v2"):
    """Changes of each pair's weights have a relative distance below 1e-4; multipliers are equal to float precision."""
    start, names = tiny_objective(system).state_dict(), dict(tiny_objective(system).named_parameters())
    assert found.keys() == expected.keys()
    for pair in tiny_system(system):
        own = [name for name in names if name.startswith(f"pairs.{pair}.")]
        change, other = (torch.cat([(now[n] - start[n]).double().flatten() for n in own]) for now in (expected, found))
        assert change.norm() > 1e-3
        assert (other - change).norm() < 1e-4 * change.norm()
    for name in expected.keys() - names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_parts_of_a_batch_give_the_step_of_the_whole(accumulate):
    assert_same_step(step_of(BATCH, accumulate=accumulate), step_of(BATCH))


def test_one_graph_is_held_at_a_time():
    """The orderless pair's backward pass is over, and its graph gone, before the ordered pair begins."""
    objective = tiny_objective()
    orderless, decoded, began = objective.pairs["orderless"], [], []
    orderless.model.decoder.register_forward_hook(lambda _, inputs, output: decoded.append(weakref.ref(output)))

    def look(*_):
        began.append(all(parameter.grad is not None for parameter in orderless.parameters()))
        assert decoded and all(output() is None for output in decoded)

    objective.pairs["ordered"].register_forward_pre_hook(look)
    TrainingStep(Fabric(accelerator="cpu", devices=1), objective, accumulate=2)(BATCH, 1e-4)
    assert began == [True, True]


def test_clipping_is_of_the_gradient_of_all_pairs():
    objective = tiny_objective()
    TrainingStep(Fabric(accelerator="cpu", devices=1), objective, clip_norm=1e-3)(BATCH, 1e-4)
    norms = {
        name: torch.stack([parameter.grad.norm() for parameter in pair.parameters()]).norm()
        for name, pair in objective.pairs.items()
    }
    assert all(norm > 0 for norm in norms.values())
    torch.testing.assert_close(torch.stack([*norms.values()]).norm(), torch.tensor(1e-3), rtol=1e-3, atol=0)


def test_a_posterior_found_before_is_taken_apart_with_its_batch():
    fabric, found = Fabric(accelerator="cpu", devices=1), []
    for accumulate in (1, 2):
        objective = tiny_objective()
        with FixedNoise(len(BATCH)):
            posterior = objective.pairs["orderless"].guide.infer(BATCH).detach()
        with FixedNoise(len(BATCH)):
            take_step = TrainingStep(fabric, objective, accumulate=accumulate)
            found.append(take_step(BATCH, 1e-4, inferred={"orderless": posterior}).errors)
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=0)
    objective = tiny_objective("lom-emorl")  # whose posterior is one of several
    posterior = objective.pairs["orderless"].guide.infer(BATCH).detach()
    evaluation = TrainingStep(fabric, objective, accumulate=2)(BATCH, 1e-4, inferred={"orderless": posterior})
    assert all(torch.isfinite(error) for error in evaluation.errors.values())


def test_what_asks_for_no_gradient_stands_still(tmp_path):
    trainer = make_trainer(tmp_path)
    frozen = trainer.objective.pairs["ordered"].model.slot_prior
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in trainer.objective.state_dict().items()}
    trainer.fit()
    still = [name for name, value in trainer.objective.state_dict().items() if torch.equal(value, before[name])]
    assert {f"pairs.ordered.model.slot_prior.{name}" for name in frozen.state_dict()} <= set(still)
    assert not [name for name in still if "slot_prior" not in name and name.endswith("weight")]


@pytest.mark.parametrize("scale", [0.5, 0.999, 2.0])
def test_a_gradient_of_another_length_is_not_the_step(scale):
    with pytest.raises(AssertionError):
        assert_same_step(step_of(BATCH, scale=scale), step_of(BATCH))


def test_parts_of_another_batch_do_not():
    with pytest.raises(AssertionError):
        assert_same_step(step_of(BATCH.flip(-1), accumulate=2), step_of(BATCH))


RANK = """
import sys
import time
import weakref
import pyro
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
sys.path[:0] = sys.argv[1:3]
pyro.enable_validation(False)
from test_trainer import BATCH, step_of
fabric = Fabric(accelerator="cpu", devices=2)
fabric.launch()
first = fabric.global_rank * 4
options = dict(accumulate=int(sys.argv[3]), system=sys.argv[4])
weights = step_of(BATCH[first : first + 4], fabric=fabric, first=first, **options)
save_file({name: tensor.contiguous() for name, tensor in weights.items()}, f"rank{fabric.global_rank}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("system", "accumulate"), [("lom-genesis-v2", 1), ("lom-genesis-v2", 2), ("genesis", 1)])
def test_two_processes_take_the_step_of_one_on_the_joined_batch(tmp_path, system, accumulate):
    (tmp_path / "rank.py").write_text(RANK)
    here = Path(__file__).parent
    command = [sys.executable, "rank.py", str(here.parents[1]), str(here), str(accumulate), system]
    environment = os.environ | {"PYTHONPATH": str(here.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    ranks = [load_file(tmp_path / f"rank{rank}") for rank in range(2)]
    assert_same(*ranks)  # one multiplier for all
    assert_same_step(ranks[0], step_of(BATCH, system=system), system)


class Waits(TorchDispatchMode):
    """Counts what would make a GPU wait for the CPU, or the CPU for it: `.item()`, branches on tensors, and copies from
    another device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        self.count += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[1] if function is torch.ops.aten.copy_.default else args[0]
            self.count += found.device != source.device
        return found


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_value_is_read_back_from_the_device_within_a_step(system, tmp_path):
    pyro.enable_validation(False)
    fabric, objective = Fabric(accelerator="cpu", devices=1), tiny_objective(system)
    take_step = TrainingStep(fabric, objective, clip_norm=100.0)
    batches = Prefetched(Minibatches(IMAGES, 4, seed=0), fabric.device)
    watch = NonFiniteWatch(never=9)

    def step(number):
        images, _ = batches(number)
        evaluation = take_step(to_float(images), 1e-4)
        watch.note(number, evaluation.terms)

    step(0)  # makes Adam's state
    with Waits() as waits:
        step(1)
    assert waits.count == 0


@pytest.mark.parametrize("system", SYSTEMS)
def test_all_that_a_step_needs_is_made_on_its_device(system):
    """On the device "meta", which holds no numbers: to read one is an error there, to bring one is counted."""
    pyro.enable_validation(False)
    objective = tiny_objective(system).to("meta")
    with Waits() as waits:
        evaluation = objective(BATCH.to("meta"))
        evaluation.loss.backward()
        objective.update(evaluation.errors)
    assert waits.count == 1  # the images, brought within
    assert all(parameter.grad.device.type == "meta" for parameter in objective.parameters())
