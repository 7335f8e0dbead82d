"""Finding of pictures in a folder: which files are images, which are their masks, and which are neither."""

import os
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pyro_lom.data.picture_names import PictureName, assigned, keys_of, parsed, sorted_out
from pyro_lom.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_FOREIGN_SUFFIXES = (
    ".gif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".exr",
    ".npy",
    ".npz",
    ".tar",
    ".zip",
    ".mp4",
    ".h5",
    ".hdf5",
    ".tfrecord",
    ".tfrecords",
)
_SPLITS = {
    "train": "train training",
    "validation": "val valid validation eval dev",
    "test": "test testing",
}
SPLIT_NAMES = {word: split for split, words in _SPLITS.items() for word in words.split()}
"""Names of the folders or groups of a split, in lower case and without a year."""
_MAX_FILES, _MAX_DEPTH = 10_000_000, 16


class Pictures(NamedTuple):
    """The pictures of a folder, in the order of their splits and then of their names."""

    images: list[Path]
    masks: list[list[Path]]
    """The mask of each image, or one mask for each of its objects; empty if not every image has a mask."""
    splits: dict[str, range]
    """Rows of the splits, if the folder has subfolders such as train/ and test/."""
    found: str
    """What was found and what is left out, in one line."""


def find_pictures(folder: Path, masks: Path | None = None) -> Pictures:
    """Find the images of a folder and of its subfolders, and their masks.

    Names that begin with a dot are left out, since other systems store files such as `._a.png` next to `a.png`. Links
    to folders are not followed.

    Args:
        masks: folder that contains the masks, and nothing else; by default they are among the images.

    Raises:
        UserError: there are no images, the folder cannot be read, or images in `folder` have no mask in `masks`.
    """
    paths, foreign = _walk(folder)
    if masks is not None:
        paths = [path for path in paths if not path.is_relative_to(masks)]
    if not paths:
        held = (
            f"; it holds {_counts(foreign)}, which are not read: convert them to PNG, or name one of them"
            if foreign
            else ""
        )
        raise UserError(f"no images in {folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}{held}")
    images, companions = sorted_out([parsed(path, folder) for path in paths])
    splits, images, outside = _by_split(images)
    if twice := [name.path for name, other in pairwise(images) if _stem(name) == _stem(other)]:
        raise UserError(
            f"{len(twice)} images have the name of another one but for its end, such as {twice[0]}: keep one, or "
            "put masks into a folder called masks"
        )
    if masks is None:
        of_image, pattern = _masks_of(images, companions)
    else:
        of_image, pattern = assigned(keys_of(images), [parsed(path, masks) for path in _walk(masks)[0]]), f"{masks}/*"
    missing = [name.path for name in images if name.path not in of_image]
    if masks is not None and missing:
        raise UserError(f"{len(missing)} images have no mask in {masks}, the first being {missing[0]}: add them")
    chosen = [] if missing else [of_image[name.path] for name in images]
    used = {path for files in chosen for path in files}
    left_out = foreign + Counter(name.kind[1] for name in companions if name.path not in used)
    left_out[f"outside of {'/ and '.join(splits)}/"] += outside
    found = [f"{_counts(Counter(f'*{name.path.suffix}' for name in images))} as images"]
    found += [", ".join(f"{len(rows):,} for {split}" for split, rows in splits.items())] if splits else []
    if of_image:
        why_not = f" are not used, as some images have none ({len(missing):,}, such as {missing[0]})" if missing else ""
        found.append(f"masks {pattern}{why_not}")
    if +left_out:
        found.append(f"left out: {_counts(+left_out)}")
    return Pictures([name.path for name in images], chosen, splits, "; ".join(found))


def _walk(folder: Path) -> tuple[list[Path], Counter[str]]:
    """Return the pictures below a folder, and the numbers of other files of images or arrays by suffix."""

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}; name a folder of images") from error

    paths, foreign = [], Counter()
    for place, folders, names in os.walk(folder, onerror=refuse):
        depth = len(Path(place).relative_to(folder).parts)
        folders[:] = [name for name in folders if not name.startswith(".")]
        if depth >= _MAX_DEPTH:
            foreign[f"folders deeper than {_MAX_DEPTH} levels"] += len(folders)
            folders.clear()
        foreign["links to folders"] += sum(os.path.islink(os.path.join(place, name)) for name in folders)
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES:
                paths.append(Path(place, name))
            elif suffix in _FOREIGN_SUFFIXES:
                foreign[f"*{suffix}"] += 1
        if len(paths) > _MAX_FILES:
            raise UserError(f"{folder} contains more than {_MAX_FILES:,} images: store them in an HDF5 file")
    return sorted(paths), +foreign


def _masks_of(images: list[PictureName], companions: list[PictureName]) -> tuple[dict[Path, list[Path]], str]:
    """Return the masks of each image, of the kind of masks that most images have, and the pattern of their names."""
    of_kind = defaultdict(list)
    for name in companions:
        if name.role == "mask" and name.path.suffix.lower() == ".png":
            of_kind[name.kind].append(name)
    by_key = keys_of(images)
    choices = [(assigned(by_key, names), pattern) for (_, pattern), names in sorted(of_kind.items())]
    return max(choices, key=lambda choice: len(choice[0]), default=({}, ""))


def _by_split(images: list[PictureName]) -> tuple[dict[str, range], list[PictureName], int]:
    """Return the splits, the images in their order, and the number of images outside of all splits."""
    depth = max(len(name.folders) for name in images)
    for place in range(depth):
        inside = [name for name in images if len(name.folders) > place]
        of_image = [SPLIT_NAMES.get(name.folders[place].lower().rstrip("0123456789")) for name in inside]
        if None in of_image:
            continue
        groups = {split: [n for n, one in zip(inside, of_image, strict=True) if one == split] for split in _SPLITS}
        if groups["train"] and (groups["validation"] or groups["test"]):
            splits, end = {}, 0
            for split, group in groups.items():
                splits[split] = range(end, end := end + len(group))
            if not splits["test"]:  # the field's usual validation set is what is held out
                splits["test"], splits["validation"] = splits["validation"], splits["test"]
            splits = {split: rows for split, rows in splits.items() if rows}
            return splits, [name for group in groups.values() for name in group], len(images) - len(inside)
    return {}, images, 0


def _stem(name: PictureName) -> Path:
    return name.path.with_suffix("")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in sorted(counts.items()))
