"""Pictures are read as they are, or refused in one line."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pyro_lom.data import folders
from pyro_lom.data.folders import find_pictures
from pyro_lom.data.pictures import fit, read_labels, read_mask, read_picture
from pyro_lom.data.pictures import read_rgb as read_with_background
from pyro_lom.errors import UserError


def read_rgb(path):
    return np.asarray(read_with_background(path)[0])


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 7, (10, 12), dtype=np.uint8)


def test_labels_are_grey_values_or_palette_indices(tmp_path, labels):
    Image.fromarray(labels).save(tmp_path / "grey.png")
    palette = Image.frombytes("P", (12, 10), labels.tobytes())
    palette.putpalette([255 - k for k in range(256) for _ in range(3)])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(labels > 3).save(tmp_path / "binary.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "grey.png"), labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png"), labels)
    np.testing.assert_array_equal(read_labels(tmp_path / "binary.png"), labels > 3)


def test_labels_are_never_mixed(tmp_path, labels):
    Image.fromarray(labels).save(tmp_path / "grey.png")
    found = Image.fromarray(read_labels(tmp_path / "grey.png"))
    resized = np.asarray(fit(found, (5, 5), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(resized, labels[:, 1:11][1::2, 1::2])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_labels_in_colour_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=f"mask.png is of mode {mode}; labels are numbers 0..255: save it as 8-bit"):
        read_labels(tmp_path / "mask.png")


def png(width, height, bits, colour, rows, *, before=b""):
    """A PNG file from its header and its rows of bytes. `before` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    content = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + content + chunk(b"IEND", b"")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


GREY, RGB, PALETTE, GREY_ALPHA = 0, 2, 3, 4


@pytest.mark.parametrize("before", [b"", chunk(b"PLTE", b""), chunk(b"tRNS", b"\0")])
def test_a_palette_without_colours_is_refused(tmp_path, before):
    (tmp_path / "a.png").write_bytes(png(8, 2, 8, PALETTE, [bytes(8)] * 2, before=before))
    for read in (read_rgb, read_labels, read_mask):
        with pytest.raises(UserError, match=r"a.png has a palette without colours; save it again$|cannot read image"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("method", ["convert", "has_transparency_data", "__array_interface__"])
def test_errors_of_conversions_are_told(tmp_path, method, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")

    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(Image.Image, method, fail if method == "convert" else property(fail))
    readers = {"__array_interface__": (read_labels, read_mask)}.get(method, (read_rgb,))
    for read in readers:
        with pytest.raises(UserError, match=r"cannot read image .*a.png \(damaged\); mend or remove it$"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_few_bits_would_be_scaled(tmp_path, bits):
    (tmp_path / "mask.png").write_bytes(png(8, 2, bits, GREY, [bytes(bits)] * 2))
    with pytest.raises(UserError, match=f"mask.png has grey values of {bits} bits; labels are numbers 0..255: save"):
        read_labels(tmp_path / "mask.png")


def test_labels_in_jpeg_would_be_mixed(tmp_path, labels):
    Image.fromarray(labels).save(tmp_path / "mask.png", format="JPEG")
    with pytest.raises(UserError, match="mask.png .it is no PNG file, or damaged.; mend or remove it"):
        read_labels(tmp_path / "mask.png")


@pytest.mark.parametrize("colour", [GREY, RGB, GREY_ALPHA])
def test_sixteen_bits_are_refused_in_every_mode(tmp_path, colour):
    row = bytes(16 * {GREY: 1, RGB: 3, GREY_ALPHA: 2}[colour])
    (tmp_path / "deep.png").write_bytes(png(8, 4, 16, colour, [row] * 4))
    for read in (read_rgb, read_labels):
        with pytest.raises(UserError, match="deep.png has more than 8 bits a channel; save it with 8$"):
            read(tmp_path / "deep.png")


def test_a_second_header_would_scale_labels(tmp_path):
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 2, 4, GREY, 0, 0, 0))
    (tmp_path / "mask.png").write_bytes(png(8, 2, 8, GREY, [bytes(4)] * 2, before=second))
    with pytest.raises(UserError, match="mask.png has two headers; save it again$"):
        read_labels(tmp_path / "mask.png")


def test_a_picture_of_many_scans_takes_for_ever(tmp_path):
    Image.new("L", (16, 16), 90).save(tmp_path / "a.jpg", progressive=True)
    assert (read_rgb(tmp_path / "a.jpg") == 90).all()
    content = (tmp_path / "a.jpg").read_bytes()
    last = content.rindex(b"\xff\xda")
    (tmp_path / "a.jpg").write_bytes(content[:last] + 200 * content[last:-2] + content[-2:])
    with pytest.raises(UserError, match="a.jpg is stored in more than 100 scans; save it again$"):
        read_rgb(tmp_path / "a.jpg")


FORMATS = ["BMP", "GIF", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PDF", "JPEG2000", "EPS"]


@pytest.mark.parametrize("name", FORMATS)
def test_other_formats_are_refused_under_any_name(tmp_path, name, monkeypatch):
    """Pillow starts Ghostscript for EPS."""
    monkeypatch.setattr("subprocess.Popen.__init__", lambda *_, **__: pytest.fail("a program was started"))
    Image.new("RGB", (16, 16), "red").save(tmp_path / "file.png", format=name)
    with pytest.raises(UserError, match="file.png .it is no PNG or JPEG file, or damaged.; mend or remove it"):
        read_rgb(tmp_path / "file.png")


def test_a_jpeg_file_may_be_called_png(tmp_path):
    Image.new("L", (4, 4), 90).save(tmp_path / "a.png", format="JPEG")
    assert (read_rgb(tmp_path / "a.png") == 90).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path, format, orientation):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16] = 255  # the upper left quarter
    stored = Image.fromarray(pixels)
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's numbers of the inverse operations
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", format=format, exif=exif, **({"quality": 100} if format == "JPEG" else {}))
    np.testing.assert_allclose(read_rgb(tmp_path / "a.png").astype(int), pixels, atol=3)


