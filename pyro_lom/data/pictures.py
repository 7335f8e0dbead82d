"""Functions that read image files, which may be damaged, and that crop and resize the images."""

import os
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from pyro_lom.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
LARGEST = 8192  # pixels per side; a square RGB image of this size takes 200 MB of memory
_MAX_BYTES = 256 << 20
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"  # how a JPEG file begins, and how each scan of its pixels does
_BIT_DEPTH = 24  # position in a PNG file
_MAX_SCANS = 100  # of a progressive JPEG file; each takes the time of a whole picture


def image_paths(folder: Path) -> list[Path]:
    """Return the paths of the PNG and JPEG files in a folder, sorted by name. Subfolders are not searched.

    Names that begin with a dot are left out, since other systems store files such as `._a.png` next to `a.png`.

    Raises:
        UserError: the folder contains no images, or cannot be read.
    """
    try:
        paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}; name a folder of images") from error
    if not paths:
        raise UserError(f"no images in {folder}: expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return paths


def read_picture(path: Path, formats: Sequence[str] = ("PNG", "JPEG")) -> Image.Image:
    """Read a PNG or JPEG file into memory, turned upright as its EXIF data say, in the mode of the file.

    Pillow is limited to these formats, since others start programs. A JPEG file that contains several pictures, as
    cameras write it, counts as its first.

    Raises:
        UserError: the file is missing, damaged or no such image, is animated, or has more than 8192 pixels on a side or
            more than 8 bits per channel.
    """
    if not os.path.isfile(path):  # opening a pipe would block
        raise UserError(f"cannot read image {path} (no such file, or not an ordinary one); mend or remove it")
    try:
        content = _content(path)
        if content.startswith(_JPEG) and content.count(_SCAN) > _MAX_SCANS:
            raise UserError(f"{path} is stored in more than {_MAX_SCANS} scans; save it again")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes and odd metadata; what matters is checked below
            Image.open(BytesIO(content), formats=formats).verify()  # checksums, and the end, which `load` ignores
            image = Image.open(BytesIO(content), formats=formats)
            if max(image.size) > LARGEST:
                raise UserError(f"{path} is {size_text(image.size[::-1])}: make it smaller than {LARGEST} pixels")
            if image.format == "PNG" and image.is_animated:
                raise UserError(f"{path} is an animation of {image.n_frames} frames; save one of them")
            if image.format == "PNG" and _num_headers(content) > 1:  # of which Pillow uses the last
                raise UserError(f"{path} has two headers; save it again")
            if image.format == "PNG" and content[_BIT_DEPTH] > 8:  # Pillow would drop the lower bits
                raise UserError(f"{path} has more than 8 bits a channel; save it with 8")
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
    except UserError:
        raise
    except UnidentifiedImageError as error:
        expected = " or ".join(formats)
        raise UserError(
            f"cannot read image {path} (it is no {expected} file, or damaged); mend or remove it"
        ) from error
    except Exception as error:  # Pillow raises almost any on damage
        raise UserError(f"cannot read image {path} ({reason_of(error)}); mend or remove it") from error
    return image


def read_rgb(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Read an image file as RGB and bring it to `size`, (height, width), by `fit` with bilinear interpolation.

    Raises:
        UserError: `read_picture` fails, the image has transparent pixels, or is neither grey nor RGB.
    """
    image = read_picture(path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:  # colours of transparent pixels are arbitrary
            raise UserError(f"{path} has transparent pixels; put it on a background and save it without transparency")
    elif image.mode not in ("1", "L", "P", "RGB"):
        raise UserError(f"{path} is of mode {image.mode}; save it as grey or RGB")
    return np.asarray(fit(image.convert("RGB"), size, Image.Resampling.BILINEAR))


def read_labels(path: Path, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "H W"]:
    """Read a PNG file of labels, which are grey values or palette indices; bring it to `size` by nearest neighbours.

    Raises:
        UserError: `read_picture` fails, or the image is in colour or in 2-bit or 4-bit grey.
    """
    image = read_picture(path, formats=("PNG",))  # JPEG would mix the labels of neighbours
    if image.mode not in ("1", "L", "P"):
        raise UserError(f"{path} is of mode {image.mode}; labels are numbers 0..255: save it as 8-bit grey (mode L)")
    if image.mode == "L" and (bits := _content(path)[_BIT_DEPTH]) != 8:  # Pillow scales them to 0..255
        raise UserError(f"{path} has grey values of {bits} bits; labels are numbers 0..255: save it as 8-bit grey")
    values = Image.fromarray(np.asarray(image).astype(np.uint8))
    return np.asarray(fit(values, size, Image.Resampling.NEAREST))


def _content(path: Path) -> bytes:
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} has more than {_MAX_BYTES >> 20} MiB: save it in a smaller file")
    return path.read_bytes()


def _num_headers(png: bytes) -> int:
    place, number = 8, 0
    while place + 8 <= len(png):
        number += png[place + 4 : place + 8] == b"IHDR"
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    return number


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
