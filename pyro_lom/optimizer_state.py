"""An optimiser's state as a checkpoint keeps it: a tensor for each parameter's name and slot, "NAME/exp_avg"."""

import torch
from torch import Tensor
from torch.optim import Optimizer


def named_state(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """`names` are those of the optimiser's parameters, in its order."""
    tensors = {}
    for index, slots in optimizer.state_dict()["state"].items():
        tensors |= {f"{names[index]}/{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    return tensors


def foreign_names(tensors: dict[str, Tensor], names: list[str]) -> list[str]:
    """Parameters that `tensors` belong to, and that are not among `names`."""
    return [owner for key in tensors if (owner := key.rsplit("/", 1)[0]) not in names]


def load_named_state(optimizer: Optimizer, names: list[str], tensors: dict[str, Tensor]) -> None:
    """What `named_state` gave, back into an optimiser of the same parameters."""
    saved: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, slot = key.rsplit("/", 1)
        saved.setdefault(names.index(name), {})[slot] = tensor
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})
