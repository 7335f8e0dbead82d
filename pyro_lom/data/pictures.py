"""Functions that read image files, which may be damaged, and that crop and resize the images."""

import os
import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pyro_lom.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 8192  # pixels per side; a square RGB image of this size takes 200 MB of memory


def image_paths(folder: Path) -> list[Path]:
    """Return the paths of the PNG and JPEG files in a folder, sorted by name. Subfolders are not searched.

    Raises:
        UserError: the folder contains no images, or cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; name a folder of images") from error
    if not paths:
        raise UserError(f"no images in {folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def read_picture(path: Path) -> Image.Image:
    """Read an image file into memory, in the mode and size of the file.

    Raises:
        UserError: the file is missing, is damaged, is not an image, or has more than 8192 pixels on a side.
    """
    try:
        if not path.is_file():  # opening a pipe would block
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
    """Read an image file as RGB and bring it to `size`, (height, width), by `fit` with bilinear interpolation.

    Raises:
        UserError: `read_picture` fails, or the image has more than 8 bits per channel.
    """
    image = read_picture(path)
    if image.mode.startswith(("I", "F")):  # Pillow would clip large values to white
        raise UserError(f"{path} has more than 8 bits a channel (mode {image.mode}); save it with 8")
    return np.asarray(fit(image.convert("RGB"), size, Image.Resampling.BILINEAR))


def read_labels(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
    """Read a file of labels, stored as grey values or palette indices, and bring it to `size` by nearest neighbours.

    Raises:
        UserError: `read_picture` fails, or the image is in colour or has more than 8 bits.
    """
    image = read_picture(path)
    if image.mode not in ("1", "L", "P"):
        raise UserError(f"{path} is of mode {image.mode}; labels are numbers 0..255: save it as 8-bit grey (mode L)")
    values = Image.fromarray(np.asarray(image).astype(np.uint8))
    return np.asarray(fit(values, size, Image.Resampling.NEAREST))


def fit(image: Image.Image, size: tuple[int, int] | None, resampling: Image.Resampling) -> Image.Image:
    """Crop about the centre to the aspect ratio of `size`, (height, width), and resize; None changes nothing."""
    if size is None or size == (image.height, image.width):
        return image
    scale = min(image.height / size[0], image.width / size[1])
    height, width = (max(round(length * scale), 1) for length in size)
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resampling)


def size_text(size: tuple[int, ...]) -> str:
    """Format a size: (64, 96) becomes "64x96"."""
    return "x".join(str(length) for length in size)


def reason_of(error: Exception) -> str:
    """Return the reason in one line: the text of `errno` if it is set, since h5py's messages contain addresses."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())
