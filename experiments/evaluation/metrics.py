"""The metrics of `evaluate.py` by name: functions of a system with its held-out scenes.

Options, such as the temperature of samples, are keyword arguments. A metric returns values by key: a number, or a
string such as "no masks" if the system does not support it. It raises `UserError` if the data do not support it.
"""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from inspect import signature
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.cli import progress
from experiments.evaluation.held_out import BATCH, SEED, HeldOut, Values, segment
from experiments.evaluation.reading import signs_of_binding, source_pair
from pyro_lom.data.minibatches import float_images
from pyro_lom.errors import UserError, printable
from pyro_lom.metrics.ari import mean_ari
from pyro_lom.metrics.dci import dci, in_order_of_attributes, match_objects
from pyro_lom.metrics.features import EfficientNetLite0, Inception, PixelPCA
from pyro_lom.metrics.frechet import Extractor, frechet_distance, moments
from pyro_lom.metrics.iou import mean_iou, segmentation_covering
from pyro_lom.metrics.kmeans import kmeans_rgb
from pyro_lom.metrics.log_likelihood import importance_weighted
from pyro_lom.metrics.slot_order import portraits, slot_order_stability
from pyro_lom.metrics.stacks import break_stacks, stacks_stand
from pyro_lom.metrics.structure import cut_and_paste, flood_fill, towers_stand
from pyro_lom.system import infer

_SCENES_AT_ONCE = 512  # tables of pixel counts are in float64
_DCI_SCENES = 1000
_PCA_SCENES = 2048  # limits memory
_FEW = 500  # scenes of slow metrics that vary little between scenes

NO_MASKS, NO_SLOTS, NO_OBJECTS = "no masks", "no slots", "no objects in the labels"


def ari(held_out: HeldOut) -> Values:
    """Compute the adjusted Rand index without and with the background, in [-1, 1], by source of the masks.

    ARI-FG is averaged over scenes of two objects or more.
    """
    labels, num_background = _labels(held_out), held_out.scenes.num_background
    values = _without_masks(held_out, ("ari_fg", "ari_all"))
    has_objects = bool((labels >= num_background).any())
    for source, segments in held_out.reading.segments.items():
        masks = torch.from_numpy(segments)
        values[f"ari_fg_{source}"] = mean_ari(masks, labels, num_background) if has_objects else NO_OBJECTS
        values[f"ari_all_{source}"] = mean_ari(masks, labels, 0)
    return values


@torch.no_grad()
def baselines(held_out: HeldOut) -> Values:
    """Compute ARI-FG of k-means on RGB, for the first 500 scenes, and of the untrained guide's masks."""
    labels, num_background = _labels(held_out), held_out.scenes.num_background
    model = held_out.source[1].model
    if not model.slot_sites:
        return {"ari_fg_kmeans_rgb": NO_SLOTS, "ari_fg_untrained": NO_SLOTS}
    clusters = kmeans_rgb(float_images(held_out.scenes.images[:_FEW]), model.num_slots, SEED)
    values: Values = {"ari_fg_kmeans_rgb": mean_ari(clusters, labels[:_FEW], num_background)}
    name, pair = source_pair(held_out.untrained)
    torch.manual_seed(SEED)
    batches = held_out.batches(held_out.scenes.images, "untrained masks")
    masks = [pair.guide.log_masks(infer(held_out.untrained, batch)[name]) for batch in batches]
    if masks[0] is None:
        return values | {"ari_fg_untrained": NO_MASKS}
    segments = torch.from_numpy(np.concatenate([segment(part) for part in masks]))
    return values | {"ari_fg_untrained": mean_ari(segments, labels, num_background)}


