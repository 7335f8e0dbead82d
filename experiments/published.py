"""Weights of published checkpoints: reading them without running code, and conversion to our weights and back."""

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from torch import Tensor

from experiments.systems.options import SystemOptions
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.training.checkpoints import fault_of

_LARGEST = 1 << 30  # bytes of a published file
_NUM_PICKLES = 5  # at the start of a file that is no zip archive
_TYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32}
_SHOWN = 4  # names of each kind in a message


def read_published(path: Path, options: SystemOptions) -> dict[str, Tensor]:
    """Read a file that `torch.save` wrote, and return its weights by their published names of today.

    Raises:
        UserError: the file cannot be read, is too large, would run code, or contains no dict of tensors.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file: name a checkpoint that torch.save wrote")
    try:
        if _size(path) > _LARGEST:
            raise UserError(f"{path} has more than {_LARGEST >> 30} GiB, which is too large for such weights")
        _check_pickles(path)
        with warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it is damaged, or contains other things than tensors, which could run code when they "
            "are read; save its state_dict alone"
        ) from error
    except Exception as error:  # of damage; torch names no classes of its own
        reason = str(error).partition(".")[0].splitlines() if isinstance(error, RuntimeError) else []
        reason = reason[0] if reason else type(error).__name__
        raise UserError(f"{path} is not a checkpoint that torch.save wrote, or is damaged: {reason}") from error
    if isinstance(content, Mapping) and options.published_key in content:
        content = content[options.published_key]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} contains no dict of tensors: name a checkpoint of weights")
    tensors = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise UserError(f"{path}: {str(name)!r} is not a dense tensor of numbers: name a checkpoint of weights")
        if fault := fault_of(name, tensor):
            raise UserError(f"{path}: {name!r} {fault}: name an undamaged checkpoint")
        if today := _name_of_today(name.removeprefix("module."), options):
            if today in tensors:
                raise UserError(f"{path} has two tensors {today}: name an undamaged checkpoint")
            tensors[today] = tensor.detach()
    return tensors


def to_published(options: SystemOptions, objective: Objective) -> dict[str, Tensor]:
    """Return the weights of an objective under their published names.

    Raises:
        UserError: the configuration is not that of a published program.
    """
    _places(options, objective)
    return {name: tensor.clone() for name, tensor in options.published(objective.state_dict()).items()}


def from_published(
    options: SystemOptions, objective: Objective, tensors: Mapping[str, Tensor], source: str | Path
) -> dict[str, Tensor]:
    """Return the state of `objective` with the published `tensors` in place of its own.

    Raises:
        UserError: the configuration is not that of a published program, or tensors of `source` are missing, unknown, or
            of another shape. The message names them.
    """
    places = _places(options, objective)
    _check(tensors, places, source)
    state = objective.state_dict()
    numbers = torch.cat([torch.zeros(1), *(tensor.double().flatten() for tensor in state.values())])
    for name, place in places.items():
        numbers[place.flatten()] = tensors[name].double().flatten()
    parts = numbers[1:].split([tensor.numel() for tensor in state.values()])
    converted = {
        name: part.view(tensor.shape).to(tensor.dtype)
        for (name, tensor), part in zip(state.items(), parts, strict=True)
    }
    for name, tensor in converted.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"{source}: {name} has numbers that {tensor.dtype} cannot hold: name an undamaged checkpoint"
            )
    return converted


def check_kept(options: SystemOptions, objective: Objective, kept: Mapping[str, Tensor], source: str | Path) -> None:
    """Check published tensors which differ from the weights that were made from them.

    Raises:
        UserError: a tensor is unknown, or has another shape, or other numbers than those from which the weights of
            `objective` were rounded.
    """
    places, rounded = _places(options, objective), to_published(options, objective)
    for name, tensor in kept.items():
        is_known = name in places and tensor.shape == places[name].shape and _is_plain(tensor)
        if not is_known or not ((tensor.to(rounded[name].dtype) == rounded[name]) | (places[name] == 0)).all():
            raise UserError(f"{source} does not belong to this run, at {name}: import the weights again")


def _places(options: SystemOptions, objective: Objective) -> dict[str, Tensor]:
    """Return, by published name, the place of each of its numbers among all numbers of the state, from 1 on.

    The function that converts weights to published ones converts their places as well, and so defines its own inverse.
    A zero is a number that has no place in the state.
    """
    state = objective.state_dict()
    num = sum(tensor.numel() for tensor in state.values())
    parts = torch.arange(1, num + 1).split([tensor.numel() for tensor in state.values()])
    ours = {name: part.view(tensor.shape) for (name, tensor), part in zip(state.items(), parts, strict=True)}
    try:
        places = options.published(ours)
    except KeyError as missing:
        raise UserError(
            f"this configuration of {options.kind} was not published: it has no {missing.args[0]}; use the published "
            "networks"
        ) from missing
    covered = torch.zeros(num + 1, dtype=torch.bool)
    for place in places.values():
        covered[place.flatten()] = True
    for name, _ in objective.named_parameters():
        if not covered[ours[name]].all():
            raise UserError(
                f"this configuration of {options.kind} was not published: {name} has no published name; use the "
                "published networks"
            )
    return places


def _check(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor], source: str | Path) -> None:
    """Raise UserError with the names of all tensors that are missing, unknown or of another shape."""
    wrong = [
        f"{name} has the shape {tuple(tensor.shape)} instead of {tuple(places[name].shape)}"
        for name, tensor in tensors.items()
        if name in places and tensor.shape != places[name].shape
    ]
    differences = {
        "missing": [name for name in places if name not in tensors],
        "unknown": [name for name in tensors if name not in places],
        "wrong size": wrong,
    }
    if any(differences.values()):
        words = "; ".join(f"{what}: {_listed(names)}" for what, names in differences.items() if names)
        raise UserError(f"{source} has other tensors than this preset and its options; {words}")


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _name_of_today(name: str, options: SystemOptions) -> str:
    for pattern, today in options.published_older.items():
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", today, name)
    return name


def _is_plain(tensor: object) -> bool:
    """Whether this is a tensor of numbers in memory: no sparse, quantised, nested, expanded or absent one."""
    is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_nested
    if not is_dense or tensor.device.type != "cpu" or tensor.dtype not in _TYPES:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def _check_pickles(path: Path) -> None:
    """Refuse pickles that contain a tuple twice: hashing tuples that are nested in this way would never end.

    Checkpoints of weights do not contain them. A file of torch.save is a zip archive with one pickle, or begins with
    five of them.
    """
    with ExitStack() as stack, suppress(ValueError):  # of what is no pickle, which torch.load refuses
        file = stack.enter_context(open(path, "rb"))
        files = [file] * _NUM_PICKLES
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            files = [
                stack.enter_context(archive.open(name)) for name in archive.namelist() if name.endswith("data.pkl")
            ]
        for one in files:
            memo: dict[int, bool] = {}  # by index, whether it is a tuple
            last = ""
            for code, index, _ in pickletools.genops(one):
                if "PUT" in code.name or code.name == "MEMOIZE":
                    memo[len(memo) if index is None else index] = last.startswith("TUPLE")
                elif "GET" in code.name and memo.get(index):
                    raise UserError(f"{path} is refused: it contains a tuple twice; save its state_dict alone")
                last = code.name


def _size(path: Path) -> int:
    """The bytes of a file, unpacked."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())
