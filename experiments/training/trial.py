"""A trial before training: one ELBO with gradients on two scenes. It finds parts that cannot train."""

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from experiments.evaluation.reading import TEMPERATURE, sample_scenes
from pyro_lom.errors import UserError
from pyro_lom.objective import Objective
from pyro_lom.system import Pair, System, result
from pyro_lom.tempering import temper

_WIDER = 100.0  # the temperature at which samples of a posterior are compared with the support of its prior


@pyro.validation_enabled(True)
def try_once(system: System, objective: Objective, images: Float[Tensor, "B C H W"], parts: dict[str, Any]) -> None:
    """Evaluate the losses of a system and their gradients, and sample a scene. Random states and weights do not change.

    Raises:
        UserError: a loss or gradient is not finite, a part does not register what it trains, a prior is zero at values
            of its posterior, a matching is no permutation, or, if there are exchanged `parts`, any error.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            objective.eval()
            for name, pair in system.items():
                _check_sites(name, pair, images)
            kept = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
            _evaluate(objective.train(), images)  # as in a training step: a batch norm then has other formulas
            objective.load_state_dict(kept)
            objective.eval()
            sample_scenes(result(system), 1, TEMPERATURE)
    except UserError:
        raise
    except Exception as error:  # of a user's part
        if not parts:
            raise
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise UserError(f"the system cannot train with {', '.join(parts)}: {type(error).__name__}: {reason}") from error
    finally:
        objective.train()


def _evaluate(objective: Objective, images: Tensor) -> None:
    evaluation = objective(images)
    if bad := [site for site, value in evaluation.terms.items() if not torch.isfinite(value)]:
        raise UserError(
            f"before training, the ELBO is NaN or infinite at {', '.join(bad)}: check the prior and q there"
        )
    parameters = {name: tensor for name, tensor in objective.named_parameters() if tensor.requires_grad}
    registered = {id(tensor) for tensor in parameters.values()}
    if strays := [tuple(leaf.shape) for leaf in _leaves(evaluation.loss) if id(leaf) not in registered]:
        raise UserError(
            f"the loss has gradients to a tensor of shape {strays[0]} that no part registers, so it would neither be "
            "trained nor saved: keep it as an nn.Parameter, and modules as attributes or in an nn.ModuleList"
        )
    gradients = torch.autograd.grad(evaluation.loss, list(parameters.values()), allow_unused=True)
    finite = [gradient is None or bool(torch.isfinite(gradient).all()) for gradient in gradients]
    if bad := [name for name, is_finite in zip(parameters, finite, strict=True) if not is_finite]:
        raise UserError(f"before training, gradients are NaN or infinite: {', '.join(bad[:3])} ({len(bad)} in all)")


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that require gradients and from which `loss` was computed."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [parent for parent, _ in node.next_functions]
            if hasattr(node, "variable"):
                yield node.variable


@torch.no_grad()
def _check_sites(name: str, pair: Pair, images: Tensor) -> None:
    """Refuse a matching that is no permutation, and a site at which p is zero at values of q: its KL is infinite."""
    guide = poutine.trace(pair.guide).get_trace(images)
    found = guide.nodes["_RETURN"]["value"]
    if (permutation := getattr(found, "permutation", None)) is not None:
        shape = found.slots.shape[:-1]
        if permutation.shape != shape:
            raise UserError(f"matching returns the shape {tuple(permutation.shape)} instead of (B, K) = {tuple(shape)}")
        if not (permutation.sort(-1).values == torch.arange(shape[-1])).all():
            raise UserError(
                f"matching returns {permutation[0].tolist()} for the first scene: each row must contain each of 0 to "
                f"{shape[-1] - 1} once"
            )
    model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(images)
    for site in model.stochastic_nodes:
        if site_is_subsample(model.nodes[site]) or site not in guide.nodes:  # the ELBO refuses the latter
            continue
        q, p = guide.nodes[site]["fn"], model.nodes[site]["fn"]
        try:
            values = _wider(q).sample((64,))
            contains = (p.support.check(values) | ~q.support.check(values)).all()  # rounded, exp(-1000) is not positive
        except (NotImplementedError, ValueError):  # the support is not known
            continue
        if not contains:
            raise UserError(
                f"site '{name}/{site}': the prior is zero at values of the posterior, so the KL is infinite; take a "
                "prior that is positive wherever the posterior is"
            )


def _wider(q: Any) -> Any:
    try:
        return temper(q, _WIDER)
    except NotImplementedError:
        return q
