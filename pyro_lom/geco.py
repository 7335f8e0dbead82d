"""GECO: the ELBO as a minimisation of the KL under a constraint on the reconstruction (Rezende & Viola, 2018; A.4.2).

*Error* and *target* are normalised negative log-likelihoods in nats per scene. The constraint is error <= target. The
two published rules differ in what the multiplier multiplies.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pyro import poutine
from torch import Tensor, nn

from pyro_lom.elbo import Terms, TraceScene_ELBO, per_scene
from pyro_lom.errors import UserError

_RELAXED = 1.05**2  # the square of the ratio of a relaxed target to the error, as RMSE


class Target(NamedTuple):
    """The reconstruction error to reach. The RMSE is exact for Eq. 3, and for a mixture with one slot per pixel."""

    nats: float  # error to reach, nats per scene
    floor: float  # error of a perfect reconstruction, nats per scene
    image_scale: float  # sigma
    num_values: int  # C H W

    @classmethod
    def from_rmse(cls, rmse: float, *, image_scale: float, image_shape: tuple[int, int, int]) -> "Target":
        """Return the target of a root mean squared error per pixel and channel, for images in [0, 1].

        Raises:
            UserError: no reconstruction can reach it.
        """
        if not rmse > 0:
            raise UserError(f"the reconstruction target must be an RMSE above 0, not {rmse}: nothing can reach it")
        num_values = math.prod(image_shape)
        floor = (math.log(image_scale) + 0.5 * math.log(2 * math.pi)) * num_values
        return cls(floor + num_values * rmse**2 / (2 * image_scale**2), floor, image_scale, num_values)

    @classmethod
    def from_paper(cls, value: float, *, image_scale: float, image_shape: tuple[int, int, int]) -> "Target":
        """Return the target of `value` nats per pixel and channel, without the constant (1/2) log 2 pi (A.4.2).

        Raises:
            UserError: the value is not above log(image_scale), the error of a perfect reconstruction.
        """
        excess = value - math.log(image_scale)
        if excess <= 0:
            raise UserError(
                f"the GECO target {value} cannot be reached: with image_scale {image_scale} a perfect reconstruction "
                f"has {math.log(image_scale):.6f} nats per pixel and channel; choose a larger target"
            )
        return cls.from_rmse(math.sqrt(2 * excess) * image_scale, image_scale=image_scale, image_shape=image_shape)

    def rmse(self, error: float) -> float:
        """Return the RMSE per pixel and channel, in [0, 1], at which the expected error is `error` nats per scene."""
        return math.sqrt(max(error - self.floor, 0.0) * 2 * self.image_scale**2 / self.num_values)


class FreeNats(NamedTuple):
    """A floor under a site's KL per scene, in nats (Eq. 26): `nats`, then `final_nats` from update `final_from` on."""

    nats: float
    final_nats: float
    final_from: int

    @classmethod
    def constant(cls, nats: float) -> "FreeNats":
        return cls(nats, nats, 0)


