"""Every metric that `experiments/evaluate.py` knows, by name: a function of a run beside its held-out scenes.

What else a number depends on, such as the temperature of samples, are the function's keyword arguments. Each returns
numbers by name, None where a thing cannot be known, or raises `UserError` where the metric makes no sense for the data.
"""

import math
import sys
from collections.abc import Callable, Sequence
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.cli import progress
from experiments.held_out import BATCH, SEED, HeldOut, Values, segment
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError
from pyro_lom.metrics.ari import mean_ari
from pyro_lom.metrics.dci import dci, match_objects
from pyro_lom.metrics.features import EfficientNetLite0, Inception, PixelPCA
from pyro_lom.metrics.frechet import Extractor, frechet_distance, moments
from pyro_lom.metrics.iou import mean_iou, segmentation_covering
from pyro_lom.metrics.log_likelihood import importance_weighted
from pyro_lom.metrics.slot_order import portraits, slot_order_stability
from pyro_lom.metrics.stacks import break_stacks, stacks_stand
from pyro_lom.metrics.structure import flood_fill, towers_stand

_SCENES_AT_ONCE = 512  # tables of pixel counts are in float64
_DCI_SCENES = 1000
_PCA_SCENES = 2048  # a bound on memory


def ari(held_out: HeldOut) -> Values:
    """Adjusted Rand index without and with the background, in [-1, 1], by source of the masks."""
    labels, values = _labels(held_out), {}
    for source, segments in held_out.reading.segments.items():
        for name, num_background in (("ari_fg", held_out.scenes.num_background), ("ari_all", 0)):
            values[f"{name}_{source}"] = mean_ari(torch.from_numpy(segments), labels, num_background)
    return values


def covering(held_out: HeldOut) -> Values:
    """Mean IoU over all entities, and segmentation covering of objects (SC, mSC), in [0, 1], by source of the masks."""
    labels, values = _labels(held_out), {}
    for source, segments in held_out.reading.segments.items():
        parts = zip(torch.from_numpy(segments).split(_SCENES_AT_ONCE), labels.split(_SCENES_AT_ONCE), strict=True)
        scores = []
        for predicted, target in parts:
            by_area, by_object = segmentation_covering(predicted, target, num_background=held_out.scenes.num_background)
            scores.append(torch.stack([mean_iou(predicted, target), by_area, by_object]))
        means = torch.cat(scores, dim=1).nanmean(1).tolist()
        values |= {f"{name}_{source}": mean for name, mean in zip(("mean_iou", "sc", "msc"), means, strict=True)}
    return values


def frechet_pca64(held_out: HeldOut, *, temperature: float) -> Values:
    """Frechet distance over 64 principal components of pixels, in squared intensities."""
    return {"fd_pca64": frechet_distances(held_out, pixel_pca(held_out), [temperature])[0]}


def frechet_efficientnet(held_out: HeldOut, *, temperature: float) -> Values:
    """Frechet distance over features of EfficientNet-lite0: no FID."""
    return {"fd_efficientnet": frechet_distances(held_out, EfficientNetLite0(held_out.device), [temperature])[0]}


def frechet_inception(held_out: HeldOut, *, temperature: float, inception_weights: Path | None) -> Values:
    """FID; the paper's protocol has 10,000 real and 10,000 generated images."""
    extractor = Inception(held_out.device, inception_weights)
    print(f"FID: weights {inception_weights}, SHA-256 {extractor.sha256}", file=sys.stderr)
    return {"fid": frechet_distances(held_out, extractor, [temperature])[0]}


def structure(held_out: HeldOut, *, temperature: float) -> Values:
    """Structure accuracy of samples, and of scenes whose answer is known, all in [0, 1].

    Four more numbers say how far to trust it: the share of held-out scenes that the rule accepts, intact and broken by
    code, on their labels and on the final model's own masks of their reconstructions. Of a perfect rule and model,
    intact ones are 1 and broken ones 0. On towers a stricter rule on flood-filled pixels stands beside it.
    """
    scenes, labels, final = held_out.scenes, _labels(held_out).numpy(), list(held_out.pairs)[-1]
    labels_intact = stacks_stand(labels).mean().item()
    if labels_intact < 0.5:
        raise UserError(f"structure accuracy is for scenes of one stack: {labels_intact:.0%} of the real ones show one")
    images, broken_labels = break_stacks(
        np.asarray(scenes.images), labels, num_background=scenes.num_background, seed=SEED
    )
    if not len(images):
        raise UserError("structure accuracy needs scenes of two objects or more to be tested on: the data have none")
    broken = held_out.read(images, "segmenting broken scenes").segments[final]
    stand, stand_in_pixels = [], []
    samples = held_out.samples(held_out.pairs[final], len(held_out), temperature, "sampling for structure")
    for sample in samples:
        stand.append(stacks_stand(segment(sample.log_masks)))
        if scenes.name == "towers":
            pixels, max_blocks = sample.image.cpu().numpy(), scenes.factors["present"].shape[1]
            stand_in_pixels.append(towers_stand(pixels, flood_fill(pixels), max_blocks))
    return {
        "structure": np.concatenate(stand).mean().item(),
        "structure_pixels": np.concatenate(stand_in_pixels).mean().item() if stand_in_pixels else None,
        "structure_labels_intact": labels_intact,
        "structure_labels_broken": stacks_stand(broken_labels).mean().item(),
        "structure_masks_intact": stacks_stand(held_out.reading.segments[final]).mean().item(),
        "structure_masks_broken": stacks_stand(broken).mean().item(),
    }


