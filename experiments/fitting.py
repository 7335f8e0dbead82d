"""What `experiments/fit.py` does: read options, train, and end with pictures and a table."""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pyro
import torch
import tyro
from lightning_fabric import Fabric
from torch import nn

from experiments import cli
from experiments.config import Config, Data, from_dict, to_dict
from experiments.presets import PRESETS, preset
from experiments.summary import draw, summarise
from experiments.systems import System, build_objective, build_phases, build_system
from pyro_lom.data.hdf5 import Scenes, read_scenes
from pyro_lom.data.towers import ensure_towers
from pyro_lom.errors import UserError
from pyro_lom.runs import Run
from pyro_lom.trainer import Trainer

DESCRIPTION = f"""Fit a preset to its data set: fit.py [PRESET] [options]. Presets: {", ".join(PRESETS)}.
Options override the preset's values, for trying things."""


@dataclass(frozen=True)
class Arguments:
    config: Annotated[Config, tyro.conf.arg(name="")]
    devices: int = 1
    """GPUs, or CPU processes, to train on."""
    precision: str = "32-true"
    """Lightning Fabric's name of a precision, such as 32-true or bf16-mixed."""
    resume: Path | None = None
    """A run folder to go on with; its own configuration counts, and no other option but --devices."""
    runs_dir: Path = Path("runs")
    """Where run folders are made."""
    dry_run: bool = False
    """Print the resolved configuration and the parameters of each part, and stop."""


def main(arguments: list[str]) -> None:
    name = "demo"
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
    options = cli.parse(Arguments, arguments, default=Arguments(preset(name)), prog="fit.py", description=DESCRIPTION)
    config = options.config
    if options.resume is not None:
        config = from_dict(Run.open(options.resume).read_json("config.json"))
    if options.dry_run:
        _print_plan(config)
        return
    _fit(config, options)


def read_data(data: Data) -> Scenes:
    """The scenes of a configuration; the embedded data set is made when it is not there.

    Raises:
        UserError: they are missing, damaged, or not of the size asked for.
    """
    if data == Data():
        return ensure_towers(data.path)
    if data.path in _HOW_TO_GET and not Path(data.path).exists():
        raise UserError(f"the data set is missing: {data.path}. {_HOW_TO_GET[data.path]}")
    return read_scenes(data.path, (data.image_size, data.image_size))


_LAYOUT = "Put it there as HDF5 with images, uint8 (N, H, W, C), or name your own file or folder with --data.path"
_HOW_TO_GET = {
    "data/objects-room.h5": f"Objects Room is published at github.com/deepmind/multi_object_datasets. {_LAYOUT}",
    "data/clevr6.h5": f"CLEVR is published at github.com/deepmind/multi_object_datasets. {_LAYOUT}",
    "data/shapestacks.h5": f"ShapeStacks is published at ogroth.github.io/shapestacks. {_LAYOUT}",
}


