"""The run folder that a training begins or goes on with."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.config import Config, overrides, to_dict
from experiments.loading import EMBEDDED, KEPT_SCENES, Origin, find_run, read_config, read_origin
from experiments.parts import check_names
from experiments.systems.options import SystemOptions
from pyro_lom.errors import UserError
from pyro_lom.training.runs import Run


def anchored(config: Config) -> Config:
    """Return the configuration with an absolute path to the user's data, so that the run resumes from any folder."""
    if config.data.path in EMBEDDED:
        return config
    return replace(config, data=replace(config.data, path=str(Path(config.data.path).resolve())))


def check_resumption(
    run: Run, configs: list[Config], parts: dict[str, Any], systems: Iterable[type[SystemOptions]]
) -> Origin:
    """Return the origin of a run to resume.

    Raises:
        UserError: none of `configs` is the run's configuration, the parts are not the run's, or the run is packed.
    """
    if (run.folder / KEPT_SCENES).exists():
        raise UserError(f"{run.folder} is packed, without training scenes: it cannot be resumed; train a new run")
    kept, given = anchored(read_config(run, systems)), [anchored(config) for config in configs]
    if kept not in given:
        same_system = type(kept.model) is type(given[0].model)
        differ = " ".join(overrides(given[0], kept)) if same_system else f"the system {given[0].model.kind}"
        raise UserError(
            f"{run.folder} has another configuration than the given one (here: {differ or given[0].preset}): resume it "
            "with the configuration that load_run returns, or train a new run"
        )
    origin = read_origin(run)
    check_names(origin.parts, parts, run.folder)
    return origin


def open_run(runs_dir: Path, config: Config, origin: Origin, resume: Path | None) -> tuple[Run, bool]:
    """Return the run, and whether it resumes: `resume`, the run of a job that torchrun restarted, or a new run."""
    if resume is not None:
        return find_run(resume), True
    kept = to_dict(anchored(config)) | origin.as_json()
    if (begun := Run.restarted(runs_dir, kept)) is not None:
        return begun, True
    return Run.create(runs_dir, f"{config.preset}-seed{config.seed}", kept), False
