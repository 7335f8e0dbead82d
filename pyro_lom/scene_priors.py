"""Scene priors p(s): modules that return a Pyro distribution over scenes, of batch shape () and event shape (Ds,).

Any module that does so can be passed to `LatentObjectModel(scene_prior=...)`.
"""

import pyro.distributions as dist
import torch
from torch import nn

from pyro_lom.distributions import diagonal_normal


class StandardNormal(nn.Module):
    """p(s) = N(0, I), the paper's choice (Sec. 3.1)."""

    def __init__(self, scene_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(scene_dim))
        self.register_buffer("scale", torch.ones(scene_dim))

    def forward(self) -> dist.Distribution:
        return diagonal_normal(self.loc, self.scale)


SCENE_PRIORS = {"normal": StandardNormal}
