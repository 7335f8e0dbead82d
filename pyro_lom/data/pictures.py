"""Functions that read image files, which may be damaged, and that crop and resize the images."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from pyro_lom.errors import UserError

LARGEST = 8192  # pixels per side; a square RGB image of this size takes 200 MB of memory
_MAX_BYTES = 256 << 20
_JPEG, _SCAN = b"\xff\xd8", b"\xff\xda"  # how a JPEG file begins, and how each scan of its pixels does
_BIT_DEPTH = 24  # position in a PNG file
_MAX_SCANS = 100  # of a progressive JPEG file; each takes the time of a whole picture


def read_picture(path: Path, formats: Sequence[str] = ("PNG", "JPEG")) -> Image.Image:
    """Read a PNG or JPEG file into memory, turned upright as its EXIF data say, in the mode of the file.

    Pillow is limited to these formats, since others start programs. A JPEG file that contains several pictures, as
    cameras write it, counts as its first.

    Raises:
        UserError: the file is missing, damaged or no such image, is animated, has a palette without colours, or has
            more than 8192 pixels on a side or more than 8 bits per channel.
    """
    if not os.path.isfile(path):  # opening a pipe would block
        raise UserError(f"cannot read image {path} (no such file, or not an ordinary one); mend or remove it")
    with decoding(path, formats):
        content = _content(path)
        if content.startswith(_JPEG) and content.count(_SCAN) > _MAX_SCANS:
            raise UserError(f"{path} is stored in more than {_MAX_SCANS} scans; save it again")
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
        if image.mode == "P" and not (image.palette and image.palette.palette):
            raise UserError(f"{path} has a palette without colours; save it again")
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    return image


@contextmanager
def decoding(path: Path, formats: Sequence[str] = ("PNG", "JPEG")) -> Iterator[None]:
    """Convert errors of Pillow into UserErrors, also those of converting what `read_picture` returns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes and odd metadata; what matters is checked
            yield
    except UserError:
        raise
    except UnidentifiedImageError as error:
        expected = " or ".join(formats)
        raise UserError(
            f"cannot read image {path} (it is no {expected} file, or damaged); mend or remove it"
        ) from error
    except Exception as error:  # Pillow raises almost any on damage
        raise UserError(f"cannot read image {path} ({reason_of(error)}); mend or remove it") from error


def read_rgb(path: Path) -> tuple[Image.Image, bool]:
    """Read an image file as RGB on a white background. Also return whether the background shows through.

    Raises:
        UserError: `read_picture` fails, or the image is neither grey nor RGB.
    """
    image = read_picture(path)
    with decoding(path):
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema()[0] < 255:
                return on_white(image), True
        elif image.mode not in ("1", "L", "P", "RGB"):
            raise UserError(f"{path} is of mode {image.mode}; save it as grey or RGB")
        return image.convert("RGB"), False


def on_white(image: Image.Image) -> Image.Image:
    """Lay an RGBA image on white, since the colours of transparent pixels are arbitrary."""
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def read_labels(path: Path) -> UInt8[np.ndarray, "H W"]:
    """Read a PNG file of labels, which are grey values or palette indices.

    Raises:
        UserError: `read_picture` fails, or the image is in colour or in 2-bit or 4-bit grey.
    """
    image = read_picture(path, formats=("PNG",))  # JPEG would mix the labels of neighbours
    if image.mode not in ("1", "L", "P"):
        raise UserError(f"{path} is of mode {image.mode}; labels are numbers 0..255: save it as 8-bit grey (mode L)")
    if image.mode == "L" and (bits := _content(path)[_BIT_DEPTH]) != 8:  # Pillow scales them to 0..255
        raise UserError(f"{path} has grey values of {bits} bits; labels are numbers 0..255: save it as 8-bit grey")
    with decoding(path):
        return np.asarray(image).astype(np.uint8)


def read_mask(path: Path) -> Bool[np.ndarray, "H W"]:
    """Read a PNG file that shows one object: black or palette index 0 outside, and white or another index inside.

    Raises:
        UserError: `read_picture` fails, or the image is in colour.
    """
    image = read_picture(path, formats=("PNG",))
    with decoding(path):
        values = np.asarray(image)
    if image.mode in ("RGB", "RGBA") and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    elif image.mode not in ("1", "L", "P"):
        raise UserError(f"{path} is of mode {image.mode}; the mask of one object is black and white: save it as grey")
    return values > (127 if image.mode != "P" and values.max() > 1 else 0)


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


def fit(
    image: Image.Image, size: tuple[int, int] | None, resampling: Image.Resampling, *, pad: bool = False
) -> Image.Image:
    """Bring an image to `size`, (height, width): cropped about the centre to its aspect ratio, and resized.

    With `pad`, an image that is larger is made smaller, and gets borders of black, or of label 0. A `size` of None
    changes nothing.
    """
    if size is None or size == (image.height, image.width):
        return image
    scale = min(image.height / size[0], image.width / size[1])
    if pad:
        scale = max(image.height / size[0], image.width / size[1], 1)
        height, width = (max(round(length / scale), 1) for length in (image.height, image.width))
        padded = Image.new(image.mode, (size[1], size[0]))
        padded.paste(image.resize((width, height), resampling), ((size[1] - width) // 2, (size[0] - height) // 2))
        return padded
    height, width = (max(round(length * scale), 1) for length in size)
    top, left = (image.height - height) // 2, (image.width - width) // 2
    return image.crop((left, top, left + width, top + height)).resize((size[1], size[0]), resampling)


def fit_pixels(
    pixels: UInt8[np.ndarray, "H W *C"],
    size: tuple[int, int] | None,
    resampling: Image.Resampling,
    *,
    pad: bool = False,
) -> UInt8[np.ndarray, "h w *C"]:
    """Return `fit` of an array: labels (H, W), or an image of 1 or 3 channels."""
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    fitted = np.asarray(fit(picture, size, resampling, pad=pad))
    return fitted.reshape(*fitted.shape[:2], *pixels.shape[2:])


def size_notes(place: str | Path, sizes: Mapping[tuple[int, int], int], size: tuple[int, int], pad: bool) -> list[str]:
    """Return one line with the sizes of images, by number of images, and the size that they were brought to, or none.

    Sizes are (height, width).
    """
    if set(sizes) == {size}:
        return []
    is_in_shape = all(height * size[1] == width * size[0] for height, width in sizes)
    how = "padded with black" if pad else "resized" if is_in_shape else "cropped and resized"
    common = max(sizes, key=lambda one: sizes[one])
    others = f" and {len(sizes) - 1:,} other sizes" if len(sizes) > 1 else ""
    return [f"{place}: images of {size_text(common)}{others} (height x width) are {how} to {size_text(size)}"]


def transparency_note(place: str | Path, number: int) -> str:
    """Return the line about images whose background was transparent."""
    return f"{place}: {number:,} images have transparent pixels, which are laid on white"


def size_text(size: tuple[int, ...]) -> str:
    """Format a size: (64, 96) becomes "64x96"."""
    return "x".join(str(length) for length in size)


def reason_of(error: Exception) -> str:
    """Return the reason in one line: the text of `errno` if it is set, since h5py's messages contain addresses."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or "damaged"
