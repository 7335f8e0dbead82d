"""Names of pictures, which decide which files are images and which belong to an image, such as masks.

In `S_001.png` and `S_001_flat.png`, `rgba_00000.png` and `segmentation_00000.png`, `images/1.png` and `masks/1.png`, or
`CLEVR_image_1.png` and `CLEVR_mask_1_0.png`, the second file belongs to the first: without a word such as "mask", their
names are equal. A word counts only if most files that contain it belong to an image.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_WORDS = {
    "image": "image images img imgs rgb rgba color colour frame frames jpegimages",
    "mask": "mask masks flat segmentation segmentations segmentationobject seg iseg label labels instance instances "
    "annotation annotations",
    "other": "depth normal normals albedo shadow flow disparity coordinates segmentationclass semantic preview",
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words.split()}
_ONLY_MASKS = ("mask", "masks", "segmentation", "segmentations", "segmentationobject", "iseg", "annotations")
"""Words that PNG files of images hardly ever have in their names."""
Key = tuple[tuple[str, ...], tuple[str, ...]]
"""The folders and the words of a name by which a mask is assigned to an image."""


class PictureName(NamedTuple):
    """The name of a file below the folder, taken apart."""

    path: Path
    all_folders: tuple[str, ...]
    folders: tuple[str, ...]  # without words for roles
    tokens: tuple[str, ...]  # runs of letters and of digits
    kind: tuple[str, str] | None  # word that makes it a mask or something else, and the pattern of its name

    @property
    def role(self) -> str:
        return _ROLES.get(self.kind[0].lower(), "other") if self.kind else "image"

    def names(self) -> Iterator[Key]:
        """Yield the name without its role, the most complete first."""
        places = [place for place, token in enumerate(self.tokens) if token.lower() in _ROLES]
        yield self.folders, self.tokens
        for is_wide in (False, True) if places else ():
            yield self.folders, _without(self.tokens, places[-1], is_wide)

    def images(self) -> Iterator[Key]:
        """Yield the names that the image to which this file belongs may have, the most likely first."""
        for folders, tokens in self.names():
            yield folders, tokens
            if tokens and tokens[-1].isdecimal():  # the number of an object
                yield folders, tokens[:-1]
        if self.folders:  # a folder of the masks of one image
            yield self.folders[:-1], _tokens(self.folders[-1])


def parsed(path: Path, folder: Path) -> PictureName:
    """Take the name of a file below `folder` apart."""
    *folders, _ = path.relative_to(folder).parts
    tokens = _tokens(path.stem)
    of_folders = [name for name in folders if _ROLES.get(name.lower(), "image") != "image"]
    of_tokens = [token for token in tokens if token.lower() in _ROLES]
    kind = None
    if of_folders:
        kind = of_folders[-1], f"{of_folders[-1]}/*{path.suffix}"
    elif of_tokens and _ROLES[of_tokens[-1].lower()] != "image":
        kind = of_tokens[-1], _pattern(path, of_tokens[-1])
    without = tuple(name for name in folders if name.lower() not in _ROLES)
    return PictureName(path, tuple(folders), without, tokens, kind)


def _tokens(name: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W\d_]+|\d+", name))


def _pattern(path: Path, word: str) -> str:
    before, _, after = path.stem.rpartition(word)
    return f"{'*_' if before else ''}{word}{'_*' if after else ''}{path.suffix}"


def _without(tokens: tuple[str, ...], place: int, wide: int) -> tuple[str, ...]:
    """Leave out the word at `place`, and with `wide` the words beside it, as in `object_coordinates_00000`."""
    first, last = place, place + 1
    while wide and first > 0 and not tokens[first - 1].isdecimal():
        first -= 1
    while wide and last < len(tokens) and not tokens[last].isdecimal():
        last += 1
    return tokens[:first] + tokens[last:]


def sorted_out(names: list[PictureName]) -> tuple[list[PictureName], list[PictureName]]:
    """Return the images, and the files that belong to images."""
    of_kind: dict[str, list[PictureName]] = defaultdict(list)
    for name in names:
        of_kind[name.kind[0].lower() if name.kind else ""].append(name)
    images, companions = of_kind.pop("", []), []
    by_key = keys_of(images)
    for kind in sorted(of_kind, key=lambda kind: min(len(name.tokens) for name in of_kind[kind])):
        num_assigned = sum(map(len, assigned(by_key, of_kind[kind]).values()))
        if 2 * num_assigned >= len(of_kind[kind]) or (images and _are_masks(of_kind[kind])):
            companions += of_kind[kind]
        else:
            images += [name._replace(folders=name.all_folders, kind=None) for name in of_kind[kind]]
            by_key = keys_of(images)
    known = {(name.path.parent, name.tokens) for name in images}
    for place, name in enumerate(images):
        for end in range(len(name.tokens) - 1, 0, -1):  # S_001_anything belongs to S_001
            is_word = name.tokens[end - 1].isdecimal() and not name.tokens[end].isdecimal()
            if is_word and (name.path.parent, name.tokens[:end]) in known:
                word = name.tokens[end]
                images[place] = name._replace(kind=(word, _pattern(name.path, word)))
    companions += [name for name in images if name.kind]
    return sorted(name for name in images if not name.kind), companions


def _are_masks(names: list[PictureName]) -> bool:
    return all(name.kind[0].lower() in _ONLY_MASKS and name.path.suffix.lower() == ".png" for name in names)


def keys_of(images: Iterable[PictureName]) -> dict[Key, Path]:
    """Return the images by the names that files which belong to them may have."""
    by_key: dict[Key, Path] = {}
    for name in images:
        for key in name.names():
            by_key.setdefault(key, name.path)
    for name in images:  # a full name goes before a part of another
        by_key[name.folders, name.tokens] = name.path
    return by_key


def assigned(by_key: dict[Key, Path], companions: Iterable[PictureName]) -> dict[Path, list[Path]]:
    """Return the companions of each image that has some."""
    found = defaultdict(list)
    for name in companions:
        if key := next((key for key in name.images() if key in by_key), None):
            found[by_key[key]].append(name.path)
    return dict(found)