def disentanglement(held_out: HeldOut) -> Values:
    """DCI of the orderless posterior's means, slots matched to objects by the orderless decoder's masks.

    Of the first 1000 scenes at most, as boosted trees are slow; the published script takes 320.
    """
    scenes, few = held_out.scenes, slice(_DCI_SCENES)
    labels = _labels(held_out)[few]
    num_objects = int(labels.max()) + 1 - scenes.num_background
    # Fewer columns than objects hold what is said of a scene as a whole, such as whether a stack stands.
    of_objects = {
        name: np.asarray(values[few]) for name, values in scenes.factors.items() if values.shape[1] >= num_objects
    }
    if not of_objects:
        raise UserError("DCI needs factors/<name> of objects in the data set, and it has none")
    codes, factors = match_objects(
        held_out.reading.slots[few],
        torch.from_numpy(held_out.reading.segments["orderless"][few]),
        labels,
        of_objects,
        num_background=scenes.num_background,
    )
    return {f"dci_{name}": score for name, score in dci(codes, factors, seed=SEED)._asdict().items()}


def likelihood(held_out: HeldOut, *, likelihood_images: int, likelihood_samples: int) -> Values:
    """ELBO and KLs of all images, and the importance-weighted log p(x) of some, in nats per scene, pair by pair."""
    parts: dict[str, list[Tensor]] = {}
    for batch, orderless in held_out.inferred(held_out.scenes.images, "ELBO"):
        for name, pair in held_out.pairs.items():
            terms = held_out.reader.terms(pair, batch, orderless)
            terms["elbo"] = terms.pop("log_likelihood") - terms["kl_scene"] - terms["kl_slots"]
            for part, of_scenes in terms.items():
                parts.setdefault(f"{part}_{name}", []).append(of_scenes.double())
    values: Values = {name: torch.cat(of_scenes).mean().item() for name, of_scenes in parts.items()}

    few = float_images(held_out.scenes.images[:likelihood_images])
    torch.manual_seed(SEED)
    for name, pair in held_out.pairs.items():
        bounds = [
            importance_weighted(*pair, few[first : first + BATCH].to(held_out.device), likelihood_samples)
            for first in progress(range(0, len(few), BATCH), f"log p(x), {name}")
        ]
        values[f"log_likelihood_{name}"] = torch.cat(bounds).double().mean().item()
    return values


def slot_order(held_out: HeldOut, *, temperature: float) -> Values:
    """Slot-order stability of samples, in [0, 1], and what chance would give."""
    pair = held_out.system.final
    samples = held_out.samples(pair, len(held_out), temperature, "sampling for slot order")
    found = [portraits(sample) for sample in samples]
    value = slot_order_stability(*(torch.cat(part) for part in zip(*found, strict=True)))
    return {"slot_order": value, "slot_order_chance": 1 / pair.model.num_slots}


MEASURES: dict[str, Callable[..., Values]] = {
    "ari": ari,
    "covering": covering,
    "fd-pca64": frechet_pca64,
    "fd-efficientnet": frechet_efficientnet,
    "fid": frechet_inception,
    "structure": structure,
    "dci": disentanglement,
    "likelihood": likelihood,
    "slot-order": slot_order,
}


def measure(name: str, held_out: HeldOut, settings: dict) -> Values:
    """A metric's numbers, remembered or computed, with those of `settings` that it depends on; None where not finite.

    Raises:
        UserError: the metric makes no sense for these data.
    """
    function = MEASURES[name]
    used = {key: settings[key] for key in signature(function).parameters if key != "held_out"}
    protocol = {key: str(value) if isinstance(value, Path) else value for key, value in used.items()}
    return held_out.remember(name, protocol, lambda: _finite(function(held_out, **used)))


def frechet_distances(held_out: HeldOut, extractor: Extractor, taus: Sequence[float]) -> list[float]:
    """Frechet distance of as many samples as there are held-out scenes to these, at each temperature."""
    real = moments(held_out.batches(held_out.scenes.images, "features of real images"), extractor)
    distances = []
    for tau in taus:
        samples = held_out.samples(held_out.system.final, len(held_out), tau, f"features of samples, tau = {tau:g}")
        distances.append(frechet_distance(real, moments((sample.image for sample in samples), extractor)))
    return distances


def pixel_pca(held_out: HeldOut) -> PixelPCA:
    """The components of the first 2048 held-out images."""
    return PixelPCA(float_images(held_out.scenes.images[:_PCA_SCENES]))


def _finite(values: Values) -> Values:
    return {key: value if value is not None and math.isfinite(value) else None for key, value in values.items()}


def _labels(held_out: HeldOut) -> Tensor:
    if held_out.scenes.labels is None:
        raise UserError("the data set has no labels")
    return torch.from_numpy(np.array(held_out.scenes.labels))
