"""Checkpoints: folders of two safetensors files and `state.json`, whose digest ties the three together.

Loading a checkpoint cannot run code. Nothing in it is used before all of it is verified.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from jaxtyping import UInt8
from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pyro_lom.data.stored import Array
from pyro_lom.errors import UserError
from pyro_lom.files import open_own, sync

_FILES = ("weights.safetensors", "optimizer.safetensors")
_LARGEST = 1 << 30  # bytes of a file that is read without a module; a larger one is damaged
_LARGEST_STATE = 1 << 20
_TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.uint8, torch.bool),
}
_NUM_FINGERPRINT = 512  # images

Natural = Annotated[int, Meta(ge=0, le=2**53)]


class Progress(msgspec.Struct, frozen=True):
    """The counters of a run, and a fingerprint of its data."""

    step: Natural  # finished steps
    seconds: Annotated[float, Meta(ge=0, le=1e12)]  # training time since the run's first start, without interruptions
    images_seen: Natural
    data: str  # `fingerprint` of the training images; "" if the weights were imported, or the run is packed


class _State(Progress, frozen=True, forbid_unknown_fields=True):
    """The content of `state.json`."""

    digest: str


def fingerprint(images: UInt8[Array, "N H W C"]) -> str:
    """Return a checksum of the shape of `images` and of 512 of them at most, evenly spaced."""
    rows = np.linspace(0, len(images) - 1, min(len(images), _NUM_FINGERPRINT)).astype(int)
    digest = hashlib.sha256(repr(tuple(images.shape)).encode())
    digest.update(np.ascontiguousarray(images[rows]))
    return digest.hexdigest()[:16]


def check_data(progress: Progress, images: UInt8[Array, "N H W C"], source: Path) -> None:
    """Raise UserError if it is known that the run in `source` was trained on other images than these."""
    if progress.data and fingerprint(images) != progress.data:
        raise UserError(
            f"{source} was trained on other images than those at its data path now: restore them, or train a new run"
        )


def save(folder: Path, progress: Progress, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """Write a checkpoint. A kill leaves all of it, or nothing but a folder `*.tmp`.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        for name, tensors in zip(_FILES, (weights, optimizer), strict=True):
            # Copies, because some modules register a tensor under two names, as Pyro's spline flows do.
            own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
            save_file(own, temporary / name)
        state = _State(**msgspec.structs.asdict(progress), digest=_digest(temporary, progress))
        (temporary / "state.json").write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=2) + b"\n")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        remove(folder)
        os.rename(temporary, folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint, if it exists. It is renamed first, so that a half-removed one does not count."""
    if folder.exists():
        removed = folder.with_name(folder.name + ".old.tmp")
        shutil.rmtree(removed, ignore_errors=True)
        os.rename(folder, removed)
        shutil.rmtree(removed, ignore_errors=True)


def load(folder: Path, module: nn.Module | None = None) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
    """Read and verify a checkpoint: its counters, weights and state of the optimiser.

    Args:
        module: what the weights are for. A file of more than 16 times its size is refused before it is read.

    Raises:
        UserError: a file is missing or damaged, the files do not belong together, a number is NaN or infinite, or a
            running variance is negative.
    """
    largest = _LARGEST
    if module is not None:
        largest = 2**20 + 16 * sum(tensor.nbytes for tensor in module.state_dict().values())
    with _reading(folder):
        progress = _verified(folder, largest)
        weights, optimizer = (load_file(folder / name) for name in _FILES)
        for name, tensor in (weights | optimizer).items():
            if tensor.dtype not in _TYPES:
                raise ValueError(f"{name} has the type {tensor.dtype}")
            if fault := fault_of(name, tensor):
                raise ValueError(f"{name} {fault}")
    return progress, weights, optimizer


def fault_of(name: str, tensor: Tensor) -> str | None:
    """Return what no tensor of this name may contain but this tensor does, or None."""
    if not torch.isfinite(tensor).all():
        return "is NaN or infinite"
    if name.endswith("running_var") and (tensor < 0).any():
        return "is a variance and negative"
    return None


def verify(folder: Path) -> Progress:
    """Return the counters of a checkpoint without reading its tensors into memory.

    Raises:
        UserError: a file is missing or damaged, or the files do not belong together.
    """
    with _reading(folder):
        return _verified(folder, _LARGEST)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise UserError(f"the checkpoint {folder} cannot be read: {error.strerror}; ask its owner") from error
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the checkpoint {folder} is damaged ({reason}); remove it to go on from the one before"
        ) from error


def _verified(folder: Path, largest: int) -> Progress:
    for name, limit in (*((name, largest) for name in _FILES), ("state.json", _LARGEST_STATE)):
        if (size := (folder / name).stat().st_size) > limit:
            raise ValueError(f"{name} has {size} bytes, which is too many")
    state = msgspec.json.decode((folder / "state.json").read_bytes(), type=_State)
    progress = Progress(state.step, state.seconds, state.images_seen, state.data)
    if folder.name != folder_name(progress.step) or _digest(folder, progress) != state.digest:
        raise ValueError("its files do not belong together")
    return progress


def folder_name(step: int) -> str:
    """Return the name of the folder of a checkpoint, such as "step-00001000"."""
    return f"step-{step:08d}"


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, remedy: str) -> None:
    """Raise UserError with the first tensor whose name, dtype or shape differs."""

    def described(tensors: Mapping[str, Tensor], name: str) -> str:
        if name not in tensors:
            return "nothing"
        return f"{str(tensors[name].dtype).removeprefix('torch.')} {tuple(tensors[name].shape)}"

    for name in [*expected, *found]:
        if (there := described(found, name)) != (here := described(expected, name)):
            raise UserError(f"{what}: at {name!r} there is {there}, but {here} is expected; {remedy}")


def _digest(folder: Path, progress: Progress) -> str:
    """Return a checksum of the counters and of both files of tensors."""
    digest = hashlib.sha256(msgspec.json.encode(progress))
    for name in _FILES:
        with open_own(folder / name) as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
