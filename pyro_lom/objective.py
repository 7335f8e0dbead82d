"""The training objective: the sum of the GECO-wrapped ELBOs of the orderless and the ordered pair (Eq. 9)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

from jaxtyping import Float
from pyro.infer.elbo import ELBOModule
from torch import Tensor, nn

from pyro_lom.types import OrderlessPosterior


class Evaluation(NamedTuple):
    """One evaluation of the objective on a batch; everything in nats per scene, averaged over the batch."""

    loss: Float[Tensor, ""]
    errors: dict[str, Float[Tensor, ""]]  # by pair: negative log-likelihood, what GECO steers by
    terms: dict[str, Float[Tensor, ""]]  # by "pair/site": negative log-likelihoods and KLs, without free nats


class Step(NamedTuple):
    """A part of a pair's loss: `weight` times that of `model` and `guide`, both called with the images alone."""

    weight: float
    model: Callable
    guide: Callable


class Objective(nn.Module):
    """L = L_orderless + L_LOM, each under its own GECO (Eq. 9); the one module whose `forward` a trainer calls.

    The orderless posterior is inferred once and handed to both guides; the LOM guide stops its gradient, so neither
    ELBO disturbs the other and a pair may as well be trained alone.

    A guide that infers in steps may offer `training_steps(orderless) -> list[Step]`, whose losses are added in the
    place of the pair's own. What is reported of a site is of the last step that has it, and so is the error that moves
    the multiplier.

    Args:
        pairs: `ELBOModule`s by name, "orderless" and, for a LOM, "ordered".
    """

    def __init__(self, pairs: dict[str, ELBOModule]):
        super().__init__()
        self.pairs = nn.ModuleDict(pairs)

    def forward(
        self,
        images: Float[Tensor, "B C H W"],
        *,
        orderless: OrderlessPosterior | None = None,
        only: Iterable[str] | None = None,
    ) -> Evaluation:
        """The loss on `images`, of all pairs or of those named in `only`."""
        if orderless is None:
            orderless = self.pairs["orderless"].guide.infer(images)
        loss, errors, site_terms = 0.0, {}, {}
        for name in self.pairs if only is None else only:
            pair = self.pairs[name]
            for weight, model, guide in _steps(pair, orderless):
                terms = pair.elbo.terms(model, guide, images)
                loss = loss + weight * pair.elbo.combine(terms)
                errors[name] = pair.elbo.error(terms).detach()
                site_terms |= {f"{name}/{site}": -value.detach().mean() for site, value in terms.log_likelihood.items()}
                site_terms |= {f"{name}/{site}": value.detach().mean() for site, value in terms.kl.items()}
        return Evaluation(loss, errors, site_terms)

    def update(self, errors: dict[str, Float[Tensor, ""]]) -> None:
        """Move each pair's multiplier by its error, nats per scene, averaged over processes."""
        for name, error in errors.items():
            self.pairs[name].elbo.update(error)


def _steps(pair: ELBOModule, orderless: OrderlessPosterior) -> list[Step]:
    if hasattr(pair.guide, "training_steps"):
        return pair.guide.training_steps(orderless)
    return [Step(1.0, pair.model, partial(pair.guide, orderless=orderless))]
