"""Fit a preset to its data set: `python experiments/fit.py [PRESET] [options]`; without arguments, the demo."""

if __name__ == "__main__":
    import installed  # noqa: F401

import json
import sys
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic

import pyro
import torch
import tyro
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from tqdm import tqdm

from experiments import cli
from experiments.adapt import ADAPTED, adapt
from experiments.config import Config, Count, Model, Processes, check_value, to_dict
from experiments.evaluation.drawing import draw
from experiments.evaluation.held_out import HeldOut
from experiments.evaluation.summary import summarise, summary_lines
from experiments.loading import Origin, check_scenes, find_run, read_config, read_data, remarks, start_from
from experiments.options import named, refuse_foreign_options
from experiments.parts import Factory, check_records, records
from experiments.systems import ADAPTING, PRESETS, SYSTEMS, build, check, own_systems, preset
from experiments.systems.options import SystemOptions
from experiments.training.devices import (
    check_batches,
    check_cuda_graph,
    join_again,
    one_report,
    processes,
    with_global_batch_size,
)
from experiments.training.opening import check_resumption, open_run
from experiments.training.optimizers import optimizer
from experiments.training.trial import try_once
from experiments.training.verdicts import Verdicts
from pyro_lom.data.minibatches import float_images
from pyro_lom.data.scenes import Scenes
from pyro_lom.errors import UserError, printable
from pyro_lom.objective import Objective
from pyro_lom.training.compilation import compile_networks
from pyro_lom.training.non_finite import NonFiniteLoss
from pyro_lom.training.precision import make_fabric
from pyro_lom.training.runs import Run
from pyro_lom.training.trainer import Interrupted, Trainer

DESCRIPTION = f"""Fit a preset to its data set: fit.py [PRESET] [options]. Presets: {", ".join(PRESETS)}.
Options override the preset's values. PRESET --help lists the options of its system."""

# Options of devices, which --resume accepts: they change how a run is computed and not its configuration.
_OF_DEVICES = ("devices", "global_batch_size", "accumulate", "compile", "cuda_graph")
_HELD_OUT = 2048  # scenes for the summary


@dataclass(frozen=True)
class Arguments(Generic[Model]):
    config: Annotated[Config[Model], tyro.conf.arg(name="")]
    devices: Processes = 1
    """Number of GPUs or CPU processes; torchrun's number replaces it."""
    global_batch_size: Count | None = None
    """Scenes per step on all devices together, instead of --train.batch-size, which is per device."""
    accumulate: Count = 1
    """Number of parts of a device's batch that are processed one after another: the same step in less memory."""
    resume: Path | None = None
    """Run folder to resume with its own configuration. Only options of devices and --systems may be added."""
    runs_dir: Path = Path("runs")
    """Folder in which run folders are created."""
    orderless: Path | None = None
    """Run folder whose orderless pair is taken over; a phase that would train this pair alone is left out."""
    systems: str | None = None
    """Your own Python module that defines systems. It is imported, and the kinds of its systems are presets."""
    compile: bool = False
    """Compile encoders and decoders with torch.compile; if that fails, print the reason and train uncompiled."""
    cuda_graph: bool = False
    """Record a step once as a CUDA graph and replay it, on one GPU: the same steps without Python's overhead."""
    dry_run: bool = False
    """Print the resolved configuration and the number of parameters of each part, and exit."""


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    systems = own_systems(options.systems)
    config = options.config
    if options.resume is not None:
        config = read_config(find_run(options.resume), systems)
    if options.dry_run:
        _print_plan(config)
        return
    of_devices = {name: getattr(options, name) for name in _OF_DEVICES}
    folders = dict(resume=options.resume, orderless=options.orderless, runs_dir=options.runs_dir)
    adapted = set(ADAPTED) - named(arguments) if config.preset in ADAPTING and options.resume is None else ()
    fit(config, systems=systems, adapted=adapted, **folders, **of_devices)


def parse(arguments: list[str]) -> Arguments:
    """Parse the options of the command.

    Raises:
        UserError: an option is unknown, belongs to another system, has a wrong value, or conflicts with --resume.
    """
    name, rest = "demo", arguments
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
    default = Arguments(preset(name, own_systems(cli.value_of("--systems", rest))))
    refuse_foreign_options(rest, default.config)
    kind = Arguments[type(default.config.model)]
    options = cli.parse(kind, rest, default=default, prog="fit.py", description=DESCRIPTION)
    if options.resume is not None:
        taken = {name: getattr(options, name) for name in ("resume", "dry_run", "systems", *_OF_DEVICES)}
        if options != Arguments(preset("demo"), **taken):
            raise UserError(
                f"--resume {options.resume} has its own configuration: with it only --devices, --global-batch-size, "
                "--accumulate, --compile, --cuda-graph and --systems may be given"
            )
    return options


