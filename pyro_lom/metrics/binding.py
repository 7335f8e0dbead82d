"""Three statistics, computed without labels, that show whether slots bind to objects."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_lom.metrics.ari import adjusted_rand_index


class Binding(NamedTuple):
    """Statistics, averaged over scenes, of the segments in which one slot has the largest mask."""

    largest: float
    """Share of the pixels in the largest segment of a scene, in (0, 1]: 1 if one slot takes the whole image."""
    stability: float
    """ARI over all pixels between two inferences of one scene, at most 1: low if the noise determines the segments."""
    sameness: float
    """ARI over all pixels between one scene and the next: 1 if all scenes have the same segments."""

    def complaint(self) -> str | None:
        """Return a short description of a failure to bind, or None if no statistic shows one."""
        if self.largest > 0.97:
            return f"one slot takes everything ({self.largest:.0%} of the pixels)"
        if self.sameness > 0.9:
            return f"slots ignore objects: they cut every scene alike (ARI {self.sameness:.2f} between scenes)"
        if self.stability < 0.8:
            return f"slots ignore objects: they cut one scene differently each time (ARI {self.stability:.2f})"
        return None


def binding(first: Float[Tensor, "B K 1 H W"], second: Float[Tensor, "B K 1 H W"]) -> Binding:
    """Compute the statistics from the log masks of two inferences of the same scenes with independent noise."""
    segments, again = (log_masks.argmax(-4).squeeze(-3) for log_masks in (first, second))
    sizes = (segments.unsqueeze(1) == segments.flatten(1).mode(-1).values[:, None, None, None]).float()
    return Binding(
        largest=sizes.mean().item(),
        stability=adjusted_rand_index(again, segments).mean().item(),
        sameness=adjusted_rand_index(segments.roll(1, dims=0), segments).mean().item(),
    )
