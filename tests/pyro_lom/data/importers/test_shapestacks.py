"""The tree of ShapeStacks as it was published, and as it may be broken."""

import os

import numpy as np
import pytest
from PIL import Image

from pyro_lom.data.importers.block import Damage
from pyro_lom.data.importers.shapestacks import ShapeStacks
from pyro_lom.errors import UserError

STANDS, FALLS, HIGH = (
    "env_ccs-easy-h=2-vcom=0-vpsf=0-v=60",
    "env_blocks-hard-h=3-vcom=1-vpsf=0-v=7",
    "env_ccs-hard-h=6-vcom=0-vpsf=0-v=101",
)
SCENARIOS = {"train": [HIGH, STANDS], "eval": [FALLS], "test": ["env_ccs-easy-h=3-vcom=0-vpsf=2-v=9"]}
CAMERAS = (1, 2, 10)


def view(scenario, camera):
    """224x224 image and labels, different in each view."""
    rng = np.random.default_rng([camera, *scenario.encode()])
    labels = np.repeat(np.repeat(rng.integers(0, 7, (28, 28)), 8, 0), 8, 1)
    return rng.integers(0, 256, (224, 224, 3)).astype(np.uint8), labels.astype(np.uint8)


def write_map(path, labels):
    values = np.full((*labels.shape, 4), 255, np.uint8)
    values[..., :3] = 32 * labels[..., None]
    Image.fromarray(values).save(path, format="PNG")


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "shapestacks"
    (root / "splits" / "default").mkdir(parents=True)
    for split, scenarios in SCENARIOS.items():
        (root / "splits" / "default" / f"{split}.txt").write_text("\n".join(scenarios) + "\n")
        for scenario in scenarios:
            recordings, maps = root / "recordings" / scenario, root / "iseg" / scenario
            recordings.mkdir(parents=True)
            maps.mkdir(parents=True)
            (recordings / "log.txt").write_text("")
            for camera in CAMERAS:
                image, labels = view(scenario, camera)
                Image.fromarray(image).save(recordings / f"rgb-w=5-f=2-l=1-c=unique-cam_{camera}-mono-0.png")
                Image.fromarray(image).save(recordings / f"rgb-w=5-f=2-l=1-c=unique-cam_{camera}-mono-1.png")
                write_map(maps / f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map", labels)
    return root


def image_of(tree, scenario=STANDS, camera=2):
    return tree / "recordings" / scenario / f"rgb-w=5-f=2-l=1-c=unique-cam_{camera}-mono-0.png"


def map_of(tree, scenario=STANDS, camera=2):
    return tree / "iseg" / scenario / f"iseg-w=0-f=0-l=0-c=original-cam_{camera}-mono-0.map"


def read_all(reader, skip=False, place=None):
    damage = Damage("tree", skip, [])
    return list(reader.blocks(place, damage)), damage.positions


def test_views_labels_splits_and_factors(tree):
    reader = ShapeStacks(tree, 196)
    [block], _ = read_all(reader)
    splits = reader.splits(12)
    assert splits == {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}
    assert (reader.total, reader.num_background, reader.notes(block.place)) == (12, 1, [])
    heights = {STANDS: 2, FALLS: 3, HIGH: 6, SCENARIOS["test"][0]: 3}
    for split, published in (("train", "train"), ("validation", "eval"), ("test", "test")):
        found = {}
        for row in splits[split]:
            found[block.images[row].tobytes()] = (
                block.labels[row],
                *(int(block.factors[name][row, 0]) for name in ("num_blocks", "stands", "camera")),
            )
        for scenario in SCENARIOS[published]:
            for camera in CAMERAS:
                image, labels = view(scenario, camera)
                seen, height, stands, number = found.pop(image[14:210, 14:210].tobytes())
                np.testing.assert_array_equal(seen, labels[14:210, 14:210])
                assert (height, stands, number) == (heights[scenario], scenario in (STANDS, HIGH), camera)
        assert not found


def test_resized(tree):
    reader = ShapeStacks(tree, 64)
    [block], _ = read_all(reader)
    assert (block.images.shape, block.labels.shape) == ((12, 64, 64, 3), (12, 64, 64))
    crops = [view(FALLS, camera)[0][14:210, 14:210] for camera in CAMERAS]
    expected = [np.asarray(Image.fromarray(c).resize((64, 64), Image.Resampling.BILINEAR)) for c in crops]
    assert sorted(image.tobytes() for image in block.images[6:9]) == sorted(image.tobytes() for image in expected)


def test_order_is_always_the_same(tree):
    [first], _ = read_all(ShapeStacks(tree, 64))
    [second], _ = read_all(ShapeStacks(tree, 64))
    np.testing.assert_array_equal(first.images, second.images)


def test_a_share_of_each_split(tree):
    reader = ShapeStacks(tree, 64, num=6)
    [block], _ = read_all(reader)
    assert reader.splits(6) == {"train": range(3), "validation": range(3, 4), "test": range(4, 6)}
    assert len(np.unique(block.images.reshape(6, -1), axis=0)) == 6
    assert ShapeStacks(tree, 64, num=100).total == 12


def test_maps_beside_the_images(tree):
    [expected], _ = read_all(ShapeStacks(tree, 64))
    for path in (tree / "iseg").rglob("*.map"):
        os.replace(path, tree / "recordings" / path.parent.name / path.name)
    [block], _ = read_all(ShapeStacks(tree, 64))
    np.testing.assert_array_equal(block.labels, expected.labels)


def test_without_maps(tree):
    os.rename(tree / "iseg", tree / "elsewhere")
    reader = ShapeStacks(tree, 64)
    [block], _ = read_all(reader)
    assert block.labels is None
    assert reader.notes(block.place) == [f"there are no instance maps in {tree}: the scenes have no labels"]


def test_goes_on_from_any_block(tree, monkeypatch):
    monkeypatch.setattr("pyro_lom.data.importers.block.BLOCK_BYTES", 5 * 64 * 64 * 3)
    image_of(tree).write_bytes(b"")
    reader = ShapeStacks(tree, 64)
    blocks, positions = read_all(reader, skip=True)
    assert ([len(block.images) for block in blocks], len(positions)) == ([5, 5, 1], 1)
    splits = reader.splits(11)
    assert splits == {"train": range(5), "validation": range(5, 8), "test": range(8, 11)}
    again = ShapeStacks(tree, 64)
    rest, _ = read_all(again, skip=True, place=blocks[0].place)
    np.testing.assert_array_equal(rest[0].images, blocks[1].images)
    assert again.splits(11) == splits


def save_png(path, values):
    Image.fromarray(values).save(path, format="PNG")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda tree: image_of(tree).write_bytes(b"no image"), "cannot read image .*cam_2-mono-0.png"),
        (lambda tree: os.truncate(image_of(tree), 5000), "cannot read image .*cam_2-mono-0.png"),
        (lambda tree: save_png(image_of(tree), np.zeros((200, 224, 3), np.uint8)), "is 200x224, not 224x224"),
        (lambda tree: save_png(image_of(tree), np.zeros((224, 224), np.uint8)), "is of mode L, not RGB"),
        (lambda tree: write_map(map_of(tree), np.zeros((64, 64), np.uint8)), r"\.map is 64x64, not 224x224"),
        (
            lambda tree: write_map(map_of(tree), np.full((224, 224), 7, np.uint8)),
            "holds 224, not 32 times a label of 0",
        ),
        (lambda tree: save_png(map_of(tree), np.full((224, 224), 33, np.uint8)), "holds 33, not 32 times a label of 0"),
        (
            lambda tree: save_png(map_of(tree), np.tile(np.uint8([0, 32, 0]), (224, 224, 1))),
            "is in colour, and no inst",
        ),
        (lambda tree: (map_of(tree).unlink(), map_of(tree).mkdir()), "not an ordinary one"),
        (lambda tree: (image_of(tree).unlink(), image_of(tree).symlink_to(image_of(tree))), "no such file"),
        (lambda tree: (image_of(tree).unlink(), os.mkfifo(image_of(tree))), "not an ordinary one"),
    ],
)
def test_damaged_views(tree, spoil, reason):
    spoil(tree)
    with pytest.raises(UserError, match=f"^tree: image . is damaged: .*{reason}"):
        read_all(ShapeStacks(tree, 64))
    [block], positions = read_all(ShapeStacks(tree, 64), skip=True)
    assert (len(block.images), len(positions)) == (11, 1)


