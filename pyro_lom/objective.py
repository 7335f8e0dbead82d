"""The training objective: the sum of the GECO-wrapped ELBOs of the orderless and the ordered pair (Eq. 9)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from pyro_lom.types import OrderlessPosterior


class Evaluation(NamedTuple):
    """A loss on a batch, of one pair or of several; everything in nats per scene, averaged over the batch."""

    loss: Float[Tensor, ""]
    errors: dict[str, Float[Tensor, ""]]  # by pair: negative log-likelihood, what GECO steers by
    terms: dict[str, Float[Tensor, ""]]  # by "pair/site": negative log-likelihoods and KLs, without free nats

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """The loss of these pairs and of others (not the tuples, one after the other)."""
        return Evaluation(self.loss + other.loss, self.errors | other.errors, self.terms | other.terms)


class LossPart(NamedTuple):
    """A summand of a pair's loss: `weight` times that of `model` and `guide`, both called with the images alone."""

    weight: float
    model: Callable
    guide: Callable


class PairObjective(nn.Module):
    """L_orderless or L_LOM, by its name: one of the two losses of Eq. 9.

    A guide that infers in steps may offer `loss_parts(orderless) -> list[LossPart]`, which are added up in the place of
    the pair's own loss. What is reported of a site is of the last part that has it, and so is the error that moves the
    multiplier.
    """

    def __init__(self, name: str, pair: ELBOModule):
        super().__init__()
        self.name = name
        self.model, self.guide, self.elbo = pair.model, pair.guide, pair.elbo

    def forward(
        self, images: Float[Tensor, "B C H W"], *, orderless: OrderlessPosterior | None = None
    ) -> tuple[Evaluation, OrderlessPosterior]:
        """The loss on `images`, and the orderless posterior without its graph, for the next pair.

        The orderless pair infers the posterior where none is given; an ordered pair has to be given it.
        """
        if orderless is None:
            orderless = self.guide.infer(images)
        loss, terms = 0.0, {}
        for weight, model, guide in self._loss_parts(orderless):
            found = self.elbo.terms(model, guide, images)
            loss = loss + weight * self.elbo.combine(found)
            error = self.elbo.error(found).detach()
            terms |= {f"{self.name}/{site}": -value.detach().mean() for site, value in found.log_likelihood.items()}
            terms |= {f"{self.name}/{site}": value.detach().mean() for site, value in found.kl.items()}
        return Evaluation(loss, {self.name: error}, terms), orderless.detach()

    def _loss_parts(self, orderless: OrderlessPosterior) -> list[LossPart]:
        if hasattr(self.guide, "loss_parts"):
            return self.guide.loss_parts(orderless)
        return [LossPart(1.0, self.model, partial(self.guide, orderless=orderless))]


class Objective(nn.Module):
    """L = L_orderless + L_LOM, each under its own GECO (Eq. 9).

    The orderless posterior is inferred once and handed to both guides; the LOM guide stops its gradient, so neither
    ELBO disturbs the other, and a pair may as well be trained alone. Nor need their gradients be taken at once: a
    training step evaluates `pairs` in turn, each with its backward pass, and holds one graph at a time.

    Args:
        pairs: `ELBOModule`s by name, "orderless" and, for a LOM, "ordered".
    """

    def __init__(self, pairs: dict[str, ELBOModule]):
        super().__init__()
        self.pairs = nn.ModuleDict({name: PairObjective(name, pair) for name, pair in pairs.items()})

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        orderless: OrderlessPosterior | None = None,
        only: Iterable[str] | None = None,
    ) -> Evaluation:
        """The loss on `images`, of all pairs or of those named in `only`."""
        names = list(self.pairs if only is None else only)
        if orderless is None and "orderless" not in names:
            orderless = self.pairs["orderless"].guide.infer(images)
        total = Evaluation(0.0, {}, {})
        for name in names:
            evaluation, orderless = self.pairs[name](images, orderless=orderless)
            total += evaluation
        return total

    def update(self, errors: dict[str, Float[Tensor, ""]]) -> None:
        """Move each pair's multiplier by its error, nats per scene, averaged over processes."""
        for name, error in errors.items():
            self.pairs[name].elbo.update(error)
