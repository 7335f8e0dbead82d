"""Retrieval of scenes by the scene latent, then by one slot (A.6)."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from sklearn.decomposition import PCA

from pyro_lom.errors import UserError
from pyro_lom.files import open_own, replacing

LARGEST = 1e15  # of a latent: sums of squares of larger ones may be no numbers of 32 bits
_LARGEST_FILE = 1 << 30  # bytes


class Index(NamedTuple):
    """Latents s and z of N scenes. Distances are computed between projections of s on its principal components."""

    scenes: Float[np.ndarray, "N Ds"]
    slots: Float[np.ndarray, "N K Dz"]
    projected: Float[np.ndarray, "N D"]  # coordinates of the scenes along the components
    mean: Float[np.ndarray, "Ds"]
    components: Float[np.ndarray, "D Ds"]
    explained: Float[np.ndarray, "D"]  # share of the variance of s that each component explains

    @classmethod
    def build(
        cls, scenes: Float[np.ndarray, "N Ds"], slots: Float[np.ndarray, "N K Dz"], num_components: int = 6
    ) -> "Index":
        """Compute the principal components of `scenes` and the projections on them.

        Raises:
            UserError: N or Ds is less than `num_components`.
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
        """Write the index as a safetensors file, with `about` as its metadata."""
        with replacing(path) as temporary:
            save_file({name: np.ascontiguousarray(part) for name, part in self._asdict().items()}, temporary, about)

    @classmethod
    def load(cls, path: Path) -> tuple["Index", dict[str, str]]:
        """Return the index and the `about` that `save` received.

        Raises:
            UserError: the file is damaged, or not an ordinary one.
        """
        try:
            with open_own(path) as own:
                if (size := os.fstat(own.fileno()).st_size) > _LARGEST_FILE:
                    raise ValueError(f"it has {size} bytes")
            with safe_open(path, "numpy") as file:
                about = file.metadata() or {}
            index = cls(**load_file(path))
            index._check()
        except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}); remove it to build it again") from error
        return index, about

    def _check(self) -> None:
        """Raise ValueError for parts that do not fit together."""
        (num_scenes, scene_dim), (num_components, _) = self.scenes.shape, self.components.shape
        expected = [(num_scenes, scene_dim), (num_scenes, *self.slots.shape[1:]), (num_scenes, num_components)]
        expected += [(scene_dim,), (num_components, scene_dim), (num_components,)]
        for name, part, shape in zip(self._fields, self, expected, strict=True):
            if part.dtype.kind != "f" or part.shape != shape or not (np.abs(part) < LARGEST).all():
                raise ValueError(f"{name} is {part.dtype} {part.shape}, or too large; expected {shape}")
        if self.slots.ndim != 3:
            raise ValueError(f"slots have shape {self.slots.shape}")

    def nearest(self, scene: Float[np.ndarray, "Ds"], num: int = 5) -> Int[np.ndarray, "num"]:
        """Return the rows of the nearest scenes, nearest first, by Euclidean distance along the components."""
        distance = np.square(self.projected - (scene - self.mean) @ self.components.T).sum(1)
        nearest = np.argpartition(distance, min(num, len(distance)) - 1)[:num]
        return nearest[distance[nearest].argsort()]

    def rerank(
        self, rows: Int[np.ndarray, "num"], slot: Float[np.ndarray, "Dz"]
    ) -> tuple[Int[np.ndarray, "num"], Int[np.ndarray, "num"]]:
        """Sort `rows` by the distance of their nearest slot to `slot`; return the rows and those slots' indices."""
        distance = np.square(self.slots[rows] - slot).sum(-1)
        order = distance.min(1).argsort()
        return rows[order], distance.argmin(1)[order]
