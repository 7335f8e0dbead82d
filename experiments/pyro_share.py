"""What Pyro itself costs: the same programs, with their networks' outputs cached, run with Pyro and without."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import pyro
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_lom.elbo import Terms, TraceScene_ELBO
from pyro_lom.objective import Objective


def seconds_of_pyro(objective: Objective, images: Tensor, *, repeats: int = 15, **options: Any) -> float:
    """Seconds that messages, plates, traces and replay take in one evaluation of the objective, at least 0.

    Both ways draw the same samples of the same distributions and take the same densities and KLs of them.
    """
    with ExitStack() as stack:
        for network in _networks(objective):
            stack.enter_context(mock.patch.object(network, "forward", _cached(network)))
        timed: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for times, way in zip(timed, (nullcontext, partial(_without_pyro, objective)), strict=True):
                with way():
                    start = time.perf_counter()
                    objective(images, **options)
                    times.append(time.perf_counter() - start)
        with_pyro, without = map(statistics.median, timed)
    return max(0.0, with_pyro - without)


def _networks(objective: Objective) -> list[nn.Module]:
    programs = [program for pair in objective.pairs.values() for program in (pair.model, pair.guide)]
    children = [child for program in programs for child in program.children()]
    return [network for network in children if any(True for _ in network.parameters())]


def _cached(network: nn.Module):
    """The network's `forward`, computed once; later its output still depends on its inputs, with gradient zero."""
    forward, kept = network.forward, []

    def remembered(*inputs: Any) -> Any:
        if not kept:
            kept.append(forward(*inputs))
        leaves = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not leaves:
            return kept[0]
        nothing = sum(0 * leaf.sum() for leaf in leaves)
        return tree_map_only(Tensor, lambda tensor: tensor.detach() + nothing, kept[0])

    return remembered


class _Plain:
    """Stands for Pyro's primitives: keeps sites in a dictionary, and hands out the values of another run."""

    def __init__(self):
        self.sites: dict[str, dict] = {}
        self.values: dict[str, Tensor] = {}
        self._size: int | None = None

    def sample(self, name: str, fn: Any, obs: Tensor | None = None, infer: Any = None) -> Tensor:
        for handler in _PYRO_STACK:  # a step of training that conditions a site hides it as well (`guides/emorl.py`)
            if isinstance(handler, ConditionMessenger) and name in handler.data:
                return handler.data[name]
        value = self.values.get(name) if obs is None else obs
        if value is None:
            value = fn.rsample() if fn.has_rsample else fn.sample()
        self.sites[name] = {"fn": fn, "value": value, "is_observed": obs is not None}
        return value

    def plate(self, name: str, size: int, subsample_size: int | None = None, **_: Any) -> Any:
        self._size = subsample_size
        return nullcontext()

    def subsample(self, data: Tensor, event_dim: int) -> Tensor:
        return data[: self._size]

    def terms(self, elbo: TraceScene_ELBO, model: Callable, guide: Callable, *args: Any) -> Terms:
        """`TraceScene_ELBO.terms`, without its handlers."""
        self.sites, self.values = {}, {}
        guide(*args)
        guide_sites, self.sites = self.sites, {}
        self.values = {name: site["value"] for name, site in guide_sites.items()}
        model(*args)
        terms = Terms({}, {})
        for name, site in self.sites.items():
            observed = site["is_observed"]
            value = site["fn"].log_prob(site["value"]) if observed else elbo._kl(guide_sites[name], site)
            (terms.log_likelihood if observed else terms.kl)[name] = value.reshape(len(value), -1).sum(1)
        return terms


@contextmanager
def _without_pyro(objective: Objective) -> Iterator[None]:
    plain = _Plain()
    replaced = {
        "sample": plain.sample,
        "plate": plain.plate,
        "subsample": plain.subsample,
        "deterministic": lambda name, value, event_dim=None: value,
    }
    with ExitStack() as stack:
        for name, primitive in replaced.items():
            stack.enter_context(mock.patch.object(pyro, name, primitive))
        for pair in objective.pairs.values():
            stack.enter_context(mock.patch.object(pair.elbo, "terms", partial(plain.terms, pair.elbo)))
        yield
