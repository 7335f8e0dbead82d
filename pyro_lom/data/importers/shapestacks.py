"""Reader of ShapeStacks in its published folders (ogroth.github.io/shapestacks).

    splits/default/{train,eval,test}.txt              one scenario per line
    recordings/SCENARIO/rgb-*-cam_N-mono-0.png        224x224, one image per camera
    iseg/SCENARIO/iseg-*-cam_N-mono-0.map             optional instance map: a PNG with 32 times the label

Instance maps may also be in the folders of the images.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pyro_lom.data.importers.block import RowReader, Scene
from pyro_lom.data.pictures import read_picture, size_text
from pyro_lom.errors import UserError

SPLITS = {"train": "train", "eval": "validation", "test": "test"}  # published name -> name in `Scenes.splits`
VIEW = (224, 224)
CROP = (slice(14, 210), slice(14, 210))  # central 196x196 pixels, as in GENESIS
MAX_BLOCKS = 6
_VALUE_PER_LABEL = 32
_MAX_LIST = 16 << 20  # bytes of a list of scenarios; the published ones have less than 1 MB
_SCENARIO = re.compile(r"env_(?:blocks|ccs)-\w+-h=(\d{1,4})-vcom=(\d{1,4})-vpsf=(\d{1,4})-v=\d{1,4}")
_CAMERA = re.compile(r"-cam_(\d{1,4})-")


class ShapeStacks(RowReader):
    """Reads the images of the default split's scenarios before anything moves, shuffled once within each split.

    Factors have one column each: `num_blocks`, `stands` (neither centre of mass nor planar surface violated), `camera`.

    Args:
        root: the folder that holds splits/ and recordings/.
        num: number of images to read, in proportion from each split; None reads all.

    Raises:
        UserError: files are missing, the splits name an image twice, or only some images have instance maps.
    """

    num_background = 1

    def __init__(self, root: Path, size: int, num: int | None = None):
        self.root, self.size = root, size
        self._views: list[tuple[Path, Path | None]] = []
        splits = {}
        for published, split in SPLITS.items():
            scenarios = self._scenarios(root / "splits" / "default" / f"{published}.txt")
            views = [view for scenario in scenarios for view in self._views_of(scenario)]
            order = np.random.default_rng(0).permutation(len(views))
            splits[split] = range(len(self._views), len(self._views) + len(views))
            self._views += [views[place] for place in order]
        super().__init__(splits, len(self._views), num)
        read = [self._views[row] for row in self._rows]
        if twice := len(read) - len(set(read)):
            raise UserError(f"the split files in {root}/splits/default name {twice} images twice: restore them")
        without = sum(labels is None for _, labels in read)
        if without not in (0, self.total):
            missing = next(image for image, labels in read if labels is None)
            raise UserError(
                f"{without} of {self.total} images in {root} have no instance map, the first being {missing}: "
                "complete iseg/, or move it away to do without labels"
            )

    def notes(self, place: Any) -> list[str]:
        return [] if self._views[0][1] else [f"there are no instance maps in {self.root}: the scenes have no labels"]

    def _scenarios(self, path: Path) -> list[str]:
        try:
            if path.stat().st_size > _MAX_LIST or not path.is_file():  # reading a pipe would block
                raise UserError(f"{path} is no list of scenarios: restore the file")
            names = path.read_text().split()
        except (OSError, UnicodeDecodeError) as error:
            reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
            raise UserError(
                f"cannot read {path}: {reason}; name the folder of ShapeStacks that holds splits/ and recordings/"
            ) from error
        for name in names:
            if not _SCENARIO.fullmatch(name):
                raise UserError(
                    f"{path} names {name[:80]!r}, no scenario like env_ccs-easy-h=3-vcom=0-vpsf=0-v=1: restore the file"
                )
        return sorted(names)

    def _views_of(self, scenario: str) -> list[tuple[Path, Path | None]]:
        folder = self.root / "recordings" / scenario
        try:
            images = [
                path for path in folder.iterdir() if re.fullmatch(r"(?s)rgb-.*-cam_\d{1,4}-mono-0\.png", path.name)
            ]
            maps = {
                camera_of(path): path
                for place in (folder, self.root / "iseg" / scenario)
                if place.is_dir()
                for path in place.iterdir()
                if re.fullmatch(r"(?s)iseg-.*-cam_\d{1,4}-mono-0\.map", path.name)
            }
        except OSError as error:
            raise UserError(f"cannot read {folder}: {error.strerror}; unpack all of ShapeStacks' recordings") from error
        if not images:
            raise UserError(f"no images in {folder}: expected files like rgb-...-cam_1-mono-0.png")
        return [(image, maps.get(camera_of(image))) for image in sorted(images, key=camera_of)]

    def _scene(self, row: int) -> Scene:
        image, labels = self._views[row]
        height, *violations = map(int, _SCENARIO.fullmatch(image.parent.name).groups())
        picture = _view(image)
        if picture.mode not in ("RGB", "RGBA"):
            raise UserError(f"{image} is of mode {picture.mode}, not RGB")
        factors = {"num_blocks": height, "stands": int(violations == [0, 0]), "camera": camera_of(image)}
        return Scene(
            np.asarray(picture.convert("RGB"))[CROP],
            None if labels is None else _labels(labels)[CROP],
            {name: np.array([value]) for name, value in factors.items()},
        )


def _labels(path: Path) -> UInt8[np.ndarray, "H W"]:
    picture = _view(path)
    if picture.mode not in ("RGBA", "RGB", "L"):
        raise UserError(f"{path} is of mode {picture.mode}, not RGBA")
    channels = np.atleast_3d(np.asarray(picture))[..., :3]
    values = channels[..., 0]
    if (channels != values[..., None]).any():
        raise UserError(f"{path} is in colour, and no instance map")
    labels, rest = np.divmod(values, _VALUE_PER_LABEL)
    if rest.any() or labels.max() > MAX_BLOCKS:
        wrong = values[(rest > 0) | (labels > MAX_BLOCKS)][0]
        raise UserError(f"{path} holds {wrong}, not {_VALUE_PER_LABEL} times a label of 0 to {MAX_BLOCKS}")
    return labels


def _view(path: Path) -> Image.Image:
    picture = read_picture(path)
    if picture.size != VIEW:
        raise UserError(f"{path} is {size_text(picture.size[::-1])}, not {size_text(VIEW)}")
    return picture


def camera_of(path: Path) -> int:
    """Return the number of the camera in a file name."""
    return int(_CAMERA.search(path.name).group(1))
