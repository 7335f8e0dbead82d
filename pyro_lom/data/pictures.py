"""Pictures in files: read without trust, cropped and resized."""

import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pyro_lom.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 8192  # pixels on a side: what a camera makes, and no more memory than 200 MB


def image_paths(folder: Path) -> list[Path]:
    """The PNG and JPEG files of a folder, not of those inside it, in order of name.

    Raises:
        UserError: there are none, or the folder cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; name a folder of images") from error
    if not paths:
        raise UserError(f"no images in {folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def read_picture(path: Path) -> Image.Image:
    """An image in memory, as the file has it.

    Raises:
        UserError: there is no such file, it holds no image, or a damaged or a very large one.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise UserError(f"cannot read image {path} (no such file, or not an ordinary one); mend or remove it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is checked below
            with Image.open(path) as image:
                if max(image.size) > LARGEST:
                    raise UserError(f"{path} is {size_text(image.size[::-1])}: make it smaller than {LARGEST} pixels")
                image.load()
                return image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image {path} ({reason_of(error)}); mend or remove it") from error


def read_rgb(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """An image as RGB; with a `size`, (height, width), cropped about its centre to that aspect and resized.

    Raises:
        UserError: as `read_picture`, or the image has more than 8 bits a channel.
    """
    image = read_picture(path)
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white
        raise UserError(f"{path} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    return np.asarray(fit(image.convert("RGB"), size, Image.Resampling.BILINEAR))


def read_labels(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
    """An image whose values, grey or palette indices, are labels, brought to `size` as `read_rgb` does.

    Raises:
        UserError: as `read_picture`, or the image is in colour or has more than 8 bits.
    """
    image = read_picture(path)
    if image.mode not in ("1", "L", "P"):
        raise UserError(f"{path} is of mode {image.mode}; labels are numbers 0..255: save it as 8-bit grey (mode L)")
    values = Image.fromarray(np.asarray(image).astype(np.uint8))
    return np.asarray(fit(values, size, Image.Resampling.NEAREST))


def fit(image: Image.Image, size: tuple[int, int] | None, resampling: Image.Resampling) -> Image.Image:
    """The largest centred part of the aspect of `size`, (height, width), resized to it; None leaves all as it is."""
    if size is None or size == (image.height, image.width):
        return image
    scale = min(image.height / size[0], image.width / size[1])
    height, width = (max(round(length * scale), 1) for length in size)
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resampling)


def size_text(size: tuple[int, ...]) -> str:
    """(64, 96) as 64x96."""
    return "x".join(str(length) for length in size)


def reason_of(error: Exception) -> str:
    """One line: h5py's own messages carry dumps of addresses and times."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())
