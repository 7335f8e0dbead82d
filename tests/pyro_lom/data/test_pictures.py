"""Pictures are read as they are, or refused in one line."""

import os
import zlib

import numpy as np
import pytest
from PIL import Image

from pyro_lom.data import pictures
from pyro_lom.data.pictures import fit, image_paths, read_labels, read_picture, read_rgb
from pyro_lom.errors import UserError


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
    resized = read_labels(tmp_path / "grey.png", (5, 5))
    np.testing.assert_array_equal(resized, labels[:, 1:11][1::2, 1::2])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_labels_in_colour_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "mask.png")
    with pytest.raises(UserError, match=f"mask.png is of mode {mode}; labels are numbers 0..255: save it as 8-bit"):
        read_labels(tmp_path / "mask.png")


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
        image_paths(tmp_path / "none")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="cannot read .*loop: Too many levels of symbolic links"):
        image_paths(tmp_path / "loop")

    def deny(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pictures.Path, "iterdir", deny)
    with pytest.raises(UserError, match="Permission denied; name a folder of images"):
        image_paths(tmp_path)