def test_no_tree(tmp_path):
    with pytest.raises(UserError, match="cannot read .*train.txt: No such file or directory; name the folder of Sha"):
        ShapeStacks(tmp_path, 64)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            lambda tree: os.rename(tree / "recordings" / FALLS, tree / "gone"),
            "cannot read .*: No such file or directory",
        ),
        (lambda tree: [p.unlink() for p in (tree / "recordings" / FALLS).iterdir()], "no images in .*: expected files"),
        (
            lambda tree: map_of(tree).unlink(),
            "1 of 12 images in .* have no instance map, the first being .*cam_2-mono-0",
        ),
        (
            lambda tree: (tree / "splits/default/eval.txt").write_text("../../../etc"),
            "names '../../../etc', no scenario",
        ),
        (lambda tree: (tree / "splits/default/eval.txt").write_bytes(b"\xff\xfe"), "eval.txt: it is no text"),
        (lambda tree: (tree / "splits/default/eval.txt").write_text(STANDS), "name 3 images twice: restore them"),
        (
            lambda tree: (
                os.rename(tree / "recordings" / FALLS, tree / "gone"),
                (tree / "recordings" / FALLS).symlink_to(tree / "recordings" / FALLS),
            ),
            "cannot read .*: Too many levels of symbolic links",
        ),
    ],
)
def test_broken_trees(tree, spoil, reason):
    spoil(tree)
    with pytest.raises(UserError, match=reason):
        ShapeStacks(tree, 64)