def test_metadata_that_are_damaged_do_not_turn_an_image(tmp_path):
    Image.new("RGB", (4, 6), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_rgb(tmp_path / "a.jpg").shape == (6, 4, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_transparent_pixels_have_no_colour(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode in ("P", "L"):
        image = Image.new(mode, (4, 4), 1)
        if mode == "P":
            image.putpalette([255, 0, 0, 0, 255, 0])
        image.save(path, transparency=1)
    else:
        image = Image.new(mode, (4, 4))
        image.putalpha(Image.new("L", (4, 4), 254))
        image.save(path)
    image, is_transparent = read_with_background(path)
    assert is_transparent
    assert (np.asarray(image) == (1 if mode in ("RGBA", "LA") else 255)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_modes_become_rgb(tmp_path, mode):
    grey = Image.fromarray(np.kron([[0, 255], [255, 0]], np.ones((4, 4))).astype(np.uint8))
    grey.convert(mode).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), np.asarray(grey)[..., None].repeat(3, -1))


def test_colours_for_printers_are_refused(tmp_path):
    Image.new("CMYK", (4, 4)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="a.jpg is of mode CMYK; save it as grey or RGB$"):
        read_rgb(tmp_path / "a.jpg")


def test_animations_are_refused(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="a.png is an animation of 3 frames; save one of them$"):
        read_rgb(tmp_path / "a.png")


def test_of_several_pictures_of_a_camera_the_first_counts(tmp_path):
    frames = [Image.new("L", (8, 8), value) for value in (40, 200)]
    frames[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=frames[1:])
    assert (read_rgb(tmp_path / "a.jpg") == 40).all()


@pytest.mark.parametrize(("width", "height"), [(0, 4), (4, 0), (0, 0)])
def test_sides_of_zero(tmp_path, width, height):
    (tmp_path / "a.png").write_bytes(png(width, height, 8, GREY, [bytes(width)] * height))
    with pytest.raises(UserError, match="cannot read image .*a.png"):
        read_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("cut", [5, 13, 30, 0.05, 0.5, 0.95])
def test_files_that_are_cut_short(tmp_path, name, cut):
    path = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    size = path.stat().st_size
    os.truncate(path, size - (cut if cut >= 1 else int(cut * size)))
    with pytest.raises(UserError, match=f"cannot read image .*{name}"):
        read_rgb(path)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_metadata_that_unpack_to_gigabytes(tmp_path, kind):
    packed = zlib.compress(bytes(200 << 20))
    content = {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\1\0\0\0"}[kind] + packed
    (tmp_path / "a.png").write_bytes(png(4, 4, 8, GREY, [bytes(4)] * 4, before=chunk(kind, content)))
    with pytest.raises(UserError, match="cannot read image .*a.png .*; mend or remove it"):
        read_rgb(tmp_path / "a.png")


def test_files_of_more_bytes_than_a_picture_has(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    os.truncate(tmp_path / "a.png", 300 << 20)
    with pytest.raises(UserError, match="a.png has more than 256 MiB: save it in a smaller file"):
        read_rgb(tmp_path / "a.png")


def test_files_of_another_system_are_left_out(tmp_path):
    for name in ("a.png", "._a.png", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"")
    assert find_pictures(tmp_path).images == [tmp_path / "a.png"]


def test_fit_keeps_the_centre():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (np.asarray(fit(Image.fromarray(wide), (5, 5), Image.Resampling.BILINEAR)) == 200).all()
    assert np.asarray(fit(Image.fromarray(wide), None, Image.Resampling.BILINEAR)).shape == (10, 30, 3)


def test_what_is_no_image(tmp_path):
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    for name, reason in [
        ("text.png", "cannot read image .*text.png .*; mend or remove it"),
        ("folder.png", "cannot read image .*folder.png .no such file, or not an ordinary one.; mend or remove it"),
        ("loop.png", "cannot read image .*loop.png .no such file"),
        ("pipe.png", "cannot read image .*pipe.png .no such file"),
        ("none.png", "cannot read image .*none.png .no such file"),
    ]:
        with pytest.raises(UserError, match=reason):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("side", [8193, 20_000, 60_000])
def test_large_images_are_refused_before_they_are_unpacked(tmp_path, side):
    Image.new("1", (side, 5)).save(tmp_path / "large.png")
    content = bytearray((tmp_path / "large.png").read_bytes())
    content[20:24] = side.to_bytes(4, "big")  # the header claims a square
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    (tmp_path / "large.png").write_bytes(content)
    with pytest.raises(UserError, match="large.png"):
        read_rgb(tmp_path / "large.png")


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot read .*none: No such file or directory; name a folder of images"):
        find_pictures(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot read .*loop: Too many levels of symbolic links"):
        find_pictures(tmp_path / "loop")

    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folders.os, "scandir", deny)
    with pytest.raises(UserError, match="Permission denied; name a folder of images"):
        find_pictures(tmp_path)
