"""A person's own images, with and without masks."""

import numpy as np
import pytest
from PIL import Image

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.image_folder import ImageFolder
from pyro_lom.errors import UserError


@pytest.fixture
def folders(tmp_path):
    """Five images of 8x8 and their masks."""
    rng = np.random.default_rng(0)
    images, masks = tmp_path / "images", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    for k in range(5):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(images / f"{k}.png")
        Image.fromarray(rng.integers(0, 4, (8, 8), dtype=np.uint8)).save(masks / f"{k}.png")
    return images, masks


def pixels(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def read_all(reader, skip=False, place=None):
    damage = Damage("images", skip, [])
    return list(reader.blocks(place, damage)), damage.positions


def test_images_and_masks(folders):
    images, masks = folders
    reader = ImageFolder(images, None, masks, 1)
    [block], _ = read_all(reader)
    np.testing.assert_array_equal(block.images, pixels(images))
    np.testing.assert_array_equal(block.labels, pixels(masks))
    assert (reader.num_background, reader.total, block.factors, reader.notes(block.place)) == (1, 5, {}, [])
    assert reader.splits(5) == {"train": range(4), "test": range(4, 5)}


def test_images_alone_and_resized(folders):
    [block], _ = read_all(ImageFolder(folders[0], 4, None, 0))
    expected = Image.open(folders[0] / "0.png").resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(block.images[0], np.asarray(expected))
    assert block.labels is None


def test_goes_on_from_any_block(folders, monkeypatch):
    monkeypatch.setattr("pyro_lom.data.importers.block.BLOCK_BYTES", 2 * 8 * 8 * 3)
    reader = ImageFolder(*[folders[0], None, folders[1], 1])
    blocks, _ = read_all(reader)
    assert [len(block.images) for block in blocks] == [2, 2, 1]
    rest, _ = read_all(reader, place=blocks[0].place)
    np.testing.assert_array_equal(rest[0].labels, blocks[1].labels)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda images, masks: (images / "2.png").write_bytes(b"text"), "cannot read image .*2.png"),
        (lambda images, masks: Image.new("L", (8, 9)).save(masks / "2.png"), "masks/2.png is 9x8, its image 8x8"),
        (lambda images, masks: Image.new("RGB", (8, 8)).save(masks / "2.png"), "masks/2.png is of mode RGB"),
        (lambda images, masks: (masks / "2.png").write_bytes(b"text"), "cannot read image .*masks/2.png"),
    ],
)
def test_damage(folders, spoil, reason):
    spoil(*folders)
    with pytest.raises(UserError, match=f"^images: image 2 is damaged: .*{reason}"):
        read_all(ImageFolder(folders[0], None, folders[1], 1))
    [block], positions = read_all(ImageFolder(folders[0], None, folders[1], 1), skip=True)
    assert positions == ["image 2"]
    assert len(block.images) == len(block.labels) == 4


def test_refused_at_once(folders, tmp_path):
    images, masks = folders
    (masks / "3.png").unlink()
    with pytest.raises(UserError, match="1 images have no mask, the first lacking .*masks/3.png: add them"):
        ImageFolder(images, None, masks, 1)
    Image.new("RGB", (9, 8)).save(images / "0.png")
    with pytest.raises(UserError, match="0.png is 8x9, no square: pass --size, such as --size 64"):
        ImageFolder(images, None, None, 0)
