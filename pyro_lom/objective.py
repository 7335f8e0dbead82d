"""The training objective: the sum of the losses of a system's pairs (Eq. 9)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pyro_lom.program import Program
from pyro_lom.system import Pair, System


class Evaluation(NamedTuple):
    """The loss of one or more pairs on a batch. All values are in nats per scene, averaged over the batch."""

    loss: Float[Tensor, ""]
    errors: dict[str, Float[Tensor, ""]]  # by pair: negative log-likelihood, for `Criterion.update`
    terms: dict[str, Float[Tensor, ""]]  # by "pair/site": negative log-likelihoods and KLs, without free nats

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Return the evaluation of the pairs of both; this does not concatenate the tuples."""
        return Evaluation(self.loss + other.loss, self.errors | other.errors, self.terms | other.terms)


class PairLoss(nn.Module):
    """The loss of one pair: a summand of Eq. 9.

    A guide may yield several sets of terms (`Guide.losses`). The reported error is from the last one, and the reported
    term of a site is from the last one that has the site.
    """

    def __init__(self, name: str, pair: Pair):
        super().__init__()
        self.name, self.reads = name, pair.reads
        self.model, self.guide = pair.model, pair.guide
        self.elbo = pair.criterion  # checkpoints have this name

    def forward(self, images: Float[Tensor, "B C H W"], inferred: Any = None) -> tuple[Evaluation, Any]:
        """Return the loss on `images`, and the part of the posterior that other pairs may read, without its graph."""
        if inferred is None:
            inferred = self.guide.infer(images)
        loss, error, terms = 0.0, None, {}
        for weight, found in self.guide.losses(self.elbo, images, inferred):
            loss = loss + weight * self.elbo.combine(found)
            error = found.mean_error().detach()
            terms |= {f"{self.name}/{site}": -value.detach().mean() for site, value in found.log_likelihood.items()}
            terms |= {f"{self.name}/{site}": value.detach().mean() for site, value in found.kl.items()}
        loss = loss + self.elbo.penalty(self.model, self.guide)
        passed_on = None if inferred is None else self.guide.pass_on(inferred)
        return Evaluation(loss, {self.name: error}, terms), tree_map_only(Tensor, Tensor.detach, passed_on)


def pair_losses(
    pairs: Mapping[str, nn.Module], images: Float[Tensor, "B C H W"], inferred: Mapping[str, Any] | None = None
) -> Iterator[Evaluation]:
    """Yield the summands of Eq. 9 in turn: L = L_orderless + L_LOM, each with its own criterion.

    A pair that reads another receives its posterior without a graph, so no gradient passes between summands. If each
    backward pass runs before the next summand is computed, only one graph is in memory at a time.

    Args:
        pairs: modules of the class `PairLoss`, or wrappers of them, by name.
        inferred: posteriors that are already computed, by the name of the pair that inferred them.
    """
    known = dict(inferred or {})
    for name, pair in pairs.items():
        evaluation, known[name] = pair(images, known.get(pair.reads or name))
        yield evaluation


class Objective(nn.Module):
    """The losses of a system's pairs, and their sum L (Eq. 9)."""

    def __init__(self, system: System):
        super().__init__()
        self.pairs = nn.ModuleDict({name: PairLoss(name, pair) for name, pair in system.items()})
        self._programs = [module for module in self.modules() if isinstance(module, Program)]

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        inferred: Mapping[str, Any] | None = None,
        only: Iterable[str] | None = None,
    ) -> Evaluation:
        """Return the loss on `images` of all pairs, or of the pairs in `only`; `inferred` as in `pair_losses`."""
        pairs = {name: self.pairs[name] for name in (self.pairs if only is None else only)}
        return sum(pair_losses(pairs, images, inferred), start=Evaluation(0.0, {}, {}))

    def at_step(self, step: int) -> None:
        """Set `step` of all models and guides."""
        for program in self._programs:
            program.step.fill_(step)

    @torch.no_grad()
    def update(self, errors: dict[str, Float[Tensor, ""]]) -> None:
        """Update each pair's criterion with its error, in nats per scene, averaged over processes."""
        for name, error in errors.items():
            self.pairs[name].elbo.update(error)
