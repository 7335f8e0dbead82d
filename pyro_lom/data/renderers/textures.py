"""Textures drawn by formulas. Each continues seamlessly where it is repeated."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

SIZE = 256
_V, _U = np.meshgrid(*2 * [(np.arange(SIZE) + 0.5) / SIZE], indexing="ij")  # down and to the right, in [0, 1]

Grey = Float[np.ndarray, "size size"]


def png(texture: UInt8[np.ndarray, "size size 3"]) -> bytes:
    """The texture as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(texture).save(file, "PNG")
    return file.getvalue()


def coloured(pattern: Grey, dark: tuple[int, ...], light: tuple[int, ...]) -> UInt8[np.ndarray, "size size 3"]:
    """From `dark`, where the pattern is 0, to `light`, where it is 1; both RGB."""
    colours = np.array(dark) + pattern.clip(0, 1)[..., None] * (np.array(light) - np.array(dark))
    return colours.round().astype(np.uint8)


def clouds(seed: int, steepness: float = 1.6, stretch: float = 1.0) -> Grey:
    """Noise whose amplitude falls as frequency^-steepness, in [0, 1]; `stretch` > 1 draws it out to the right."""
    down, right = np.fft.fftfreq(SIZE, 1 / SIZE)[:, None], np.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
    frequency = np.hypot(down, stretch * right)
    frequency[0, 0] = np.inf
    noise = np.fft.rfft2(np.random.default_rng(seed).normal(size=(SIZE, SIZE)))
    values = np.fft.irfft2(noise / frequency**steepness, s=(SIZE, SIZE))
    low, high = np.quantile(values, [0.02, 0.98])
    return ((values - low) / (high - low)).clip(0, 1)


def cells(rows: int, columns: int, offset: float, seed: int) -> tuple[Grey, Grey]:
    """A masonry of `rows` x `columns` cells, each next row moved by `offset` of a cell.

    Returns a random shade for each cell, and the distance to the cell's border in units of the texture.
    """
    row, down = np.divmod(_V * rows, 1)
    column, right = np.divmod(_U * columns + offset * row, 1)
    shades = np.random.default_rng(seed).random((rows, columns))
    distance = np.minimum(np.minimum(down, 1 - down) / rows, np.minimum(right, 1 - right) / columns)
    return shades[row.astype(int), column.astype(int) % columns], distance


def masonry(rows: int, columns: int, seed: int, *, offset: float = 0.5, joint: float = 0.012) -> Grey:
    """Bricks or tiles of differing shades, and dark joints of the width `joint`."""
    shades, distance = cells(rows, columns, offset, seed)
    return (distance > joint) * (0.45 + 0.35 * shades + 0.2 * clouds(seed + 1, 1.0))


def planks(rows: int, columns: int, seed: int) -> Grey:
    """Boards with a grain."""
    shades, distance = cells(rows, columns, 1 / 3, seed)
    return (distance > 0.004) * (0.2 + 0.4 * shades + 0.4 * clouds(seed + 1, 1.1, stretch=12))


def checks(count: int) -> Grey:
    """A chessboard of `count` x `count` fields, `count` being even."""
    return (np.floor(_V * count) + np.floor(_U * count)) % 2


def hexagons(columns: int) -> Grey:
    """Honeycomb: 1 inside of cells, 0 on their borders. Nearly regular, since it has to repeat."""
    rows = 2 * round(columns / np.sqrt(3))
    points = [((r + 0.5) / rows, (c + r % 2 / 2) / columns) for r in range(rows) for c in range(columns)]
    nearest = np.full((2, SIZE, SIZE), np.inf)
    for down, right in points:
        apart = np.hypot((_V - down + 0.5) % 1 - 0.5, (_U - right + 0.5) % 1 - 0.5)
        nearest = np.sort(np.concatenate([nearest, apart[None]]), axis=0)[:2]
    return ((nearest[1] - nearest[0]) * columns * 8).clip(0, 1)


def waves(count: int, seed: int) -> Grey:
    """Bands that a little noise bends, as in marble."""
    return 0.5 + 0.5 * np.sin(2 * np.pi * (count * (_U + _V) + 1.5 * clouds(seed, 1.8)))


def stripes(count: int) -> Grey:
    """Upright stripes."""
    return (_U * count % 1 < 0.5).astype(float)