@pyro.validation_enabled(False)  # the trainer reports a NaN by site and step
def fit(
    config: Config,
    *,
    scenes: Any = None,
    systems: Iterable[type[SystemOptions]] = (),
    devices: int = 1,
    global_batch_size: int | None = None,
    accumulate: int = 1,
    compile: bool = False,
    cuda_graph: bool = False,
    resume: Path | None = None,
    orderless: Path | None = None,
    runs_dir: Path = Path("runs"),
    adapted: Collection[str] = (),
    scene_prior: nn.Module | Factory | None = None,
    slot_prior: nn.Module | Factory | None = None,
    scene_posterior: nn.Module | Factory | None = None,
    matching: Callable | Factory | None = None,
    likelihood: nn.Module | Factory | None = None,
    decoder: nn.Module | Factory | None = None,
) -> Run:
    """Train a configuration, as the command does.

    The last six arguments exchange parts of the last pair (`experiments/parts.py`). Modules are copied before
    training, and a `Factory` is called after seeding. The run records classes and shapes of its parts, and cannot be
    resumed or loaded without them.

    Args:
        scenes: images to train on instead of `config.data.path`: an array or tensor (N, H, W, C) or (N, C, H, W) of
            bytes, or of floats in [0, 1] (`pyro_lom/data/arrays.py`); or `Scenes`, which have labels and splits too.
            Images of another size are brought to `config.data.image_size`. They are not stored: pass them to
            `load_run`, `evaluate` and `resume` again.
        systems: classes of your own systems, if `config.model` is one of them.
        resume: a run of the same configuration and parts.
        orderless: a run whose orderless pair is taken over. A phase that would train it alone is left out. With
            `resume`, it must be the run from which the resumed run took it over.
        adapted: those of `experiments/adapt.py: ADAPTED` whose values a look at the images replaces. The command
            `fit.py lom-genesis-v2-own` passes all that are not given. No effect with `resume`.
        scene_prior: returns p(s), a Pyro distribution of batch shape () and event shape (Ds,).
        slot_prior: maps h_1:K to p(z_k | h_k), a distribution of event shape (Dz,).
        scene_posterior: maps the features of g (B, 1, Ds) to q(s), a distribution of event shape (Ds,).
        matching: maps the means of p(z_k | h_k) and of q(o_k), each (B, K, Dz), to a permutation (B, K).
        likelihood: maps a `Rendering` to p(x | z), a distribution of batch shape (B, 1) and event shape (C, H, W). The
            pair then minimises the negative ELBO with its free nats, without GECO.
        decoder: maps slots (B, K, Dz) to C+1 channels (B, K, C+1, H, W). It starts with its own weights.

    Raises:
        UserError: options, parts, data and files are not compatible, or a file cannot be read or written.
        Interrupted, NonFiniteLoss: see `Trainer.fit`.
    """
    parts = {
        "scene_prior": scene_prior,
        "slot_prior": slot_prior,
        "scene_posterior": scene_posterior,
        "matching": matching,
        "likelihood": likelihood,
        "decoder": decoder,
    }
    parts = {name: part for name, part in parts.items() if part is not None}
    # All checks come before processes are launched and a run folder is created.
    check_value("--devices", devices, Processes)
    check_value("--global-batch-size", global_batch_size, Count)
    check_value("--accumulate", accumulate, Count)
    if type(config.model) not in (*SYSTEMS, *systems):
        raise UserError(f"{type(config.model).__name__} is a system of your own: pass its class by systems=[...]")
    check(config, accumulate=accumulate, cuda_graph=cuda_graph)
    devices, num_nodes = processes(devices)
    if cuda_graph:
        check_cuda_graph(on_gpu=torch.cuda.is_available(), num_processes=devices * num_nodes)
    given, config = config, with_global_batch_size(config, global_batch_size, devices * num_nodes, accumulate)
    origin = Origin()
    if resume is not None:
        origin = check_resumption(find_run(resume), [given, config], parts, systems)
        check_scenes(origin, scenes, resume)
        if orderless is not None and str(find_run(orderless).folder.resolve()) != origin.orderless:
            raise UserError(f"{resume} did not take over the orderless pair of {orderless}: leave orderless out")
    elif scenes is not None:
        shape = getattr(scenes.images if isinstance(scenes, Scenes) else scenes, "shape", ())
        origin = Origin(scenes=f"of the shape {tuple(shape)}")
    scenes = read_data(config.data, scenes)
    train, reasons = scenes.split("train"), []
    if adapted and resume is None:
        config, reasons = adapt(config, train.images, adapted)
        check(config, accumulate=accumulate, cuda_graph=cuda_graph)
    torch.manual_seed(config.seed)
    system = build(config, scenes.image_shape, **parts)
    objective = Objective(system)
    found = records(system, parts)
    check_records(origin.parts, found, resume)
    if orderless is not None and resume is None:
        start_from(system, config, orderless, systems)
        origin = origin._replace(orderless=str(find_run(orderless).folder.resolve()))
    origin = origin._replace(parts=found)
    phases = config.model.phases(system, config.train)
    if origin.orderless:
        sources = {pair.reads for pair in system.values()}
        phases = [phase for phase in phases if phase.pairs is None or not sources.issuperset(phase.pairs)]
    if "decoder" in parts:
        phases = [replace(phase, prepare=None) for phase in phases]  # the user's decoder keeps its own weights
    if not phases:
        raise UserError("--orderless leaves nothing to train: lower --model.schedule.orderless-first")
    check_batches(phases, len(train.images), world_size=devices * num_nodes, accumulate=accumulate)
    try_once(system, objective, float_images(train.images[:2]), parts)
    try:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
        precision = config.train.precision
        fabric = make_fabric(accelerator, precision=precision, devices=devices, num_nodes=num_nodes)
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"--devices {devices} is not available: {error}") from error
    join_again()
    fabric.launch()
    fabric.to_device(objective)

    with one_report(fabric), ExitStack() as stack:
        opened = None
        if fabric.is_global_zero:
            opened = open_run(runs_dir, config, origin, resume)
            stack.enter_context(opened[0].locked())
        run, goes_on = fabric.broadcast(opened)

        def tell(line: str) -> None:
            if fabric.is_global_zero:
                tqdm.write(printable(line), file=sys.stderr)
                run.log(_stamped(line))

        test = scenes.split("test" if scenes.splits.get("test") else "train", at_most=_HELD_OUT)

        def preview(step: int) -> None:
            draw(system, test, run, seed=config.seed, step=step)
            for line in verdicts.after(step):
                tell(line)

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
            make_optimizer=optimizer(config.train),
            log_every=config.train.log_every,
            checkpoint_every=config.train.checkpoint_every,
            preview_every=config.train.preview_every,
            preview=preview,
        )
        if goes_on:
            began_with, size = run.environment().processes, config.train.batch_size
            trainer.resume()
            if global_batch_size is None and began_with != fabric.world_size:
                tell(
                    f"warning: a step takes {size * fabric.world_size} scenes, and took {size * began_with} on the "
                    f"{began_with} devices that the run began on: --global-batch-size {size * began_with} keeps them"
                )
        how = f", {trainer.step} of them done" * (trainer.step > 0)
        how += (
            f", in {accumulate} parts" * (accumulate > 1) + ", compiled" * compiled + ", as a CUDA graph" * cuda_graph
        )
        tell(f"{run.folder}: {config.preset}, seed {config.seed}, {trainer.num_steps} steps{how}")
        for line in [*remarks(scenes), *reasons] if not goes_on else ():
            tell(line)
        verdicts = Verdicts(config, system, test.images)
        try:
            trainer.fit()
        except (Interrupted, NonFiniteLoss) as end:
            if fabric.is_global_zero:
                run.log(_stamped(str(end)))
            raise
        tell("evaluating ...")
        if not fabric.is_global_zero:
            return run
        summary = summarise(HeldOut(run, config, system, scenes, num_images=_HELD_OUT, parts=parts))
        summary |= {
            "images_per_second": round(trainer.images_seen / trainer.seconds, 1) if trainer.seconds else None,
            "train_minutes": round(trainer.seconds / 60, 3),
            "parameters": _num_parameters(objective),
            "seed": config.seed,
        }
        run.write_json("summary.json", summary)
        for line in verdicts.at_end(summary):
            tell(line)
        pictures = draw(system, test, run, seed=config.seed)
        print("\n" + "\n".join(summary_lines(summary)))
        print("\n" + printable(f"all numbers: {run.folder / 'summary.json'}"))
        print("pictures:    " + "\n             ".join(printable(str(path)) for path in pictures))
        return run


def _print_plan(config: Config) -> None:
    size = config.data.image_size
    objective = Objective(build(config, (3, size, size)))
    print(json.dumps(to_dict(config), indent=2))
    print("\nparameters, for RGB images")
    for pair_name, pair in objective.pairs.items():
        for role in ("model", "guide"):
            program = getattr(pair, role)
            parts = {part: _num_parameters(module) for part, module in program.named_children()}
            parts |= {part: parameter.numel() for part, parameter in program.named_parameters(recurse=False)}
            for part, number in parts.items():
                if number:
                    print(f"  {pair_name + ' ' + role + '.' + part:40} {number:>10,}")
        print(f"  {pair_name + ' total':40} {_num_parameters(pair):>10,}")
    print(f"  {'total':40} {_num_parameters(objective):>10,}")


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _stamped(line: str) -> str:
    return f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"


if __name__ == "__main__":
    cli.run(main, saves_memory="--train.batch-size, --data.image-size or the sizes of --model.*")