class FreeNatsELBO(TraceScene_ELBO, nn.Module):
    """An ELBO in which the KL of a site in a scene counts at least its free nats (Eq. 26).

    With `rollouts`, the terms also contain KL(q(site) || rollout) for each slot, under the name of the rollout's site,
    and the loss is no negative ELBO (SRI).

    Args:
        free_nats: the floors of KLs, by site name.
        rollouts: by slot site, the auxiliary site of the guide that samples the slot in a rollout of the prior.
        analytic_kl, num_kl_samples: as in `TraceScene_ELBO`.
    """

    def __init__(
        self,
        free_nats: dict[str, FreeNats] | None = None,
        *,
        rollouts: dict[str, str] | None = None,
        analytic_kl: bool = True,
        num_kl_samples: int = 32,
    ):
        nn.Module.__init__(self)
        TraceScene_ELBO.__init__(self, analytic_kl=analytic_kl, num_kl_samples=num_kl_samples)
        self.free_nats, self.rollouts = free_nats or {}, rollouts or {}
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    def terms(self, model, guide, *args, **kwargs) -> Terms:
        """Return the terms of the ELBO, and the KLs to the rollout.

        Raises:
            UserError: as in `TraceScene_ELBO.terms`.
        """
        if not self.rollouts:
            return super().terms(model, guide, *args, **kwargs)
        guide = poutine.trace(guide)
        terms = super().terms(model, guide, *args, **kwargs)
        sites = guide.trace.nodes
        for slot, rollout in self.rollouts.items():
            terms.kl[rollout] = per_scene(self._kl(sites[slot], sites[rollout]), sites[slot])
        return terms

    def kl(self, terms: Terms) -> Float[Tensor, ""]:
        """Return the mean KL over scenes, with the floors."""
        total = 0.0
        for name, kl in terms.kl.items():
            if name in self.free_nats:
                nats, final_nats, final_from = self.free_nats[name]
                kl = kl.clamp_min(torch.where(self.num_updates >= final_from, final_nats, nats))
            total = total + kl.mean()
        return total

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        return terms.mean_error() + self.kl(terms)

    @torch.no_grad()
    def update(self, error: Float[Tensor, ""]) -> None:
        """Count this step. This does not synchronise."""
        self.num_updates.add_(1)


