"""Do slots bind to things in the image? Three signs that need no labels."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from pyro_lom.metrics.ari import adjusted_rand_index


class Binding(NamedTuple):
    """What masks tell about slots, from segmentations by the largest mask; means over scenes."""

    largest: float
    """Share of the pixels that the largest segment of a scene takes, in (0, 1]: 1 where one slot takes everything."""
    stability: float
    """ARI over all pixels of two inferences of one scene, at most 1: low where chance, not the scene, cuts it."""
    sameness: float
    """ARI over all pixels of one scene and the next: 1 where slots cut every scene alike, whatever it shows."""

    def complaint(self) -> str | None:
        """What is wrong, in a few words; None while slots seem to bind."""
        if self.largest > 0.97:
            return f"one slot takes everything ({self.largest:.0%} of the pixels)"
        if self.sameness > 0.9:
            return f"slots ignore objects: they cut every scene alike (ARI {self.sameness:.2f} between scenes)"
        if self.stability < 0.8:
            return f"slots ignore objects: they cut one scene differently each time (ARI {self.stability:.2f})"
        return None


def binding(first: Float[Tensor, "B K 1 H W"], second: Float[Tensor, "B K 1 H W"]) -> Binding:
    """The signs of binding, from the log masks of two inferences of the same scenes with fresh noise."""
    segments, again = (log_masks.argmax(-4).squeeze(-3) for log_masks in (first, second))
    sizes = (segments.unsqueeze(1) == segments.flatten(1).mode(-1).values[:, None, None, None]).float()
    return Binding(
        largest=sizes.mean().item(),
        stability=adjusted_rand_index(again, segments).mean().item(),
        sameness=adjusted_rand_index(segments.roll(1, dims=0), segments).mean().item(),
    )