def covering(held_out: HeldOut) -> Values:
    """Compute mean IoU of all entities and segmentation covering of objects (SC, mSC), in [0, 1], by source."""
    labels, values = _labels(held_out), _without_masks(held_out, ("mean_iou", "sc", "msc"))
    for source, segments in held_out.reading.segments.items():
        parts = zip(torch.from_numpy(segments).split(_SCENES_AT_ONCE), labels.split(_SCENES_AT_ONCE), strict=True)
        scores = []
        for predicted, target in parts:
            by_area, by_object = segmentation_covering(predicted, target, num_background=held_out.scenes.num_background)
            scores.append(torch.stack([mean_iou(predicted, target), by_area, by_object]))
        means = torch.cat(scores, dim=1).nanmean(1).tolist()
        values |= {f"{name}_{source}": mean for name, mean in zip(("mean_iou", "sc", "msc"), means, strict=True)}
    return values


def binding(held_out: HeldOut) -> Values:
    """Compute whether slots bind, without labels, on the first 500 scenes (`pyro_lom/metrics/binding.py`)."""
    torch.manual_seed(SEED)
    signs = signs_of_binding(held_out.system, float_images(held_out.scenes.images[:_FEW]))
    if signs is None:
        return {"binding_largest": NO_MASKS}
    return {f"binding_{name}": value for name, value in signs._asdict().items()}


def reconstruction(held_out: HeldOut) -> Values:
    """Compute the RMSE per pixel and channel of a posterior sample, and its explained share of the pixels' variance."""
    mean_image, mean_square = 0.0, 0.0
    for batch in held_out.batches(held_out.scenes.images, "variance of pixels"):
        mean_image = mean_image + batch.double().sum(0) / len(held_out)
        mean_square += batch.double().square().sum(0).mean().item() / len(held_out)
    variance = mean_square - mean_image.square().mean().item()
    values: Values = {}
    for name, errors in held_out.reading.squared_errors.items():
        error = errors.double().mean().item() / math.prod(held_out.scenes.image_shape)
        explained = 1 - error / variance if variance > 1e-9 else math.nan  # all images are equal
        values |= {f"rmse_{name}": math.sqrt(error), f"explained_variance_{name}": explained}
    return values


def kl(held_out: HeldOut) -> Values:
    """Compute the KLs of the ELBOs, in nats per scene (`HeldOut.kls`)."""
    return {key: value.mean().item() for key, value in held_out.kls.items() if key.startswith("kl")}


def gap(held_out: HeldOut) -> Values:
    """Compute the ELBO of the first training scenes minus the held-out ELBO, in nats per scene, by pair.

    A gap that is large beside the KL shows that the model has learned its training scenes by heart.
    """
    if not all(held_out.all_scenes.splits.get(split) for split in ("train", "test")):
        raise UserError("the gap needs a training and a test split, and the data set lacks one")
    few = min(_FEW, len(held_out))
    elbos = held_out.kls_of(held_out.all_scenes.split("train", few).images, "KLs of training scenes")
    keys = [key for key in held_out.kls if key.startswith("elbo_")]
    return {
        f"elbo_gap_{key.removeprefix('elbo_')}": (elbos[key].mean() - held_out.kls[key].mean()).item() for key in keys
    }


def likelihood(held_out: HeldOut, *, likelihood_images: int, likelihood_samples: int) -> Values:
    """Compute the ELBO of all images and importance-weighted log p(x) of some, in nats per scene, by pair."""
    values: Values = {key: elbo.mean().item() for key, elbo in held_out.kls.items() if key.startswith("elbo")}
    few = float_images(held_out.scenes.images[:likelihood_images])
    torch.manual_seed(SEED)
    for name, pair in held_out.system.items():
        bounds = [
            importance_weighted(pair.model, pair.guide, part.to(held_out.device), likelihood_samples)
            for part in progress(few.split(BATCH), f"log p(x), {name}")
        ]
        values[f"log_likelihood_{name}"] = torch.cat(bounds).double().mean().item()
    return values


def structure(held_out: HeldOut, *, temperature: float) -> Values:
    """Compute the share of scenes whose tower stands, by a rule on pixels (`pyro_lom/metrics/structure.py`).

    The scenes are generated (`HeldOut.generated`), real, or composed of halves of real scenes.
    """
    scenes = held_out.scenes
    if scenes.name != "towers" or "present" not in scenes.factors:
        raise UserError(f"structure is a rule for towers, and the data are {scenes.name}")
    max_blocks, real = scenes.factors["present"].shape[1], float_images(scenes.images).numpy()
    sets = {"real": [real], "cut_and_paste": [cut_and_paste(real)]}
    for name, parts in held_out.generated(temperature).items():
        sets[name] = (part.image.cpu().numpy() for part in parts)
    return {
        f"structure_{name}": np.concatenate([towers_stand(i, flood_fill(i), max_blocks) for i in parts]).mean().item()
        for name, parts in sets.items()
    }