class Geco(FreeNatsELBO):
    """An ELBO whose loss balances error and KL by a multiplier; `Geco(...)(model, guide)` is an `ELBOModule`.

    Buffers contain the state: multiplier, moving average of the error, number of updates. Only `update` changes it.

    Args:
        target: the error to reach.
        step_size, speedup: of the multiplier's update; `speedup` multiplies the step while the constraint is met.
        free_nats, rollouts, analytic_kl, num_kl_samples: as in `FreeNatsELBO`.
        goal_relative: divide the constraint by the target's distance from a perfect reconstruction and clamp it to
            [-1, 1], so that a step size suits every image size (departure for short trainings).
        initial, bounds: first value and limits of the multiplier's parameter.
        warm_start: number of first updates that neither change the multiplier nor count in the average of the error.
        relax_at: number of updates after which a target below the average error is replaced by one whose RMSE is 5 %
            above that error's; None keeps it.
        ema_decay: decay of the moving average of the error.
        analytic_kl, num_kl_samples: as in `TraceScene_ELBO`.
    """

    def __init__(
        self,
        target: Target,
        *,
        step_size: float,
        speedup: float,
        initial: float,
        bounds: tuple[float, float],
        free_nats: dict[str, FreeNats] | None = None,
        rollouts: dict[str, str] | None = None,
        goal_relative: bool = False,
        warm_start: int = 0,
        relax_at: int | None = None,
        ema_decay: float = 0.99,
        analytic_kl: bool = True,
        num_kl_samples: int = 32,
    ):
        super().__init__(free_nats, rollouts=rollouts, analytic_kl=analytic_kl, num_kl_samples=num_kl_samples)
        self.target = target
        self.step_size, self.speedup, self.bounds = step_size, speedup, bounds
        self.goal_relative, self.warm_start, self.ema_decay = goal_relative, warm_start, ema_decay
        self.relax_at = relax_at
        # The error to reach now, nats per scene.
        if relax_at is None:
            self.goal = target.nats
        else:
            self.register_buffer("goal", torch.tensor(target.nats))
        self.register_buffer("parameter", torch.tensor(float(initial)))
        self.register_buffer("error_ema", torch.zeros(()))

    @property
    def multiplier(self) -> Float[Tensor, ""]:
        """The weight of the KL (GENESIS's rule) or of the error (EMORL's rule)."""
        return self.parameter

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        """Return the loss of these terms with the current multiplier."""
        raise NotImplementedError("a subclass defines what its multiplier multiplies")

    @torch.no_grad()
    def update(self, error: Float[Tensor, ""]) -> None:
        """Update the multiplier with the error of this step, averaged over processes. This does not synchronise."""
        decay = torch.where(self.num_updates <= self.warm_start, 0.0, self.ema_decay)
        self.error_ema.copy_(decay * self.error_ema + (1 - decay) * error)
        if self.relax_at is not None:
            reachable = self.target.floor + _RELAXED * (self.error_ema - self.target.floor)
            relax = (self.num_updates == self.relax_at) & (self.error_ema > self.goal)
            self.goal.copy_(torch.where(relax, reachable, self.goal))
        slack = self.goal - self.error_ema  # positive once the constraint is met
        if self.goal_relative:
            slack = (slack / (self.goal - self.target.floor)).clamp(-1, 1)
        step = self.step_size * torch.where(slack > 0, self.speedup, 1.0) * slack
        moved = self._moved(step).clamp(*self.bounds)
        self.parameter.copy_(torch.where(self.num_updates < self.warm_start, self.parameter, moved))
        self.num_updates += 1

    def unconstrained(self) -> FreeNatsELBO:
        """Return an ELBO with the same free nats and without the target, which belongs to a Gaussian likelihood."""
        return FreeNatsELBO(
            self.free_nats,
            rollouts=self.rollouts,
            analytic_kl=self.analytic_kl,
            num_kl_samples=self.num_kl_samples,
        )

    def report(self, error: float) -> dict[str, float]:
        """Return the error and its target as RMSE, and the multiplier."""
        rmse, rmse_target = self.target.rmse(error), self.target.rmse(float(self.goal))
        return {"rmse": rmse, "rmse_target": rmse_target, "multiplier": self.multiplier.item()}

    def _moved(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return the parameter after a step of the rule, before it is clamped."""
        raise NotImplementedError("a subclass defines how its parameter moves")


class MultiplicativeGeco(Geco):
    """GENESIS's rule: the multiplier weighs the KL and grows exponentially while the constraint is met.

        loss = error + beta KL,    beta <- beta exp(step_size (target - ema of error))

    Published: beta starts at 1 and is within [1e-10, 1e10], speed-up 10, step size 1e-5 (1e-6 in the LOM paper) times
    64^2 / side^2. With beta below 1, the loss is not a bound on the likelihood: it acts like a smaller image_scale.
    """

    def __init__(self, target: Target, *, initial: float = 1.0, bounds=(1e-10, 1e10), **options):
        super().__init__(target, initial=initial, bounds=bounds, **options)

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        return terms.mean_error() + self.multiplier * self.kl(terms)

    def _moved(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return self.parameter * step.exp()


class AdditiveGeco(Geco):
    """EMORL's rule: the multiplier weighs the error and falls towards 1 while the constraint is met.

        loss = KL + softplus(b) (error - target),    b <- b - step_size (target - ema of error)

    Published: b starts at its minimum 0.55, at which softplus(b) = 1.0055 and the loss is nearly an ELBO; step size
    1e-6; speed-up by data set; the multiplier is 1 in the first 1,000 steps. The first update after such a warm
    start only starts the average of the error.
    """

    def __init__(self, target: Target, *, initial: float = 0.55, bounds=(0.55, math.inf), **options):
        super().__init__(target, initial=initial, bounds=bounds, **options)

    @property
    def multiplier(self) -> Float[Tensor, ""]:
        return torch.where(self.num_updates < self.warm_start, 1.0, F.softplus(self.parameter))

    def combine(self, terms: Terms) -> Float[Tensor, ""]:
        return self.kl(terms) + self.multiplier * (terms.mean_error() - self.goal)

    def _moved(self, step: Float[Tensor, ""]) -> Float[Tensor, ""]:
        moved = self.parameter - step
        return torch.where(self.num_updates == self.warm_start, self.parameter, moved) if self.warm_start else moved
