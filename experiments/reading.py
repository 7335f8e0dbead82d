"""What a system says of scenes: those it imagines, and those it is shown."""

from collections.abc import Iterable, Iterator
from functools import partial

import pyro.poutine as poutine
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.cli import progress
from experiments.systems import Pair, System
from pyro_lom.elbo import Terms, TraceScene_ELBO
from pyro_lom.metrics.binding import Binding, binding
from pyro_lom.temperature import temperature
from pyro_lom.types import OrderlessPosterior, Rendering

TEMPERATURE = 0.8  # of all samples in the paper (Sec. 4.1)
_BATCH = 128


@torch.no_grad()
def sample_scenes(pair: Pair, num_scenes: int, tau: float) -> Rendering:
    """Unconditional scenes from a pair's model at temperature `tau`: the image is the likelihood's mean."""
    return _join(sample_batches(pair, num_scenes, tau))


def sample_batches(pair: Pair, num_scenes: int, tau: float) -> Iterator[Rendering]:
    """The same in batches, of which one at a time needs memory for its components."""
    for first in progress(range(0, num_scenes, _BATCH), "sampling"):
        with poutine.trace() as tracer, temperature(tau):
            pair.model(num_scenes=min(_BATCH, num_scenes - first))
        yield pair.model.render(drawn_slots(pair, tracer.trace))


@torch.no_grad()
def prior_scenes(pair: Pair, num_scenes: int) -> Float[Tensor, "B Ds"]:
    """Samples of p(s)."""
    with poutine.trace() as tracer:
        pair.model(num_scenes=num_scenes)
    return tracer.trace.nodes["s"]["value"].squeeze(-2)


@torch.no_grad()
def render_scenes(pair: Pair, scenes: Float[Tensor, "B Ds"]) -> Rendering:
    """What the model draws for given s, its slots at the means of p(z | h)."""
    parts = []
    for batch in scenes.split(_BATCH):
        with poutine.trace() as tracer, poutine.condition(data={"s": batch.unsqueeze(-2)}):
            pair.model(num_scenes=len(batch))
        parts.append(pair.model.render(drawn_slots(pair, tracer.trace, mean=True)))
    return _join(parts)


@torch.no_grad()
def shuffled_posterior(system: System, orderless: OrderlessPosterior) -> Rendering:
    """Scenes of slots drawn one by one from the aggregate orderless posterior: right objects in the wrong company."""
    return _join(shuffled_batches(system, orderless))


def shuffled_batches(system: System, orderless: OrderlessPosterior) -> Iterator[Rendering]:
    """The same in batches, of which one at a time needs memory for its components."""
    slots = torch.normal(orderless.loc, orderless.scale).flatten(0, 1)
    shuffled = slots[torch.randperm(len(slots), device=slots.device)].view_as(orderless.loc)
    for first in progress(range(0, len(shuffled), _BATCH), "shuffling"):
        yield system.orderless.model.render(shuffled[first : first + _BATCH])


