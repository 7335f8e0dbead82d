"""Retrieval of scenes by what they are, then by one object (A.6)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA

from pyro_lom.errors import UserError
from pyro_lom.runs import replacing


class Index(NamedTuple):
    """N scenes as pairs (s, z), with the projection of s on its principal components that distances are taken in."""

    scenes: Float[np.ndarray, "N Ds"]
    slots: Float[np.ndarray, "N K Dz"]
    projected: Float[np.ndarray, "N D"]  # scenes along the components
    mean: Float[np.ndarray, "Ds"]
    components: Float[np.ndarray, "D Ds"]
    explained: Float[np.ndarray, "D"]  # share of the variance of s along each component

    @classmethod
    def build(
        cls, scenes: Float[np.ndarray, "N Ds"], slots: Float[np.ndarray, "N K Dz"], num_components: int = 6
    ) -> "Index":
        """Find the components.

        Raises:
            UserError: there are fewer scenes, or dimensions of s, than components.
        """
        if min(scenes.shape) < num_components:
            raise UserError(
                f"{num_components} principal components need as many scenes and dimensions of s, not "
                f"{scenes.shape[0]} scenes of {scenes.shape[1]}: index more scenes"
            )
        pca = PCA(num_components, svd_solver="full").fit(scenes)
        parts = (pca.transform(scenes), pca.mean_, pca.components_, pca.explained_variance_ratio_)
        return cls(scenes, slots, *(part.astype(np.float32) for part in parts))

    def save(self, path: Path, about: dict[str, str]) -> None:
        """Write everything as safetensors; `about` says where it comes from."""
        with replacing(path) as temporary:
            save_file({name: np.ascontiguousarray(part) for name, part in self._asdict().items()}, temporary, about)

    @classmethod
    def load(cls, path: Path) -> tuple["Index", dict[str, str]]:
        """The index, and what it is about.

        Raises:
            UserError: the file is damaged.
        """
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata()
            return cls(**load_file(path)), about
        except (OSError, SafetensorError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it to build it again") from error

    def nearest(self, scene: Float[np.ndarray, "Ds"], num: int = 5) -> Int[np.ndarray, "num"]:
        """Rows of the nearest scenes by Euclidean distance along the components, nearest first."""
        distance = np.square(self.projected - (scene - self.mean) @ self.components.T).sum(1)
        nearest = np.argpartition(distance, min(num, len(distance)) - 1)[:num]
        return nearest[distance[nearest].argsort()]

    def rerank(
        self, rows: Int[np.ndarray, "num"], slot: Float[np.ndarray, "Dz"]
    ) -> tuple[Int[np.ndarray, "num"], Int[np.ndarray, "num"]]:
        """The same rows, those first in which some slot is nearest to the one given; and which slot that is."""
        distance = np.square(self.slots[rows] - slot).sum(-1)
        order = distance.min(1).argsort()
        return rows[order], distance.argmin(1)[order]
