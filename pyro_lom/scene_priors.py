"""Scene priors p(s): modules that return a Pyro distribution over scenes, of batch shape () and event shape (Ds,).

Any such module can be passed to `LatentObjectModel(scene_prior=...)`. The priors in this file start at or near N(0, I).
If a KL has no closed form, `TraceScene_ELBO` evaluates the prior at more samples of s, without running the model again.
"""

from itertools import chain

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.transforms import AffineCoupling, Permute
from torch import Tensor, nn

from pyro_lom.distributions import at_least_float32, diagonal_normal
from pyro_lom.errors import UserError


class StandardNormal(nn.Module):
    """p(s) = N(0, I), as in the paper (Sec. 3.1)."""

    def __init__(self, scene_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(scene_dim))
        self.register_buffer("scale", torch.ones(scene_dim))

    def forward(self) -> dist.Distribution:
        return diagonal_normal(self.loc, self.scale)


class NormalMixture(nn.Module):
    """p(s) = sum_c w_c N(loc_c, diag(scale_c^2)) with trainable w, loc and scale, as the paper suggests (Sec. 5).

    Weights start equal, scales at 1, and means at samples of 0.1 N(0, I): close to N(0, I), but different enough for
    the components to separate. A single component is returned as a normal, because its KL has a closed form.
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
    """p(s) = N(u; 0, I) |det du/ds| with s = T(u), where T consists of affine couplings (Dinh et al., 2017).

    A coupling keeps one half of the vector and shifts and scales the other half by a network of the first. The halves
    are swapped after each coupling. T starts close to the identity. Scales in [1/e, e] keep training stable.

    Raises:
        UserError: `scene_dim` is less than 2.
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
        # A coupling caches its last input by identity. A new one avoids stale values after in-place changes.
        layers = ((AffineCoupling(len(self.swap) // 2, net), Permute(self.swap)) for net in self.conditioners)
        return dist.TransformedDistribution(diagonal_normal(self.loc, self.scale), [*chain.from_iterable(layers)])


class _Conditioner(nn.Module):
    """A network that maps one half of a vector to the shift and log scale of the other half."""

    def __init__(self, in_dim: int, out_dim: int, width: int):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(in_dim, width), nn.GELU())
        self.shift_and_log_scale = nn.Linear(width, 2 * out_dim)
        nn.init.normal_(self.shift_and_log_scale.weight, std=1e-3)
        nn.init.zeros_(self.shift_and_log_scale.bias)

    def forward(self, half: Float[Tensor, "*batch I"]) -> tuple[Float[Tensor, "*batch O"], Float[Tensor, "*batch O"]]:
        shift, log_scale = at_least_float32(self.shift_and_log_scale(self.hidden(half))).chunk(2, dim=-1)
        return shift, log_scale.tanh()
