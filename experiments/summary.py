"""The numbers that a run ends with, from its held-out scenes."""

import math
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.reading import TEMPERATURE, Reader, sample_batches, shuffled_batches
from experiments.systems import System
from pyro_lom.data.hdf5 import Scenes
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError
from pyro_lom.metrics.ari import mean_ari
from pyro_lom.metrics.binding import Binding
from pyro_lom.metrics.features import PixelPCA
from pyro_lom.metrics.frechet import frechet_distance, moments
from pyro_lom.metrics.kmeans import kmeans_rgb
from pyro_lom.metrics.structure import cut_and_paste, structure_accuracy
from pyro_lom.types import Rendering


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
    by_orderless = _kept(reader.reconstruction_batches(system.orderless, images, orderless))
    by_ordered = ordered and _kept(reader.reconstruction_batches(ordered, images, orderless))
    summary: dict[str, float | None] = {}

    labels = None if scenes.labels is None else torch.as_tensor(np.array(scenes.labels)).long()

    def ari(segmentation: Tensor | None, num_background: int) -> float | None:
        if labels is None or segmentation is None:
            return None
        return mean_ari(segmentation.cpu(), labels, num_background)

    encoder = _segments(orderless.log_masks)
    num_background = scenes.num_background
    summary["ari_fg_encoder"] = ari(encoder, num_background)
    summary["ari_fg_orderless"] = ari(by_orderless.segments, num_background)
    summary["ari_fg_ordered"] = ari(by_ordered and by_ordered.segments, num_background)
    summary["ari_all_encoder"] = ari(encoder, 0)
    num_slots = system.orderless.model.num_slots
    few = min(len(images), 500)  # enough for what is slow, and steady
    summary["ari_fg_kmeans_rgb"] = None
    if labels is not None:
        summary["ari_fg_kmeans_rgb"] = mean_ari(kmeans_rgb(images[:few], num_slots, seed), labels[:few], num_background)
    untrained_masks = Reader(untrained, device).infer(images).log_masks
    summary["ari_fg_untrained"] = ari(_segments(untrained_masks), num_background)

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
    summary["kl_slots_other_scene"] = None
    if system.lom and len(images) > 1:
        elsewhere = reader.terms_under_other_scene(images, orderless)
        summary["kl_slots_other_scene"] = elsewhere["kl_slots"].mean().item()

    generated = {
        "samples": ordered and _kept(sample_batches(ordered, len(images), TEMPERATURE)).image,
        "samples_tau1": ordered and _kept(sample_batches(ordered, len(images), 1.0)).image,
        "orderless_prior": _kept(sample_batches(system.orderless, len(images), TEMPERATURE)).image,
        "shuffled_posterior": _kept(shuffled_batches(system, orderless)).image,
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
