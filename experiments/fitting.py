"""What `experiments/fit.py` does: read options, train, and end with pictures and a table."""

import sys
import time
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pyro
import torch
import tyro
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from tqdm import tqdm

from experiments import cli
from experiments.config import Config, Count, check, from_dict, to_dict
from experiments.devices import check_cuda_graph, join_again, processes, shared_out
from experiments.drawing import draw
from experiments.fit_report import num_parameters, print_plan, print_summary
from experiments.loading import EMBEDDED, read_data
from experiments.presets import PRESETS, preset
from experiments.reading import TEMPERATURE, Reader, sample_scenes
from experiments.summary import summarise
from experiments.systems import build_objective, build_phases, build_system
from pyro_lom.compilation import compile_networks
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError
from pyro_lom.non_finite import NonFiniteLoss
from pyro_lom.precision import make_fabric
from pyro_lom.runs import Run
from pyro_lom.trainer import Interrupted, Trainer

DESCRIPTION = f"""Fit a preset to its data set: fit.py [PRESET] [options]. Presets: {", ".join(PRESETS)}.
Options override the preset's values, for trying things."""

# How a run is computed, not what it computes.
_OF_DEVICES = ("devices", "global_batch_size", "accumulate", "compile", "cuda_graph")
_HELD_OUT = 2048  # scenes that the numbers at the end of a run are of
_TO_JUDGE_BINDING = 128  # scenes that tell, while a run trains, whether slots bind


@dataclass(frozen=True)
class Arguments:
    config: Annotated[Config, tyro.conf.arg(name="")]
    devices: int = 1
    """GPUs, or CPU processes, to train on; torchrun decides for itself."""
    global_batch_size: Count | None = None
    """Scenes a step on all devices together, in the place of --train.batch-size, which is of each."""
    accumulate: Count = 1
    """Parts that a device takes its scenes of a step in, one after another: the same step in less memory."""
    resume: Path | None = None
    """A run folder to go on with, in its own configuration: beside what concerns devices no option is taken."""
    runs_dir: Path = Path("runs")
    """Where run folders are made."""
    compile: bool = False
    """Let torch compile encoders and decoders; where it cannot, one line says so."""
    cuda_graph: bool = False
    """Record a step once and replay it, on one GPU: the same steps, with none of Python's time."""
    dry_run: bool = False
    """Print the resolved configuration and the parameters of each part, and stop."""


def main(arguments: list[str]) -> None:
    name = "demo"
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    default = Arguments(preset(name))
    options = cli.parse(Arguments, arguments, default=default, prog="fit.py", description=DESCRIPTION)
    config = options.config
    if options.resume is not None:
        taken = {name: getattr(options, name) for name in ("resume", "dry_run", *_OF_DEVICES)}
        if options != Arguments(preset("demo"), **taken):
            raise UserError(
                f"--resume {options.resume} has its own configuration: beside it only --devices, --global-batch-size, "
                "--accumulate, --compile and --cuda-graph may be given"
            )
        config = from_dict(Run.open(options.resume).read_json("config.json"), place=f"{options.resume}/config.json")
    else:
        check_target(config, default.config)
    if options.dry_run:
        print_plan(config)
        return
    of_devices = {name: getattr(options, name) for name in _OF_DEVICES}
    fit(config, resume=options.resume, runs_dir=options.runs_dir, **of_devices)


def check_target(config: Config, default: Config) -> None:
    """Refuse options that set the one of two targets which does not count.

    Raises:
        UserError: names the one that does.
    """
    geco = config.train.geco
    if geco.target != default.train.geco.target and geco.target_rmse is not None:
        raise UserError(
            f"--train.geco.target {geco.target} would not count beside --train.geco.target-rmse {geco.target_rmse}: "
            "change that one, or pass --train.geco.target-rmse None"
        )


