"""Sampling of scenes from a system, and inference of scenes from images.

The image of a scene is the mean of the site `x`. A `Rendering` has masks and components if the model has them.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pyro.poutine as poutine
import torch
from jaxtyping import Float
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from experiments.cli import progress
from pyro_lom.elbo import Terms, TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.metrics.binding import Binding, binding
from pyro_lom.modes import modes
from pyro_lom.program import Model
from pyro_lom.system import Pair, System, infer, result
from pyro_lom.tempering import temperature
from pyro_lom.types import Rendering

TEMPERATURE = 0.8  # of all samples in the paper (Sec. 4.1)
BATCH = 128
_READJUSTED = 16  # scenes of a batch in the re-adjustment

_ELBO = TraceScene_ELBO()


@torch.no_grad()
def sample_scenes(pair: Pair, num_scenes: int, tau: float, *, by_modes: bool = True) -> Rendering:
    """Sample unconditional scenes from a pair's model at temperature `tau`.

    The sites that the model names in `mode_sites` take their modes; they are sampled as well if not `by_modes`.
    """
    return join(sample_batches(pair, num_scenes, tau, by_modes=by_modes))


def sample_batches(
    pair: Pair,
    num_scenes: int,
    tau: float,
    *,
    by_modes: bool = True,
    size: int = BATCH,
    masks: bool = True,
    what: str = "sampling",
) -> Iterator[Rendering]:
    """Sample unconditional scenes in batches of at most `size`; without `masks`, images alone in half the time."""
    sites = pair.model.mode_sites if by_modes else ()
    for first in progress(range(0, num_scenes, size), what):
        with torch.no_grad():
            with poutine.trace() as tracer, temperature(tau), modes(*sites):
                pair.model(num_scenes=min(size, num_scenes - first))
            rendering = render_trace(pair.model, tracer.trace, masks=masks)
        yield checked(rendering)


@torch.no_grad()
def readjusted(pair: Pair, tau: float, num_batches: int) -> Pair:
    """Return the pair with a copy of its model, whose running statistics are re-adjusted to samples at `tau`.

    The copy samples `num_batches` batches of 16 scenes in training mode, as published for NVAE, in which networks that
    normalise batches move their running statistics. At a temperature of 1 or more, the pair itself is returned.

    Raises:
        UserError: no network of the model normalises batches.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in pair.model.modules()):
        raise UserError(f"--readjust has no effect on {type(pair.model).__name__}, which normalises no batches")
    if tau >= 1 or num_batches == 0:
        return pair
    model = deepcopy(pair.model).train()
    for _ in progress(range(num_batches), "re-adjusting batch statistics"):
        with temperature(tau):
            model(num_scenes=_READJUSTED)
    return pair._replace(model=model.eval())


@torch.no_grad()
def prior_scenes(pair: Pair, num_scenes: int) -> Float[Tensor, "B Ds"]:
    """Sample the scene latent from its prior."""
    with poutine.trace() as tracer:
        pair.model(num_scenes=num_scenes)
    return scene_latents(pair.model, tracer.trace)


