"""The training loss of NVAE: an ELBO with warm-up and balanced KLs, and a penalty on weights (Vahdat & Kautz, 2020)."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.elbo import Terms, TraceScene_ELBO
from pyro_lom.spectral_norms import SpectralNorms


class BalancedELBO(TraceScene_ELBO, nn.Module):
    """An ELBO whose KLs are weighted during a warm-up, with a penalty on the weights. The loss is no negative ELBO.

        loss  = error + c sum_l gamma_l KL_l + penalty
        c     = (step - 0.0001 N) / (0.3 N), within [0.0001, 1]          N steps in total
        gamma = (mean |KL_l| + 0.01) / alpha_l, times a constant         mean 1 over groups; 1 once c is 1
        penalty = lambda (sum of spectral norms + sum over batch norms of the largest |scale|)

    Means over the scenes of this process weigh the KLs. They carry no gradient.

    Args:
        alphas: the weight alpha of the KL of each site (`group_weights`).
        num_steps: N.
        penalty_weight: lambda.
        programs: the model and the guide, whose convolutions and batch norms the penalty is about.
        warmup: share of the steps in which c grows.
    """

    def __init__(
        self,
        alphas: dict[str, float],
        *,
        num_steps: int,
        penalty_weight: float,
        programs: Iterable[nn.Module],
        warmup: float = 0.3,
        least: float = 1e-4,
    ):
        nn.Module.__init__(self)
        TraceScene_ELBO.__init__(self)
        self.sites, self.num_steps, self.warmup, self.least = tuple(alphas), num_steps, warmup, least
        self.penalty_weight = penalty_weight
        modules = [module for program in programs for module in program.modules()]
        self.spectral_norms = SpectralNorms(module for module in modules if isinstance(module, nn.Conv2d))
        self.register_buffer("alphas", torch.tensor([*alphas.values()]), persistent=False)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @property
    def kl_weight(self) -> Float[Tensor, ""]:
        """c, the weight of all KLs, at the number of updates so far."""
        return ((self.num_updates - self.least * self.num_steps) / (self.warmup * self.num_steps)).clamp(self.least, 1)

    def balance(self, terms: Terms) -> Float[Tensor, "L"]:
        """Return gamma_l for each group."""
        sizes = torch.stack([terms.kl[site].detach().abs().mean() for site in self.sites])
        gammas = (sizes + 0.01) / self.alphas
        return torch.where(self.kl_weight < 1, gammas / gammas.mean(), 1.0)

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        """Return the loss of these terms at the current weights, without the penalty."""
        kls = torch.stack([terms.kl[site].mean() for site in self.sites])
        return terms.mean_error() + self.kl_weight * (self.balance(terms) * kls).sum()

    def penalty(self, model: nn.Module, guide: nn.Module) -> Float[Tensor, ""]:
        """Return the penalty. In training mode, the vectors of the spectral norms move."""
        norms = [
            module for program in (model, guide) for module in program.modules() if isinstance(module, nn.BatchNorm2d)
        ]
        maxima = torch.stack([norm.weight.abs().max() for norm in norms])
        return self.penalty_weight * (self.spectral_norms() + maxima.sum())

    @torch.no_grad()
    def update(self, error: Float[Tensor, ""]) -> None:
        """Count this step. This does not synchronise."""
        self.num_updates.add_(1)

    def report(self, error: float) -> dict[str, float]:
        return {"kl_weight": self.kl_weight.item()}


def group_weights(groups: Sequence[int]) -> list[float]:
    """Return alpha of each group, from the top: 4^j / (number of groups at scale j), divided by the least of these.

    Args:
        groups: number of groups at each scale, from the top.
    """
    weights = [4**scale / num_groups for scale, num_groups in enumerate(groups)]
    return [
        weight / min(weights) for weight, num_groups in zip(weights, groups, strict=True) for _ in range(num_groups)
    ]