def _fit(config: Config, options: Arguments) -> None:
    scenes = read_data(config.data)
    if options.devices < 1:
        raise UserError(f"--devices is {options.devices}: name 1 device or more")
    try:
        fabric = Fabric(accelerator="auto", devices=options.devices, precision=options.precision)
    except (ValueError, RuntimeError) as error:  # Fabric's own words name the option
        raise UserError(f"--devices {options.devices} --precision {options.precision}: {error}") from error
    fabric.launch()
    pyro.enable_validation(False)  # a NaN is reported by the trainer, by site and step
    torch.manual_seed(config.seed)
    system = build_system(config, scenes.image_shape)
    objective = build_objective(config, system, scenes.image_shape)
    fabric.to_device(objective)
    untrained = _untrained(config, scenes)

    if options.resume is not None:
        run = Run.open(options.resume)
    else:
        run = (
            Run.create(options.runs_dir, f"{config.preset}-seed{config.seed}", to_dict(config))
            if fabric.is_global_zero
            else None
        )
        run = fabric.broadcast(run)
    test = scenes.split("test" if "test" in scenes.splits else "train")

    def preview(step: int) -> None:
        draw(system, test, fabric.device, run, seed=config.seed, step=step)

    trainer = Trainer(
        fabric,
        objective,
        scenes.split("train").images,
        build_phases(config, system),
        run,
        seed=config.seed,
        clip_norm=config.train.clip_norm,
        log_every=config.train.log_every,
        checkpoint_every=config.train.checkpoint_every,
        preview_every=config.train.preview_every,
        preview=preview,
    )
    if options.resume is not None:
        trainer.resume()
    print(f"{run.folder}: {config.preset}, seed {config.seed}, {trainer.num_steps} steps", file=sys.stderr)
    trainer.fit()
    if not fabric.is_global_zero:
        return
    print("evaluating ...", file=sys.stderr)
    for program in (*untrained.orderless, *(untrained.ordered or ())):
        program.to(fabric.device)
    summary = summarise(system, untrained, test, fabric.device, seed=config.seed)
    summary |= {
        "images_per_second": round(trainer.images_seen / trainer.seconds, 1) if trainer.seconds else None,
        "train_minutes": round(trainer.seconds / 60, 3),
        "parameters": _count(objective),
        "seed": config.seed,
    }
    run.write_json("summary.json", summary)
    pictures = draw(system, test, fabric.device, run, seed=config.seed)
    _print_summary(run, summary, pictures)


def _untrained(config: Config, scenes: Scenes) -> System:
    """The same system before training: what data and initialisation alone achieve."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return build_system(config, scenes.image_shape)


def _print_plan(config: Config) -> None:
    print(_lines(to_dict(config)))
    size = config.data.image_size
    system = build_system(config, (3, size, size))
    objective = build_objective(config, system, (3, size, size))
    print("\nparameters, for RGB images")
    for pair_name, pair in objective.pairs.items():
        for role in ("model", "guide"):
            for part, module in getattr(pair, role).named_children():
                if _count(module):
                    print(f"  {pair_name + ' ' + role + '.' + part:40} {_count(module):>10,}")
    print(f"  {'in all':40} {_count(objective):>10,}")


def _lines(values: dict, indent: str = "") -> str:
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value}")
    return "\n".join(lines)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


_TABLE = (
    ("segmentation: ARI-FG of the guide's masks", "ari_fg_encoder", ""),
    ("  k-means on raw RGB; the untrained guide", "ari_fg_kmeans_rgb", "ari_fg_untrained"),
    ("  the decoders' masks, orderless; ordered", "ari_fg_orderless", "ari_fg_ordered"),
    ("reconstruction: RMSE, orderless; ordered", "rmse_orderless", "rmse_ordered"),
    ("slot KL, nats: own scene; another scene", "kl_slots", "kl_slots_other_scene"),
    ("scene KL; orderless KL, nats", "kl_scene", "kl_orderless"),
    ("structure: samples at tau 0.8; at tau 1", "structure_samples", "structure_samples_tau1"),
    ("  independent slots; shuffled posterior", "structure_orderless_prior", "structure_shuffled_posterior"),
    ("  real scenes; cut and pasted ones", "structure_real", "structure_cut_and_paste"),
    ("Frechet distance (PCA 64): samples", "fd_pca64_samples", ""),
    ("  independent slots; shuffled posterior", "fd_pca64_orderless_prior", "fd_pca64_shuffled_posterior"),
    ("training: minutes; images/s", "train_minutes", "images_per_second"),
)


def _print_summary(run: Run, summary: dict, pictures: list[Path]) -> None:
    def shown(key: str) -> str:
        value = summary.get(key)
        return "" if value is None else f"{value:10.3f}"

    print()
    for title, first, second in _TABLE:
        if summary.get(first) is not None:
            print(f"{title:44}{shown(first)}{shown(second)}")
    print(f"\nall numbers: {run.folder / 'summary.json'}")
    print("pictures:    " + f"{os.linesep}             ".join(str(path) for path in pictures))