def stacks(held_out: HeldOut, *, temperature: float) -> Values:
    """Compute the paper's S-Acc: the share of scenes of one stack, by a rule on masks (`pyro_lom/metrics/stacks.py`).

    Four controls are the shares of held-out scenes that the rule accepts, intact and broken by code, on their labels
    and on the model's masks of their reconstructions. A perfect rule and model have 1 for intact scenes and 0 for
    broken scenes.
    """
    scenes, labels, final = held_out.scenes, _labels(held_out).numpy(), list(held_out.system)[-1]
    labels_intact = stacks_stand(labels).mean().item()
    if labels_intact < 0.5:
        raise UserError(f"stacks is for scenes of one stack: {labels_intact:.0%} of the real ones show one")
    if final not in held_out.reading.segments:
        return {"stacks_samples": NO_MASKS}
    images, broken_labels = break_stacks(
        np.asarray(scenes.images), labels, num_background=scenes.num_background, seed=SEED
    )
    if not len(images):
        raise UserError("stacks needs scenes of two objects or more to be tested on: the data have none")
    broken = held_out.read(images, "segmenting broken scenes").segments[final]
    samples = held_out.samples(held_out.final, temperature, "sampling for stacks")
    stand = np.concatenate([stacks_stand(segment(sample.log_masks)) for sample in samples])
    return {
        "stacks_samples": stand.mean().item(),
        "stacks_labels_intact": labels_intact,
        "stacks_labels_broken": stacks_stand(broken_labels).mean().item(),
        "stacks_masks_intact": stacks_stand(held_out.reading.segments[final]).mean().item(),
        "stacks_masks_broken": stacks_stand(broken).mean().item(),
    }


def frechet_pca64(held_out: HeldOut, *, temperature: float) -> Values:
    """Compute the Frechet distance of generated scenes over 64 principal components of pixels."""
    extractor = pixel_pca(held_out)
    real = _real_moments(held_out, extractor)
    sets = held_out.generated(temperature).items()
    return {f"fd_pca64_{name}": frechet_distance(real, _moments(parts, extractor)) for name, parts in sets}


def frechet_efficientnet(held_out: HeldOut, *, temperature: float) -> Values:
    """Compute the Frechet distance over features of EfficientNet-lite0, which is not an FID."""
    extractor = EfficientNetLite0(held_out.device)
    return {"fd_efficientnet_samples": frechet_distances(held_out, extractor, [temperature])[0]}


def frechet_inception(held_out: HeldOut, *, temperature: float, inception_weights: Path | None) -> Values:
    """Compute the FID. The paper's protocol has 10,000 real and 10,000 generated images."""
    extractor = Inception(held_out.device, inception_weights)
    print(printable(f"FID: weights {inception_weights}, SHA-256 {extractor.sha256}"), file=sys.stderr)
    return {"fid_samples": frechet_distances(held_out, extractor, [temperature])[0]}


