"""The numbers and pictures that a run ends with, from its held-out scenes."""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro.poutine as poutine
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.cli import progress
from experiments.systems import Pair, System
from pyro_lom import figures
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.minibatches import float_images
from pyro_lom.elbo import Terms, TraceScene_ELBO
from pyro_lom.errors import UserError
from pyro_lom.interpolation import slerp
from pyro_lom.metrics.ari import mean_ari
from pyro_lom.metrics.binding import Binding, binding
from pyro_lom.metrics.features import PixelPCA
from pyro_lom.metrics.frechet import frechet_distance, moments
from pyro_lom.metrics.kmeans import kmeans_rgb
from pyro_lom.metrics.structure import cut_and_paste, structure_accuracy
from pyro_lom.runs import Run
from pyro_lom.temperature import temperature
from pyro_lom.types import OrderlessPosterior, Rendering

TEMPERATURE = 0.8  # of all samples in the paper (Sec. 4.1)
INTERPOLATION = "From one scene to another along a great circle of s, slots at their prior means"
_BATCH = 128


@torch.no_grad()
def sample_scenes(pair: Pair, num_scenes: int, tau: float) -> Rendering:
    """Unconditional scenes from a pair's model at temperature `tau`: the image is the likelihood's mean."""
    return _join(_samples(pair, num_scenes, tau))


