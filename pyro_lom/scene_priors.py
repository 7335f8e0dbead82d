"""Scene priors p(s): modules that return a Pyro distribution over scenes, of batch shape () and event shape (Ds,).

Any module that does so can be passed to `LatentObjectModel(scene_prior=...)`. Those here start as N(0, I) or close to
it. A prior whose KL has no closed form costs the ELBO densities at more samples of s (`TraceScene_ELBO`), no more.
"""

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn

from pyro_lom.distributions import diagonal_normal
from pyro_lom.errors import UserError


class StandardNormal(nn.Module):
    """p(s) = N(0, I), the paper's choice (Sec. 3.1)."""

    def __init__(self, scene_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(scene_dim))
        self.register_buffer("scale", torch.ones(scene_dim))

    def forward(self) -> dist.Distribution:
        return diagonal_normal(self.loc, self.scale)


class NormalMixture(nn.Module):
    """p(s) = sum_c w_c N(loc_c, diag(scale_c^2)), everything learned: what the paper suggests to try (Sec. 5).

    Components start at equal weights, scale 1 and means 0.1 N(0, I), near enough to N(0, I) and different enough to
    part. A single component is returned as the normal distribution that it is, whose KL has a closed form.
    """

    def __init__(self, scene_dim: int, num_components: int):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(0.1 * torch.randn(num_components, scene_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, scene_dim))

    def forward(self) -> dist.Distribution:
        if len(self.logits) == 1:
            return diagonal_normal(self.loc[0], self.log_scale[0].exp())
        components = diagonal_normal(self.loc, self.log_scale.exp())
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class CouplingFlow(nn.Module):
    """p(s) = N(u; 0, I) |det du/ds|,  s = T(u),  T of affine couplings (Dinh et al., 2017).

    A coupling leaves one half of the vector as it is and shifts and scales the other by networks of the first; the
    halves change places from one to the next. T starts close to the identity. A coupling scales by 1/e to e, so that
    nothing runs away at high learning rates.

    Raises:
        UserError: `scene_dim` is 1, which has no halves.
    """

    def __init__(self, scene_dim: int, num_couplings: int, *, width: int = 64):
        super().__init__()
        if scene_dim < 2:
            raise UserError(f"a flow needs two dimensions or more, but scene_dim is {scene_dim}: choose another prior")
        kept = scene_dim // 2
        self.register_buffer("loc", torch.zeros(scene_dim))
        self.register_buffer("scale", torch.ones(scene_dim))
        self.register_buffer("swap", torch.arange(scene_dim).flip(0))
        self.conditioners = nn.ModuleList(_Conditioner(kept, scene_dim - kept, width) for _ in range(num_couplings))

    def forward(self) -> dist.Distribution:
        transforms = []
        for conditioner in self.conditioners:
            # Made anew each time: a coupling remembers the last vector by identity, which may have changed in place.
            transforms += [AffineCoupling(len(self.swap) // 2, conditioner), Permute(self.swap)]
        return dist.TransformedDistribution(diagonal_normal(self.loc, self.scale), transforms)


class _Conditioner(nn.Module):
    """Shift and log scale of one half of a vector, given the other."""

    def __init__(self, in_dim: int, out_dim: int, width: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_dim, width), nn.GELU())
        self.shift_and_log_scale = nn.Linear(width, 2 * out_dim)
        nn.init.normal_(self.shift_and_log_scale.weight, std=1e-3)
        nn.init.zeros_(self.shift_and_log_scale.bias)

    def forward(self, half: Float[Tensor, "*batch I"]) -> tuple[Float[Tensor, "*batch O"], Float[Tensor, "*batch O"]]:
        shift, log_scale = self.shift_and_log_scale(self.hidden(half)).float().chunk(2, dim=-1)
        return shift, log_scale.tanh()
