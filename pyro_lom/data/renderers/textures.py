"""Textures computed by formulas. They can be repeated without visible seams."""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIZE = 256
_V, _U = np.meshgrid(*2 * [(np.arange(SIZE) + 0.5) / SIZE], indexing="ij")  # down and right, within [0, 1]

Grey = Float[np.ndarray, "size size"]
Texture = tuple[Callable[[], Grey], tuple[int, ...], tuple[int, ...], str]
"""A function that draws a pattern, RGB colours where it is 0 and where it is 1, and repetitions across and down."""


def materials(surface: str, textures: dict[str, Texture], attributes: str = "") -> tuple[list[str], dict[str, bytes]]:
    """Return MJCF of materials named `surface`0, `surface`1, ..., and the PNG files that the MJCF refers to."""
    assets, files = [], {}
    for k, (name, (draw, dark, light, repetitions)) in enumerate(textures.items()):
        files[f"{name}.png"] = png(coloured(draw(), dark, light))
        assets.append(f'<texture name="{name}" type="2d" file="{name}.png"/>')
        assets.append(f'<material name="{surface}{k}" texture="{name}" texrepeat="{repetitions}" {attributes}/>')
    return assets, files


def png(texture: UInt8[np.ndarray, "size size 3"]) -> bytes:
    """Return the texture as the bytes of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(texture).save(file, "PNG")
    return file.getvalue()


def coloured(pattern: Grey, dark: tuple[int, ...], light: tuple[int, ...]) -> UInt8[np.ndarray, "size size 3"]:
    """Return colours interpolated from `dark`, where the pattern is 0, to `light`, where it is 1."""
    colours = np.array(dark) + pattern.clip(0, 1)[..., None] * (np.array(light) - np.array(dark))
    return colours.round().astype(np.uint8)


def clouds(seed: int, steepness: float = 1.6, stretch: float = 1.0) -> Grey:
    """Return noise in [0, 1] whose amplitude falls as frequency^-steepness; `stretch` > 1 elongates it horizontally."""
    down, right = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
    frequency = np.hypot(down, stretch * right)
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))
    values = np.fft.irfft2(noise / frequency**steepness, s=(SIZE, SIZE))
    low, high = np.quantile(values, [0.02, 0.98])
    return ((values - low) / (high - low)).clip(0, 1)


def cells(rows: int, columns: int, offset: float, seed: int) -> tuple[Grey, Grey]:
    """Divide the texture into `rows` x `columns` cells. Each row is shifted by `offset` cells from the row above.

    Returns, for each pixel, the random shade of its cell and the distance to the cell's border in texture widths.
    """
    row, down = np.divmod(_V * rows, 1)
    column, right = np.divmod(_U * columns + offset * row, 1)
    shades = np.random.default_rng(seed).random((rows, columns))
    distance = np.minimum(np.minimum(down, 1 - down) / rows, np.minimum(right, 1 - right) / columns)
    return shades[row.astype(int), column.astype(int) % columns], distance


def masonry(rows: int, columns: int, seed: int, *, offset: float = 0.5, joint: float = 0.012) -> Grey:
    """Return bricks or tiles of different shades. Joints are dark and reach `joint` into each cell."""
    shades, distance = cells(rows, columns, offset, seed)
    return (distance > joint) * (0.45 + 0.35 * shades + 0.2 * clouds(seed + 1, 1.0))


def planks(rows: int, columns: int, seed: int) -> Grey:
    """Return boards with a horizontal grain."""
    shades, distance = cells(rows, columns, 1 / 3, seed)
    return (distance > 0.004) * (0.2 + 0.4 * shades + 0.4 * clouds(seed + 1, 1.1, stretch=12))


def checks(count: int) -> Grey:
    """Return a chessboard of `count` x `count` fields; `count` must be even."""
    return (np.floor(_V * count) + np.floor(_U * count)) % 2


def hexagons(columns: int) -> Grey:
    """Return a honeycomb: 1 inside cells, 0 on borders. Cells are not exactly regular, since they must repeat."""
    rows = 2 * round(columns / np.sqrt(3))
    points = [((r + 0.5) / rows, (c + r % 2 / 2) / columns) for r in range(rows) for c in range(columns)]
    nearest = np.full((2, SIZE, SIZE), np.inf)
    for down, right in points:
        apart = np.hypot((_V - down + 0.5) % 1 - 0.5, (_U - right + 0.5) % 1 - 0.5)
        nearest = np.sort(np.concatenate([nearest, apart[None]]), axis=0)[:2]
    return ((nearest[1] - nearest[0]) * columns * 8).clip(0, 1)


def waves(count: int, seed: int) -> Grey:
    """Return diagonal bands, distorted by noise, as in marble."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * (count * (_U + _V) + 1.5 * clouds(seed, 1.8)))


def stripes(count: int) -> Grey:
    """Return vertical stripes."""
    return (_U * count % 1 < 0.5).astype(float)