def _samples(pair: Pair, num_scenes: int, tau: float) -> Iterator[Rendering]:
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
        """Signs of whether slots bind to things, from the encoder's masks; None where a system has none."""
        first, second = (self.infer(images).log_masks for _ in range(2))
        return None if first is None else binding(first, second)

    @torch.no_grad()
    def reconstruct(self, pair: Pair, images: Float[Tensor, "B C H W"], orderless: OrderlessPosterior) -> Rendering:
        """A sample of the pair's posterior, rendered."""
        return _join(self._reconstructions(pair, images, orderless))

    def _reconstructions(
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
        """The same for the LOM when each scene gets the s inferred for its neighbour, and is matched again under it."""
        pair, terms = self.system.ordered, []
        for batch, posterior in self._batches(images, orderless):
            guide = partial(pair.guide, orderless=posterior)
            other = {"s": guide(batch).scene.roll(1, dims=0)}
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


def summarise(
    system: System, untrained: System, scenes: Scenes, device: torch.device, *, seed: int
) -> dict[str, float | None]:
    """Numbers on held-out scenes; None where the data have no labels or too few scenes, or the system no such part.

    ARI-FG is averaged over scenes of two or more objects; KLs are in nats per scene; RMSE is per pixel and channel, of
    one posterior sample, for images in [0, 1]; structure is the share of scenes whose tower stands
    (`pyro_lom/metrics/structure.py`), at temperature 0.8 unless `_tau1`; fd_pca64 is in squared pixel intensities.
    """
    torch.manual_seed(seed)
    images = float_images(scenes.images)
    reader, ordered = Reader(system, device), system.ordered
    orderless = reader.infer(images)
    by_orderless = _kept(reader._reconstructions(system.orderless, images, orderless))
    by_ordered = ordered and _kept(reader._reconstructions(ordered, images, orderless))
    summary: dict[str, float | None] = {}

    labels = None if scenes.labels is None else torch.as_tensor(np.array(scenes.labels)).long()

    def ari(segmentation: Tensor | None, num_background: int) -> float | None:
        if labels is None or segmentation is None:
            return None
        return mean_ari(segmentation.cpu(), labels, num_background)

    encoder = _segments(orderless.log_masks)
    foreground = scenes.num_background
    summary["ari_fg_encoder"] = ari(encoder, foreground)
    summary["ari_fg_orderless"] = ari(by_orderless.segments, foreground)
    summary["ari_fg_ordered"] = ari(by_ordered and by_ordered.segments, foreground)
    summary["ari_all_encoder"] = ari(encoder, 0)
    num_slots = system.orderless.model.num_slots
    few = min(len(images), 500)  # enough for what is slow, and steady
    summary["ari_fg_kmeans_rgb"] = None
    if labels is not None:
        summary["ari_fg_kmeans_rgb"] = mean_ari(kmeans_rgb(images[:few], num_slots, seed), labels[:few], foreground)
    untrained_masks = Reader(untrained, device).infer(images).log_masks
    summary["ari_fg_untrained"] = ari(_segments(untrained_masks), foreground)

    signs = reader.binding(images[:few])
    summary |= {f"binding_{name}": signs and getattr(signs, name) for name in Binding._fields}

    summary["rmse_orderless"] = _rmse(by_orderless.image, images)
    summary["rmse_ordered"] = by_ordered and _rmse(by_ordered.image, images)
    summary["explained_variance_orderless"] = _explained(by_orderless.image, images)
    summary["explained_variance_ordered"] = by_ordered and _explained(by_ordered.image, images)
    summary["kl_orderless"] = reader.terms(system.orderless, images, orderless)["kl_slots"].mean().item()
    terms = ordered and reader.terms(ordered, images, orderless)
    summary["kl_scene"] = ordered and terms["kl_scene"].mean().item()
    summary["kl_slots"] = ordered and terms["kl_slots"].mean().item()
    elsewhere = system.lom and reader.terms_under_other_scene(images, orderless)
    summary["kl_slots_other_scene"] = elsewhere and elsewhere["kl_slots"].mean().item()

    generated = {
        "samples": ordered and _kept(_samples(ordered, len(images), TEMPERATURE)).image,
        "samples_tau1": ordered and _kept(_samples(ordered, len(images), 1.0)).image,
        "orderless_prior": _kept(_samples(system.orderless, len(images), TEMPERATURE)).image,
        "shuffled_posterior": _kept(_shuffled(system, orderless)).image,
    }
    if scenes.name == "towers":
        max_blocks = scenes.factors["present"].shape[1]
        stands = partial(structure_accuracy, max_blocks=max_blocks)
        real = images.numpy()
        summary["structure_real"] = stands(real)
        summary["structure_cut_and_paste"] = stands(cut_and_paste(real))
        for name, scene_images in generated.items():
            summary[f"structure_{name}"] = None if scene_images is None else stands(scene_images.numpy())
    try:
        pca = PixelPCA(images)
    except UserError:  # too few, or all alike
        pca = None
    real = pca and moments([images], pca)
    for name in ("samples", "orderless_prior", "shuffled_posterior"):
        known = pca and generated[name] is not None
        summary[f"fd_pca64_{name}"] = frechet_distance(real, moments([generated[name]], pca)) if known else None
    return {name: value if value is not None and math.isfinite(value) else None for name, value in summary.items()}


@torch.no_grad()
def shuffled_posterior(system: System, orderless: OrderlessPosterior) -> Rendering:
    """Scenes of slots drawn one by one from the aggregate orderless posterior: right objects in the wrong company."""
    return _join(_shuffled(system, orderless))


def _shuffled(system: System, orderless: OrderlessPosterior) -> Iterator[Rendering]:
    slots = torch.normal(orderless.loc, orderless.scale).flatten(0, 1)
    shuffled = slots[torch.randperm(len(slots), device=slots.device)].view_as(orderless.loc)
    for first in progress(range(0, len(shuffled), _BATCH), "shuffling"):
        yield system.orderless.model.render(shuffled[first : first + _BATCH])


def interpolation_rows(
    pair: Pair, start: Float[Tensor, "P Ds"], end: Float[Tensor, "P Ds"], num: int
) -> list[tuple[str, Float[Tensor, "num _ H W"]]]:
    """Images and masks along each of P great circles, in `num` steps."""
    rows = []
    for path in slerp(start, end, num).unbind(1):
        rendering = render_scenes(pair, path)
        rows += [("SLERP", rendering.image), ("masks", figures.colour_masks(rendering.log_masks))]
    return rows


@torch.no_grad()
def draw(system: System, scenes: Scenes, device: torch.device, run: Run, *, seed: int, step: int | None = None) -> list:
    """Write the pictures of a run, and return their paths; `step` goes into the titles."""
    torch.manual_seed(seed)
    num = 12
    images = float_images(scenes.images[:num])
    reader = Reader(system, device)
    orderless = reader.infer(images)
    when = "" if step is None else f", after step {step}"
    paths = []

    def save(name: str, rows: list, title: str) -> None:
        paths.append(run.figures / f"{name}.png")
        figures.save_grid(paths[-1], rows, title + when)

    rows = [("input", images)]
    if orderless.log_masks is not None:
        rows.append(("encoder's masks", figures.colour_masks(orderless.log_masks)))
    by_orderless = reader.reconstruct(system.orderless, images, orderless)
    rows += [("orderless VAE", by_orderless.image), ("its masks", figures.colour_masks(by_orderless.log_masks))]
    if system.ordered:
        by_ordered = reader.reconstruct(system.ordered, images, orderless)
        rows += [("ordered VAE", by_ordered.image), ("its masks", figures.colour_masks(by_ordered.log_masks))]
    save("reconstructions", rows, "Held-out scenes: reconstructions and masks, a colour for each slot")

    rows = []
    if system.ordered:
        for tau in (TEMPERATURE, 1.0):
            for _ in range(2):
                sample = sample_scenes(system.ordered, num, tau)
                rows += [
                    (f"sample, tau = {tau:g}", sample.image),
                    ("its masks", figures.colour_masks(sample.log_masks)),
                ]
    baseline = sample_scenes(system.orderless, num, TEMPERATURE)
    rows += [
        (f"independent slots, tau = {TEMPERATURE:g}", baseline.image),
        ("its masks", figures.colour_masks(baseline.log_masks)),
        ("shuffled posterior", shuffled_posterior(system, orderless).image),
    ]
    save("samples", rows, "Unconditional samples, and those of the orderless model")

    if system.lom:
        start, end = prior_scenes(system.lom, 8).chunk(2)
        save("interpolation", interpolation_rows(system.lom, start, end, num), INTERPOLATION)

    paths.append(run.figures / "curves.png")
    figures.save_curves(paths[-1], run.metrics())
    return paths


def drawn_slots(pair: Pair, trace, *, mean: bool = False) -> Float[Tensor, "*batch K Dz"]:
    """The slots that the image shows: their values, or the means that they were drawn about."""
    sites = [trace.nodes[name] for name in pair.model.slot_sites]
    return torch.cat([site["fn"].mean if mean else site["value"] for site in sites], dim=-2)


def _join(parts: Iterable[Rendering]) -> Rendering:
    return Rendering(*(torch.cat(part) for part in zip(*parts, strict=True)))


class _Kept(NamedTuple):
    """What numbers need of renderings, on the CPU: components of 2,048 large scenes are gigabytes."""

    image: Float[Tensor, "B C H W"]
    segments: Int[Tensor, "B H W"]  # the slot with the largest mask


@torch.no_grad()
def _kept(parts: Iterable[Rendering]) -> _Kept:
    kept = [(rendering.image.cpu(), _segments(rendering.log_masks).cpu()) for rendering in parts]
    return _Kept(*(torch.cat(part) for part in zip(*kept, strict=True)))


def _segments(log_masks: Tensor | None) -> Tensor | None:
    return None if log_masks is None else log_masks.argmax(-4).squeeze(-3)


def _rmse(reconstructed: Tensor, images: Tensor) -> float:
    return (reconstructed - images).square().mean().sqrt().item()


def _explained(reconstructed: Tensor, images: Tensor) -> float:
    """Share of the variance of pixels, about the mean image, that the reconstruction explains."""
    variance = (images - images.mean(0)).square().mean()
    return (1 - (reconstructed - images).square().mean() / variance).item()