class Reader:
    """Runs a system over scenes, in batches, on its device; reads off what metrics and figures need."""

    def __init__(self, system: System, device: torch.device):
        self.system, self.device = system, device
        self.elbo = TraceScene_ELBO()

    @torch.no_grad()
    def infer(self, images: Float[Tensor, "B C H W"]) -> OrderlessPosterior:
        first, *rest = [
            self.system.orderless.guide.infer(images[start : start + _BATCH].to(self.device))
            for start in progress(range(0, len(images), _BATCH), "inferring")
        ]
        return first.map(lambda *parts: torch.cat(parts), *rest)

    def binding(self, images: Float[Tensor, "B C H W"]) -> Binding | None:
        """Signs of whether slots bind to things, from the encoder's masks; None without masks, or two scenes."""
        if len(images) < 2:
            return None
        first, second = (self.infer(images).log_masks for _ in range(2))
        return None if first is None else binding(first, second)

    @torch.no_grad()
    def reconstruct(self, pair: Pair, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior) -> Rendering:
        """A sample of the pair's posterior, rendered."""
        return _join(self.reconstruction_batches(pair, images, orderless))

    def reconstruction_batches(
        self, pair: Pair, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior
    ) -> Iterator[Rendering]:
        """The same in batches, of which one at a time needs memory for its components."""
        for batch, posterior in self._batches(images, orderless):
            with poutine.trace() as tracer:
                pair.guide(batch, orderless=posterior)
            yield pair.model.render(drawn_slots(pair, tracer.trace))

    @torch.no_grad()
    def latents(
        self, pair: Pair, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior
    ) -> tuple[Float[Tensor, "B Ds"], Float[Tensor, "B K Dz"]]:
        """Posterior means of a LOM's scenes and of their slots, in its order."""
        scenes, slots = [], []
        for batch, posterior in self._batches(images, orderless):
            with poutine.trace() as tracer:
                pair.guide(batch, orderless=posterior)
            scenes.append(tracer.trace.nodes["s"]["fn"].mean.squeeze(-2))
            slots.append(drawn_slots(pair, tracer.trace, mean=True))
        return torch.cat(scenes), torch.cat(slots)

    @torch.no_grad()
    def terms(
        self, pair: Pair, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior
    ) -> dict[str, Float[Tensor, "_"]]:
        """The ELBO's parts, nats per scene: `log_likelihood`, `kl_scene` and `kl_slots`, each summed over its sites."""
        return self._by_level(
            self.elbo.terms(pair.model, partial(pair.guide, orderless=posterior), batch)
            for batch, posterior in self._batches(images, orderless)
        )

    @torch.no_grad()
    def terms_under_other_scene(
        self, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior
    ) -> dict[str, Float[Tensor, "_"]]:
        """The same for the LOM when each scene gets the s of the one before, and is matched again under it."""
        pair, terms = self.system.ordered, []
        before = self._batches(images.roll(1, dims=0), orderless.map(lambda part: part.roll(1, dims=0)))
        for (batch, posterior), (others, their_posterior) in zip(self._batches(images, orderless), before, strict=True):
            guide = partial(pair.guide, orderless=posterior)
            other = {"s": pair.guide(others, orderless=their_posterior).scene}
            given = [poutine.block(poutine.condition(program, other), hide=["s"]) for program in (pair.model, guide)]
            terms.append(self.elbo.terms(*given, batch))
        return self._by_level(terms)

    def _batches(self, images, orderless):
        for first in progress(range(0, len(images), _BATCH), "evaluating"):
            rows = slice(first, first + _BATCH)
            yield images[rows].to(self.device), orderless.map(lambda part, rows=rows: part[rows])

    def _by_level(self, batches: Iterable[Terms]) -> dict[str, Float[Tensor, "_"]]:
        parts: dict[str, list] = {"log_likelihood": [], "kl_scene": [], "kl_slots": []}
        for terms in batches:
            zero = torch.zeros(len(next(iter(terms.kl.values()))), device=self.device)
            parts["log_likelihood"].append(sum(terms.log_likelihood.values()))  # of the rendered scenes, in training
            parts["kl_scene"].append(terms.kl.get("s", zero))
            parts["kl_slots"].append(sum((kl for site, kl in terms.kl.items() if site != "s"), zero))
        return {name: torch.cat(values) for name, values in parts.items()}


def drawn_slots(pair: Pair, trace, *, mean: bool = False) -> Float[Tensor, "*batch K Dz"]:
    """The slots that the image shows: their values, or the means that they were drawn about."""
    sites = [trace.nodes[name] for name in pair.model.slot_sites]
    return torch.cat([site["fn"].mean if mean else site["value"] for site in sites], dim=-2)


def _join(parts: Iterable[Rendering]) -> Rendering:
    return Rendering(*(torch.cat(part) for part in zip(*parts, strict=True)))