@torch.no_grad()
def posterior_scenes(pair: Pair, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B Ds"]:
    """Sample the scene latent from its posterior.

    Samples of the posterior and of the prior have about the same norm, which is the norm of `slerp`'s ends. Means of
    the posterior have smaller norms, because unused dimensions of s have mean zero.
    """
    return scene_latents(pair.model, poutine.trace(pair.guide).get_trace(images))


@torch.no_grad()
def render_scenes(pair: Pair, scenes: Float[Tensor, "B Ds"]) -> Rendering:
    """Render given scene latents, with all other latents at the means of their priors, or at their published modes."""
    model, parts = pair.model, []
    for batch in scenes.split(BATCH):
        with poutine.trace() as tracer, _Means(), modes(*model.mode_sites), _Scenes(model.scene_sites, batch):
            model(num_scenes=len(batch))
        parts.append(checked(render_trace(model, tracer.trace)))
    return join(parts)


def source_pair(system: System) -> tuple[str, Pair]:
    """Return the name and the pair whose guide infers slots from images: the pair that the result reads, or itself."""
    name = result(system).reads or list(system)[-1]
    return name, system[name]


def shuffled_batches(pair: Pair, slots: dict[str, Tensor]) -> Iterator[Rendering]:
    """Shuffle slots, given by site, over all scenes and places, and render them in batches."""
    joined = pair.model.join(slots)
    flat = joined.flatten(0, 1)
    shuffled = flat[torch.randperm(len(flat), device=flat.device)].view_as(joined)
    for batch in shuffled.split(BATCH):
        with torch.no_grad():
            rendering = pair.model.render(pair.model.split(batch))
        yield checked(rendering)


def infer_batches(
    system: System, images: Float[Tensor, "N C H W"], what: str = "inferring"
) -> Iterator[tuple[Float[Tensor, "B C H W"], dict[str, Any]]]:
    """Yield batches of images on the system's device, each with the posteriors of `pyro_lom/system.py: infer`."""
    device = next(result(system).model.parameters()).device
    for first in progress(range(0, len(images), BATCH), what):
        batch = images[first : first + BATCH].to(device)
        yield batch, infer(system, batch)


@torch.no_grad()
def guide_trace(pair: Pair, images: Float[Tensor, "B C H W"], inferred: Any) -> Trace:
    """Return a trace of the guide, without gradients."""
    return poutine.trace(pair.guide).get_trace(images, inferred=inferred)


@torch.no_grad()
def reconstruct(pair: Pair, images: Float[Tensor, "B C H W"], inferred: Any) -> Rendering:
    """Render a sample of the pair's posterior."""
    guided = guide_trace(pair, images, inferred)
    if pair.model.slot_sites:
        return checked(pair.model.render(latents(pair.model, guided)))
    with poutine.replay(trace=guided), poutine.trace() as tracer:
        pair.model(num_scenes=len(images))
    return checked(render_trace(pair.model, tracer.trace))


@torch.no_grad()
def elbo_terms(pair: Pair, images: Float[Tensor, "B C H W"], inferred: Any) -> Terms:
    """Return the terms of the pair's ELBO, in nats per scene."""
    return _ELBO.terms(pair.model, partial(pair.guide, inferred=inferred), images)


@torch.no_grad()
def terms_under_other_scenes(pair: Pair, images: Float[Tensor, "B C H W"], inferred: Any) -> Terms:
    """Return the ELBO's terms if each scene has the scene latents of the scene before; slots are matched again."""
    nodes = guide_trace(pair, images, inferred).nodes
    others = {site: nodes[site]["value"].roll(1, dims=0) for site in pair.model.scene_sites}
    guide = partial(pair.guide, inferred=inferred)
    programs = [poutine.block(poutine.condition(program, others), hide=[*others]) for program in (pair.model, guide)]
    return _ELBO.terms(*programs, images)


@torch.no_grad()
def signs_of_binding(system: System, images: Float[Tensor, "B C H W"]) -> Binding | None:
    """Compute whether slots bind from the guide's masks; return None without masks or with less than two scenes."""
    name, pair = source_pair(system)
    if len(images) < 2:
        return None
    masks = []
    for _ in range(2):
        parts = [pair.guide.log_masks(received[name]) for _, received in infer_batches(system, images)]
        if parts[0] is None:
            return None
        masks.append(torch.cat(parts))
    return binding(*masks, images.to(masks[0].device))


def latents(model: Model, trace: Trace, *, mean: bool = False) -> dict[str, Tensor]:
    """Return the slots in a trace, by site, for `model.render`: their values, or their distributions' means."""
    return {site: trace.nodes[site]["fn"].mean if mean else trace.nodes[site]["value"] for site in model.slot_sites}


def render_trace(model: Model, trace: Trace, *, masks: bool = True) -> Rendering:
    """Render the scenes of a model's trace; without `masks`, return the images alone."""
    if model.slot_sites and masks:
        return model.render(latents(model, trace))
    return Rendering(trace.nodes["x"]["fn"].mean.squeeze(-4))


def checked(rendering: Rendering) -> Rendering:
    """Return a rendering; raises UserError if its images are NaN or infinite."""
    if not rendering.image.isfinite().all():
        raise UserError(
            "the images of the model are NaN or infinite, since its weights are too large: name another run"
        )
    return rendering


def join(parts: Iterable[Rendering]) -> Rendering:
    """Concatenate batches of renderings."""
    return Rendering(*(None if part[0] is None else torch.cat(part) for part in zip(*parts, strict=True)))


def scene_latents(model: Model, trace: Trace, *, mean: bool = False) -> Float[Tensor, "B Ds"]:
    """Return the scene latents in a trace, side by side: their values, or their distributions' means."""
    nodes = [trace.nodes[site] for site in model.scene_sites]
    return torch.cat([(node["fn"].mean if mean else node["value"]).squeeze(-2) for node in nodes], dim=-1)


class _Scenes(Messenger):
    """Effect handler that sets scene latents to the values of `scene_latents`."""

    def __init__(self, sites: tuple[str, ...], scenes: Float[Tensor, "B Ds"]):
        super().__init__()
        self.sites, self.rest = sites, scenes.unsqueeze(-2)

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.sites:
            msg["value"], self.rest = self.rest.tensor_split([msg["fn"].event_shape[0]], dim=-1)


class _Means(Messenger):
    """Effect handler that sets latents to the means of their distributions, given the means of earlier latents."""

    def _pyro_sample(self, msg) -> None:
        is_latent = not site_is_subsample(msg) and not msg["infer"].get("_deterministic")
        if msg["value"] is None and is_latent:
            msg["value"] = msg["fn"].mean
