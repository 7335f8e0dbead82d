"""A person's own images, with and without masks."""

import numpy as np
import pytest
from PIL import Image

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.image_folder import ClevrTex, ImageFolder
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
    with pytest.raises(UserError, match="1 images have no mask in .*masks, the first being .*images/3.png: add them"):
        ImageFolder(images, None, masks, 1)
    Image.new("RGB", (9, 8)).save(images / "0.png")
    with pytest.raises(UserError, match="0.png is 8x9, no square: pass --size, such as --size 64"):
        ImageFolder(images, None, None, 0)


def labels_of(seed, size=(240, 320), num=4):
    blocks = np.random.default_rng(seed).integers(0, num, (size[0] // 8, size[1] // 8), dtype=np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


def palette(labels):
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel())
    image.putpalette([*range(0, 256), *range(0, 256), *range(0, 256)])
    return image


@pytest.fixture
def clevrtex(tmp_path):
    """ClevrTex's tree: twelve scenes in folders of which the last comes first by name."""
    for number in range(12):
        folder = tmp_path / "clevrtex_full" / str(9 + number // 6)
        folder.mkdir(parents=True, exist_ok=True)
        start, image = folder / f"CLEVRTEX_full_{number:06d}", np.full((240, 320, 3), 10 * number, np.uint8)
        Image.fromarray(image).save(f"{start}.png")
        palette(labels_of(number)).save(f"{start}_flat.png")
        for other in ("depth_0001", "albedo_0001", "normal_0001", "shadow_0001"):
            Image.new("RGB", (320, 240), "white").save(f"{start}_{other}.png")
        (folder / f"CLEVRTEX_full_{number:06d}.json").write_text("{}")
    return tmp_path / "clevrtex_full"


def test_clevrtex(clevrtex):
    reader = ClevrTex(clevrtex, 192)
    [block], _ = read_all(reader)
    assert block.images[:, 0, 0, 0].tolist() == [10 * number for number in range(12)]
    np.testing.assert_array_equal(block.labels, [labels_of(number)[24:216, 64:256] for number in range(12)])
    assert reader.splits(12) == {"test": range(1), "validation": range(1, 2), "train": range(2, 12)}
    assert (reader.num_background, reader.remarks()[0].partition("; left out")[0]) == (
        1,
        f"{clevrtex}: 12 *.png as images; masks *_flat.png",
    )
    [few], _ = read_all(ClevrTex(clevrtex, 128, num=3))
    assert few.images[:, 0, 0, 0].tolist() == [0, 10, 20] and few.images.shape == (3, 128, 128, 3)
    Image.new("RGB", (64, 64)).save(clevrtex / "9" / "CLEVRTEX_full_000000.png")
    Image.new("L", (64, 64)).save(clevrtex / "9" / "CLEVRTEX_full_000000_flat.png")
    with pytest.raises(UserError, match="000000.png is 64x64, but ClevrTex has images of 240x320"):
        read_all(ClevrTex(clevrtex, 128))


def test_frames_of_movi(tmp_path):
    """Kubric's frames: RGBA whose sky is transparent, and masks with a palette."""
    for video in range(2):
        for frame in range(3):
            folder = tmp_path / f"{video:04d}"
            folder.mkdir(exist_ok=True)
            image = np.full((32, 32, 4), 255, np.uint8)
            image[:16, :, :] = (90, 90, 90, 0)
            image[16:, :, :3] = 10 * (3 * video + frame)
            Image.fromarray(image).save(folder / f"rgba_{frame:05d}.png")
            palette(labels_of(frame, (32, 32))).save(folder / f"segmentation_{frame:05d}.png")
            Image.new("RGB", (32, 32)).save(folder / f"normal_{frame:05d}.png")
            Image.new("I;16", (32, 32)).save(folder / f"forward_flow_{frame:05d}.png")
    reader = ImageFolder(tmp_path, None, None, 1)
    [block], _ = read_all(reader)
    assert (block.images[:, :16] == 255).all()
    assert block.images[:, 16, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    np.testing.assert_array_equal(block.labels, [labels_of(frame, (32, 32)) for frame in (0, 1, 2, 0, 1, 2)])
    assert reader.notes(block.place) == [f"{tmp_path}: 6 images have transparent pixels, which are laid on white"]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB"])
@pytest.mark.parametrize("covers", [False, True])
def test_one_mask_for_each_object(tmp_path, mode, covers):
    """CLEVR_mask_i_k.png: white, or palette index 1, where object k is."""
    labels = [labels_of(number, (32, 32)) for number in range(3)]
    (tmp_path / "masks").mkdir()
    for number, one in enumerate(labels):
        Image.new("RGB", (32, 32)).save(tmp_path / f"CLEVR_image_{number}.png")
        for k, entity in enumerate(range(0 if covers else 1, 4)):
            inside = one == entity
            if mode == "P":
                image = palette(inside.astype(np.uint8))
            else:
                image = Image.fromarray(inside.astype(np.uint8) * 255).convert(mode)
            image.save(tmp_path / "masks" / f"CLEVR_mask_{number}_{k}.png")
    reader = ImageFolder(tmp_path, None, None, 1)
    [block], _ = read_all(reader)
    np.testing.assert_array_equal(block.labels, labels)
    assert reader.remarks() == [
        f"{tmp_path}: 3 *.png as images; masks masks/*.png",
        f"{tmp_path}: a label is the number of a mask; labels below 1 are background",
    ]
    Image.new("L", (8, 8)).save(tmp_path / "masks" / "CLEVR_mask_1_1.png")
    with pytest.raises(UserError, match="image 1 is damaged: .*CLEVR_mask_1_1.png is 8x8, its image 32x32"):
        read_all(reader)
    Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3)).save(tmp_path / "masks" / "CLEVR_mask_1_1.png")
    with pytest.raises(UserError, match="CLEVR_mask_1_1.png is of mode RGB; the mask of one object is black and white"):
        read_all(reader)


def test_several_masks_that_are_not_of_objects(folders):
    images, masks = folders
    Image.new("L", (8, 8)).save(masks / "3_color.png")
    with pytest.raises(UserError, match="has several masks, 3.png, 3_color.png: keep one, or number them by object"):
        ImageFolder(images, None, masks, 1)


def test_an_orientation_turns_image_and_mask(tmp_path):
    """A photograph that a camera stored on its side, and its upright mask."""
    labels = labels_of(0, (32, 48))
    upright = Image.fromarray(labels * 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    (tmp_path / "masks").mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    Image.fromarray(labels).save(tmp_path / "masks" / "a.png")
    [block], _ = read_all(ImageFolder(tmp_path, 32, None, 1))
    np.testing.assert_array_equal(block.labels[0], labels[:, 8:40])
    np.testing.assert_allclose(block.images[0, ..., 0], labels[:, 8:40] * 60.0, atol=4)


def test_splits_padding_and_a_share_of_each_split(tmp_path):
    for split, number in (("train", 8), ("test", 4)):
        (tmp_path / split).mkdir()
        for k in range(number):
            Image.new("RGB", (48, 32), (k, k, k)).save(tmp_path / split / f"{k}.png")
    reader = ImageFolder(tmp_path, 48, None, 0, num=6, pad=True)
    [block], _ = read_all(reader)
    assert reader.splits(6) == {"train": range(4), "test": range(4, 6)}
    assert block.images[:, 24, 0, 0].tolist() == [0, 1, 2, 3, 0, 1]
    assert not block.images[:, :8].any()
    assert reader.notes(block.place) == [f"{tmp_path}: images of 32x48 (height x width) are padded with black to 48x48"]
    (tmp_path / "train" / "1.png").write_bytes(b"text")
    _, positions = read_all(reader, skip=True)
    assert positions == ["image 1"]
    assert reader.splits(5) == {"train": range(3), "test": range(3, 5)}