def disentanglement(held_out: HeldOut) -> Values:
    """Compute DCI of slots, matched to objects by their decoder's masks, or without slots of `Guide.code`.

    Such a code predicts the attributes of objects, which are sorted by their attributes. Only the first 1000 scenes are
    used, because boosted trees are slow. The published script uses 320.
    """
    scenes, few, (name, pair) = held_out.scenes, slice(_DCI_SCENES), held_out.source
    labels = _labels(held_out)[few]
    num_objects = int(labels.max()) + 1 - scenes.num_background
    # A factor with fewer columns than objects describes the whole scene, such as whether a stack stands.
    of_objects = {
        name: np.asarray(values[few]) for name, values in scenes.factors.items() if values.shape[1] >= num_objects
    }
    if not of_objects:
        raise UserError("DCI needs factors/<name> of objects in the data set, and it has none")
    if held_out.reading.slots is not None and name in held_out.reading.segments:
        codes, factors = match_objects(
            held_out.reading.slots[few],
            torch.from_numpy(held_out.reading.segments[name][few]),
            labels,
            of_objects,
            num_background=scenes.num_background,
        )
    else:
        with torch.no_grad():
            found = [pair.guide.code(batch) for batch in held_out.batches(scenes.images[few], "codes")]
        if found[0] is None:
            return {"dci_disentanglement": NO_SLOTS}
        codes, factors = torch.cat(found).cpu().numpy(), in_order_of_attributes(of_objects)
    return {f"dci_{name}": score for name, score in dci(codes, factors, seed=SEED)._asdict().items()}


def slot_order(held_out: HeldOut, *, temperature: float) -> Values:
    """Compute the slot-order stability of samples, in [0, 1], and its value by chance."""
    found = []
    for sample in held_out.samples(held_out.final, temperature, "sampling for slot order"):
        if sample.log_masks is None:
            return {"slot_order": NO_MASKS}
        found.append(portraits(sample))
    value = slot_order_stability(*(torch.cat(part) for part in zip(*found, strict=True)))
    return {"slot_order": value, "slot_order_chance": 1 / held_out.final.model.num_slots}


METRICS: dict[str, Callable[..., Values]] = {
    "ari": ari,
    "baselines": baselines,
    "covering": covering,
    "binding": binding,
    "reconstruction": reconstruction,
    "kl": kl,
    "gap": gap,
    "likelihood": likelihood,
    "structure": structure,
    "stacks": stacks,
    "fd-pca64": frechet_pca64,
    "fd-efficientnet": frechet_efficientnet,
    "fid": frechet_inception,
    "dci": disentanglement,
    "slot-order": slot_order,
}


def measure(name: str, held_out: HeldOut, settings: dict, *, remember: bool = False) -> Values:
    """Compute a metric with `settings`, by keyword argument. Numbers that are not finite are replaced by None.

    With `remember`, values are read from the run's `evaluation.json`, or computed and written to it.

    Raises:
        UserError: the data do not support the metric.
    """
    function = METRICS[name]
    used = {key: settings[key] for key in signature(function).parameters if key != "held_out"}
    protocol = {key: str(value) if isinstance(value, Path) else value for key, value in used.items()}

    def compute() -> Values:
        values = function(held_out, **used)
        return {key: v if isinstance(v, str) or math.isfinite(v) else None for key, v in values.items()}

    return held_out.remember(name, protocol, compute) if remember else compute()


def frechet_distances(held_out: HeldOut, extractor: Extractor, taus: Sequence[float]) -> list[float]:
    """Compute the Frechet distance between the held-out scenes and equally many samples, at each temperature."""
    real, distances = _real_moments(held_out, extractor), []
    for tau in taus:
        samples = held_out.samples(held_out.final, tau, f"features, tau = {tau:g}", masks=False)
        distances.append(frechet_distance(real, _moments(samples, extractor)))
    return distances


def pixel_pca(held_out: HeldOut) -> PixelPCA:
    """Fit the principal components of the first 2048 held-out images."""
    return PixelPCA(float_images(held_out.scenes.images[:_PCA_SCENES]))


def _real_moments(held_out: HeldOut, extractor: Extractor):
    return moments(held_out.batches(held_out.scenes.images, "features of real images"), extractor)


def _moments(parts: Iterable, extractor: Extractor):
    return moments((part.image for part in parts), extractor)


def _without_masks(held_out: HeldOut, names: Sequence[str]) -> Values:
    """Return the values of pairs whose renderings have no masks."""
    missing = [pair for pair in held_out.system if pair not in held_out.reading.segments]
    return {f"{name}_{pair}": NO_MASKS for name in names for pair in missing}


def _labels(held_out: HeldOut) -> Tensor:
    if held_out.scenes.labels is None:
        raise UserError("the data set has no labels")
    return torch.from_numpy(np.array(held_out.scenes.labels))