@pyro.validation_enabled(False)  # a NaN is reported by the trainer, by site and step
def fit(
    config: Config,
    *,
    scene_prior: nn.Module | None = None,
    devices: int = 1,
    global_batch_size: int | None = None,
    accumulate: int = 1,
    compile: bool = False,
    cuda_graph: bool = False,
    resume: Path | None = None,
    runs_dir: Path = Path("runs"),
) -> Run:
    """Train a configuration, as the command does; `scene_prior` takes the place of the one that it names.

    Raises:
        UserError: options, data or files do not go together, or cannot be written.
        NotImplementedError: there is no rule of temperature for a distribution of `scene_prior`.
        Interrupted, NonFiniteLoss: as `Trainer.fit`.
    """
    # Everything that can be refused is, before processes are launched and a run folder is made.
    check(config)
    counts = {"devices": devices, "global-batch-size": global_batch_size, "accumulate": accumulate}
    for option, number in counts.items():
        if number is not None and number < 1:
            raise UserError(f"--{option} is {number}: it must be 1 or more")
    devices, num_nodes = processes(devices)
    if cuda_graph:
        check_cuda_graph(config, on_gpu=torch.cuda.is_available(), num_processes=devices * num_nodes)
    config = shared_out(config, global_batch_size, devices * num_nodes, accumulate)
    scenes = read_data(config.data)
    train = scenes.split("train")
    test = scenes.split("test" if scenes.splits.get("test") else "train", at_most=_HELD_OUT)
    torch.manual_seed(config.seed)
    system = build_system(config, scenes.image_shape, scene_prior=scene_prior)
    objective = build_objective(config, system, scenes.image_shape)
    untrained = deepcopy(system)  # what data and initialisation alone achieve
    sample_scenes(system.final, 1, TEMPERATURE)  # a prior that knows no temperature fails here, not after hours
    phases = build_phases(config, system)
    for phase in phases:
        option = "--global-batch-size" if global_batch_size else "--train.batch-size"
        if option == "--train.batch-size" and phase.pairs == ("ordered",) and config.train.ordered_batch_size:
            option = "--train.ordered-batch-size"
        if len(train.images) < (needed := phase.batch_size * devices * num_nodes):
            raise UserError(
                f"{len(train.images)} training images are fewer than the {needed} of one step: lower {option}, or add "
                "images"
            )
    try:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        precision = config.train.precision
        fabric = make_fabric(accelerator, precision=precision, devices=devices, num_nodes=num_nodes)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"--devices {devices} cannot be had: {error}") from error
    join_again()
    fabric.launch()
    fabric.to_device(objective)

    run, goes_on = fabric.broadcast(_open(runs_dir, config, resume) if fabric.is_global_zero else None)

    def tell(line: str) -> None:
        if fabric.is_global_zero:
            tqdm.write(line, file=sys.stderr)
            run.log(_stamped(line))

    def preview(step: int) -> None:
        draw(system, test, fabric.device, run, seed=config.seed, step=step)
        signs = Reader(system, fabric.device).binding(float_images(test.images[:_TO_JUDGE_BINDING]))
        if complaint := signs and signs.complaint():
            tell(f"warning: after step {step} {complaint}; try another --seed or a smaller --model.slot-dim")

    compiled = compile and compile_networks(objective, tell)
    trainer = Trainer(
        fabric,
        objective,
        train.images,
        phases,
        run,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        accumulate=accumulate,
        cuda_graph=cuda_graph,
        log_every=config.train.log_every,
        checkpoint_every=config.train.checkpoint_every,
        preview_every=config.train.preview_every,
        preview=preview,
    )
    if goes_on:
        trainer.resume()
        began_with, size = run.read_json("environment.json").get("processes", 1), config.train.batch_size
        if global_batch_size is None and began_with != fabric.world_size:
            tell(
                f"warning: a step takes {size * fabric.world_size} scenes, and took {size * began_with} on the "
                f"{began_with} devices that the run began on: --global-batch-size {size * began_with} keeps them"
            )
    how = f", {trainer.step} of them done" * (trainer.step > 0)
    how += f", in {accumulate} parts" * (accumulate > 1) + ", compiled" * compiled + ", as a CUDA graph" * cuda_graph
    tell(f"{run.folder}: {config.preset}, seed {config.seed}, {trainer.num_steps} steps{how}")
    try:
        trainer.fit()
    except (Interrupted, NonFiniteLoss) as end:
        if not fabric.is_global_zero:
            sys.exit()  # the first process tells
        run.log(_stamped(str(end)))
        raise
    tell("evaluating ...")
    if not fabric.is_global_zero:
        return run
    for program in (*untrained.orderless, *(untrained.ordered or ())):
        program.to(fabric.device)
    summary = summarise(system, untrained, test, fabric.device, seed=config.seed)
    summary |= {
        "images_per_second": round(trainer.images_seen / trainer.seconds, 1) if trainer.seconds else None,
        "train_minutes": round(trainer.seconds / 60, 3),
        "parameters": num_parameters(objective),
        "seed": config.seed,
    }
    run.write_json("summary.json", summary)
    pictures = draw(system, test, fabric.device, run, seed=config.seed)
    print_summary(run, summary, pictures)
    return run


def _open(runs_dir: Path, config: Config, resume: Path | None) -> tuple[Run, bool]:
    """A new run; or one that began before, and so goes on: the one to resume, or that of a job which was restarted."""
    if resume is not None:
        return Run.open(resume), True
    kept = to_dict(anchored(config))
    if (begun := Run.restarted(runs_dir, kept)) is not None:
        return begun, True
    return Run.create(runs_dir, f"{config.preset}-seed{config.seed}", kept), False


def anchored(config: Config) -> Config:
    """With an absolute path to the user's data, so that the run can be resumed from any folder."""
    if config.data.path in EMBEDDED:
        return config
    return replace(config, data=replace(config.data, path=str(Path(config.data.path).resolve())))


def _stamped(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"
