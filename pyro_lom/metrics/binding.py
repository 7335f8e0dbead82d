"""Statistics, computed without labels, that show whether slots bind to objects."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer
from scipy import ndimage
from torch import Tensor

from pyro_lom.metrics.ari import adjusted_rand_index
from pyro_lom.networks.pixel_encoders import (
    PartsEncoder,
    RegionEncoder,
    colours_and_places_of_regions,
    hue_and_brightness,
)
from pyro_lom.networks.regions import smoothed
from pyro_lom.networks.stick_breaking import InstanceColouring, pixel_grid

_USUAL = 7  # slots
SMALLEST = 0.005
"""Share of an image, below which a segment does not count."""
_BATCH = 64  # scenes at once, which limits memory
_OTHER_SEED = "try another --seed or a smaller --model.slot-dim"
_OTHER_IMAGES = "larger or smoother images, or larger networks on a GPU, may help"


class Binding(NamedTuple):
    """Statistics, averaged over scenes, of the segments in which one slot has the largest mask."""

    largest: float
    """Share of the pixels in the largest segment of a scene, in (0, 1]: 1 if one slot takes the whole image."""
    stability: float
    """ARI over all pixels between two inferences of one scene, at most 1: low if the noise determines the segments, or
    if slots divide a background differently each time."""
    sameness: float
    """ARI over all pixels between one scene and the next: 1 if all scenes have the same segments."""
    explained: float
    """Share of the variance of colours that smooth colours in the segments explain (`explained_variance`), in [0, 1]:
    low if segments cross the outlines of objects. Images are smoothed over 3x3 pixels, so that noise counts less."""
    explainable: float
    """The same share for segments of the untrained `PartsEncoder` (`region_segments`)."""
    scattered: float
    """Share of the segments above 0.5 % of an image whose largest connected part has less than half of their pixels."""

    def complaint(self) -> str | None:
        """Return a short description of a failure to bind, and what may help, or None if no statistic shows one."""
        if self.largest > 0.97:
            return f"one slot takes everything ({self.largest:.0%} of the pixels); {_OTHER_SEED}"
        if self.sameness > 0.9:
            return (
                f"slots ignore objects: they cut every scene alike (ARI {self.sameness:.2f} between scenes); "
                f"{_OTHER_SEED}"
            )
        if self.explainable < 0.4:
            return (
                f"slots may not bind: smooth colours in regions explain only {self.explainable:.0%} of the variance of "
                f"these images; {_OTHER_IMAGES}"
            )
        if self.explained < 0.5 * self.explainable:
            return (
                f"slots seem to ignore objects: smooth colours in their segments explain {self.explained:.0%} of the "
                f"variance, and {self.explainable:.0%} in regions; {_OTHER_SEED}; more slots, {_OTHER_IMAGES}"
            )
        if self.stability < 0.8 and self.explained < 0.6 * self.explainable:  # otherwise only a background differs
            return (
                f"slots seem to ignore objects: they cut one scene differently each time (ARI {self.stability:.2f}); "
                f"{_OTHER_SEED}"
            )
        if self.scattered > 0.3:
            return (
                f"slots seem to follow patterns on objects: {self.scattered:.0%} of their segments are scattered over "
                f"an image; images without fine patterns, or the encoder parts if another was used, may help"
            )
        return None


def binding(
    first: Float[Tensor, "B K 1 H W"], second: Float[Tensor, "B K 1 H W"], images: Float[Tensor, "B C H W"]
) -> Binding:
    """Compute the statistics from the log masks of two inferences of the same images with independent noise."""
    segments, again = (log_masks.argmax(-4).squeeze(-3) for log_masks in (first, second))
    smooth = smoothed(images)
    sizes = (segments.unsqueeze(1) == segments.flatten(1).mode(-1).values[:, None, None, None]).float()
    return Binding(
        largest=sizes.mean().item(),
        stability=adjusted_rand_index(again, segments).mean().item(),
        sameness=adjusted_rand_index(segments.roll(1, dims=0), segments).mean().item(),
        explained=explained_variance(smooth, segments),
        explainable=explained_variance(smooth, region_segments(images, first.shape[-4])),
        scattered=scattered(segments),
    )


def scattered(segments: Integer[Tensor, "B H W"]) -> float:
    """Return the share of the segments above 0.5 % of an image that are scattered (`Binding.scattered`)."""
    shares = []
    for scene in segments.cpu().numpy():
        for mask in (scene == label for label in np.unique(scene)):
            if mask.mean() > SMALLEST:
                parts, _ = ndimage.label(mask)  # corners do not connect, so that checks are scattered
                shares.append(np.bincount(parts[mask]).max() / mask.sum())
    return float(np.mean(np.array(shares) < 0.5))


@torch.no_grad()
def region_segments(
    images: Float[Tensor, "B C H W"], num_slots: int, *, encoder: type[RegionEncoder] = PartsEncoder
) -> Integer[Tensor, "B H W"]:
    """Return the segments of an encoder's initial clusters, with GENESIS-v2's clustering into `num_slots`."""
    colouring, segments = InstanceColouring(num_slots), []
    colouring.load_state_dict(InstanceColouring(_USUAL).state_dict())  # clusters as wide as usual
    weights = encoder.initial_weights(images.shape[1])[:, None, None]
    generator = torch.Generator().manual_seed(0)
    for batch in images.cpu().split(_BATCH):
        colours, places = colours_and_places_of_regions(batch, encoder.average)
        embedding = torch.cat([weights * hue_and_brightness(colours, dim=1), encoder.PLACE_WEIGHT * places], dim=1)
        scores = torch.rand(len(batch), 1, *batch.shape[2:], generator=generator)
        segments.append(colouring(embedding, scores).argmax(-4).squeeze(-3))
    return torch.cat(segments).to(images.device)


def explained_variance(images: Float[Tensor, "B C H W"], segments: Integer[Tensor, "B H W"]) -> float:
    """Return the share of the variance of colours that smooth colours in segments explain, in [0, 1].

    Colours are quadratic in the place (`smooth_error`). The variance is what one segment for each whole image leaves.
    Images without variance have the share 1.
    """
    variance = smooth_error(images, torch.zeros_like(segments)).mean()
    return 1 - (smooth_error(images, segments).mean() / variance.clamp_min(1e-8)).clamp(0, 1).item()


def smooth_error(images: Float[Tensor, "B C H W"], segments: Integer[Tensor, "B H W"]) -> Float[Tensor, "B"]:
    """Return the mean squared error of the quadratic in the place that fits the colours of each segment best."""
    row, column = pixel_grid(*images.shape[-2:], device=images.device).flatten(1).double()
    basis = torch.stack([torch.ones_like(row), row, column, row**2, column**2, row * column])  # (6, N)
    errors = []
    for some, labels in zip(images.split(_BATCH), segments.split(_BATCH), strict=True):
        masks, colours = F.one_hot(labels.flatten(1).long()).double(), some.flatten(2).double()
        squares = torch.einsum("bnk,in,jn->bkij", masks, basis, basis) + 1e-4 * torch.eye(6, device=images.device)
        products = torch.einsum("bnk,in,bcn->bkic", masks, basis, colours)
        fitted = torch.einsum("bnk,in,bkic->bcn", masks, basis, torch.linalg.solve(squares, products))
        errors.append((colours - fitted).square().mean((1, 2)))
    return torch.cat(errors)
