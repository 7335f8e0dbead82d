"""The optimiser that a configuration names."""

from functools import partial

import torch

from experiments.config import Train
from pyro_lom.training.step import FUSED_ADAM, MakeOptimizer

_KINDS = {
    "adam": FUSED_ADAM,
    "rmsprop": torch.optim.RMSprop,
    "adamax": torch.optim.Adamax,
}


def optimizer(train: Train) -> MakeOptimizer:
    """Return a function that maps parameters to their optimiser."""
    return partial(_KINDS[train.optimizer], eps=train.eps, weight_decay=train.weight_decay)
