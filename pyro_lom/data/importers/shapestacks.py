"""ShapeStacks from its published tree (ogroth.github.io/shapestacks).

    splits/default/{train,eval,test}.txt              a scenario a line
    recordings/SCENARIO/rgb-*-cam_N-mono-0.png        224x224, one image a camera
    iseg/SCENARIO/iseg-*-cam_N-mono-0.map             optional: instances, a PNG that holds 32 times the label

Instance maps may also lie beside the images.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pyro_lom.data.importers.block import Block, Damage, Reader, scenes_in_block
from pyro_lom.data.pictures import fit, read_picture, size_text
from pyro_lom.errors import UserError

SPLITS = {"train": "train", "eval": "validation", "test": "test"}  # published name -> ours
VIEW = (224, 224)
CROP = 196  # of the centre, as GENESIS
MAX_BLOCKS = 6
_VALUE_PER_LABEL = 32
_SCENARIO = re.compile(r"env_(?:blocks|ccs)-\w+-h=(\d+)-vcom=(\d+)-vpsf=(\d+)-v=\d+$")
_CAMERA = re.compile(r"-cam_(\d+)-")


class ShapeStacks(Reader):
    """The views of the default split's scenarios before anything moves, shuffled once within each split.

    Factors, one column each: `num_blocks`, `stands` (neither centre of mass nor planar surface violated) and `camera`.

    Args:
        root: the folder that holds splits/ and recordings/.
        size: height and width of the images to be.
        num: how many views to take, of each split its share; None takes all.

    Raises:
        UserError: split files are missing or name scenarios that are not there.
    """

    num_background = 1
    unit = "scenes"

    def __init__(self, root: Path, size: int, num: int | None = None):
        self.root, self.size = root, size
        self._views: list[tuple[Path, Path | None]] = []
        ends = [0]
        for published in SPLITS:
            scenarios = self._scenarios(root / "splits" / "default" / f"{published}.txt")
            views = [view for scenario in scenarios for view in self._views_of(scenario)]
            order = np.random.default_rng(0).permutation(len(views))
            self._views += [views[place] for place in order]
            ends.append(len(self._views))
        if num is not None and num < len(self._views):
            shares = [end * num // len(self._views) for end in ends]
            parts = zip(ends[:-1], np.diff(shares), strict=True)
            self._views = [view for first, share in parts for view in self._views[first : first + share]]
            ends = shares
        self._splits = {split: range(*bounds) for split, bounds in zip(SPLITS.values(), pairwise(ends), strict=True)}
        self.total = len(self._views)
        if twice := self.total - len(set(self._views)):
            raise UserError(f"the split files in {root}/splits/default name {twice} images twice: restore them")
        self._damaged_rows: list[int] = []
        without = sum(labels is None for _, labels in self._views)
        if without not in (0, self.total):
            missing = next(image for image, labels in self._views if labels is None)
            raise UserError(
                f"{without} of {self.total} images in {root} have no instance map, the first being {missing}: "
                "complete iseg/, or move it away to do without labels"
            )

    def blocks(self, place: Any, damage: Damage) -> Iterator[Block]:
        place = place or {"row": 0, "damaged": []}
        count = scenes_in_block(3 * self.size**2)
        row, self._damaged_rows = place["row"], list(place["damaged"])
        while row < self.total:
            scenes = []
            while row < self.total and len(scenes) < count:
                try:
                    scenes.append(self._scene(*self._views[row]))
                except UserError as error:
                    damage(f"image {row}", str(error))
                    self._damaged_rows.append(row)
                row += 1
            if scenes:
                images, labels, factors = zip(*scenes, strict=True)
                columns = np.array(factors)
                yield Block(
                    np.stack(images),
                    None if labels[0] is None else np.stack(labels),
                    {name: columns[:, k : k + 1] for k, name in enumerate(("num_blocks", "stands", "camera"))},
                    {"row": row, "damaged": list(self._damaged_rows)},
                    row,
                )

    def splits(self, num_scenes: int) -> dict[str, range]:
        damaged = np.array(self._damaged_rows, int)
        bounds = {
            split: [bound - int((damaged < bound).sum()) for bound in (rows.start, rows.stop)]
            for split, rows in self._splits.items()
        }
        return {split: range(*pair) for split, pair in bounds.items() if pair[0] < pair[1]}

    def notes(self, place: Any) -> list[str]:
        return [] if self._views[0][1] else [f"there are no instance maps in {self.root}: the scenes have no labels"]

    def _scenarios(self, path: Path) -> list[str]:
        try:
            names = path.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise UserError(
                f"cannot read {path}: {reason}; name the folder of ShapeStacks that holds splits/ and recordings/"
            ) from error
        for name in names:
            if not _SCENARIO.match(name):
                raise UserError(
                    f"{path} names {name[:80]!r}, no scenario like env_ccs-easy-h=3-vcom=0-vpsf=0-v=1: restore the file"
                )
        return sorted(names)

    def _views_of(self, scenario: str) -> list[tuple[Path, Path | None]]:
        folder = self.root / "recordings" / scenario
        try:
            images = [path for path in folder.iterdir() if re.fullmatch(r"rgb-.*-cam_\d+-mono-0\.png", path.name)]
            maps = {
                camera_of(path): path
                for place in (folder, self.root / "iseg" / scenario)
                if place.is_dir()
                for path in place.iterdir()
                if re.fullmatch(r"iseg-.*-cam_\d+-mono-0\.map", path.name)
            }
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror}; unpack all of ShapeStacks' recordings") from error
        if not images:
            raise UserError(f"no images in {folder}: expected files like rgb-...-cam_1-mono-0.png")
        return [(image, maps.get(camera_of(image))) for image in sorted(images, key=camera_of)]

    def _scene(self, image: Path, labels: Path | None) -> tuple[np.ndarray, np.ndarray | None, list[int]]:
        height, *violations = map(int, _SCENARIO.match(image.parent.name).groups())
        picture = self._view(image)
        if picture.mode not in ("RGB", "RGBA"):
            raise UserError(f"{image} is of mode {picture.mode}, not RGB")
        pixels = self._cropped(picture.convert("RGB"), Image.Resampling.BILINEAR)
        factors = [height, int(violations == [0, 0]), camera_of(image)]
        return pixels, None if labels is None else self._labels(labels), factors

    def _labels(self, path: Path) -> UInt8[np.ndarray, "H W"]:
        picture = self._view(path)
        values = np.asarray(picture)
        if picture.mode not in ("RGBA", "RGB", "L"):
            raise UserError(f"{path} is of mode {picture.mode}, not RGBA")
        if values.ndim == 3:
            if (values[..., :3] != values[..., :1]).any():
                raise UserError(f"{path} is in colour, and no instance map")
            values = values[..., 0]
        labels, rest = np.divmod(values, _VALUE_PER_LABEL)
        if rest.any() or labels.max() > MAX_BLOCKS:
            wrong = values[(rest > 0) | (labels > MAX_BLOCKS)][0]
            raise UserError(f"{path} holds {wrong}, not {_VALUE_PER_LABEL} times a label of 0 to {MAX_BLOCKS}")
        return self._cropped(Image.fromarray(labels), Image.Resampling.NEAREST)

    def _view(self, path: Path) -> Image.Image:
        picture = read_picture(path)
        if picture.size != VIEW:
            raise UserError(f"{path} is {size_text(picture.size[::-1])}, not {size_text(VIEW)}")
        return picture

    def _cropped(self, picture: Image.Image, resampling: Image.Resampling) -> np.ndarray:
        margin = (VIEW[0] - CROP) // 2
        centre = picture.crop((margin, margin, margin + CROP, margin + CROP))
        return np.asarray(fit(centre, (self.size, self.size), resampling))


def camera_of(path: Path) -> int:
    """Number of the camera in a file's name."""
    return int(_CAMERA.search(path.name).group(1))
