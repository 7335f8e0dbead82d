"""Arrays of images and of masks in all forms that people have."""

import numpy as np
import pytest
import torch

from pyro_lom.data.arrays import label_converter, scenes_of
from pyro_lom.data.scenes import Scenes, fit_scenes, why_no_objects
from pyro_lom.errors import UserError

N, H, W, K = 6, 32, 40, 5


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (N, H, W, 3), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, K, (N, H, W), dtype=np.uint8)


def test_images_that_are_converted_line_by_line(images, monkeypatch):
    whole = scenes_of(images / np.float32(255)).images
    monkeypatch.setattr("pyro_lom.data.arrays._VALUES_AT_ONCE", 700)
    np.testing.assert_array_equal(scenes_of(images / np.float32(255)).images, whole)
    np.testing.assert_array_equal(scenes_of(images.transpose(0, 3, 1, 2).astype(int)).images, whole)


FORMS = {
    "bytes": lambda images: images,
    "channels first": lambda images: images.transpose(0, 3, 1, 2),
    "int64": lambda images: images.astype(np.int64),
    "floats to 1": lambda images: images / np.float32(255),
    "floats to 255": lambda images: images.astype(np.float64),
    "big endian": lambda images: images.astype(">f4"),
    "tensor of bytes": lambda images: torch.from_numpy(images),
    "tensor of floats": lambda images: torch.from_numpy(images).permute(0, 3, 1, 2) / 255,
    "opaque": lambda images: np.concatenate([images, np.full_like(images[..., :1], 255)], -1),
}


@pytest.mark.parametrize("form", FORMS)
def test_images(images, form):
    scenes = scenes_of(FORMS[form](images))
    np.testing.assert_array_equal(scenes.images, images)
    assert scenes.images.dtype == np.uint8
    assert (scenes.splits, scenes.name) == ({"train": range(5), "test": range(5, 6)}, "arrays")


def test_bfloat16_and_grey_and_transparent(images):
    halves = scenes_of(torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.bfloat16) / 255)
    assert abs(halves.images.astype(int) - images).max() <= 1
    np.testing.assert_array_equal(scenes_of(images[..., 0]).images, images[..., :1])
    seen_through = np.concatenate([images, np.zeros_like(images[..., :1])], -1)
    assert (scenes_of(seen_through).images == 255).all()
    assert set(np.unique(scenes_of(images[..., :1] > 99).images)) == {0, 255}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda images: images / 127.5 - 1, "values from -1 to 1; expected 0 to 1: rescale them"),
        (lambda images: images * 2.0, "values from 0 to 510; expected 0 to 255: rescale them"),
        (lambda images: images * np.nan, "values from nan to nan; expected"),
        (lambda images: images[:0], r"is empty \(shape \(0, 32, 40, 3\)\); pass one image or more"),
        (lambda images: images[..., :2], "expected .N, H, W, C. or .N, C, H, W. with 1, 3 or 4 channels"),
        (lambda images: images.astype(object), "images in scenes is object; expected integers from 0 to 255"),
        (lambda images: images.astype(str), "images in scenes is <U3; expected integers"),
        (lambda images: "images", r"has the shape \(\); expected"),
    ],
)
def test_wrong_images(images, spoil, reason):
    with pytest.raises(UserError, match=reason):
        scenes_of(spoil(images))


def one_hot(labels, dtype=np.uint8, one=1, num=K):
    return (labels[:, None] == np.arange(num)[None, :, None, None]).astype(dtype) * dtype(one)


MASKS = {
    "integers": lambda labels: labels,
    "int32": lambda labels: labels.astype(np.int32),
    "uint64": lambda labels: labels.astype(np.uint64),
    "int8, one channel": lambda labels: labels[..., None].astype(np.int8),
    "channel first": lambda labels: labels[:, None],
    "one-hot of 1": lambda labels: one_hot(labels),
    "one-hot of 255": lambda labels: one_hot(labels, one=255),
    "one-hot of bool": lambda labels: one_hot(labels, np.bool_),
    "one-hot of floats": lambda labels: one_hot(labels, np.float32),
    "one-hot, one channel": lambda labels: one_hot(labels)[..., None],
    "one-hot, three channels": lambda labels: np.repeat(one_hot(labels, np.float32, 255)[..., None], 3, -1),
    "entities last": lambda labels: one_hot(labels).transpose(0, 2, 3, 1),
    "entities third": lambda labels: one_hot(labels, one=255).transpose(0, 2, 3, 1)[..., None],
}


@pytest.mark.parametrize("form", MASKS)
def test_labels(images, labels, form):
    masks = MASKS[form](labels)
    convert = label_converter(masks, masks, (H, W), "masks")
    np.testing.assert_array_equal(convert(masks), labels)
    np.testing.assert_array_equal(convert(masks[2:3]), labels[2:3])
    scenes = scenes_of(images, masks, num_background=2)
    np.testing.assert_array_equal(scenes.labels, labels)
    assert scenes.num_background == 2 and scenes_of(scenes) is scenes


@pytest.mark.parametrize("form", [name for name in MASKS if name.startswith("one-hot") or "entities" in name])
def test_pixels_of_no_mask_are_background(labels, form):
    masks = MASKS[form](labels)
    objects = np.delete(masks, 0, axis=masks.shape.index(K))
    np.testing.assert_array_equal(label_converter(objects, objects, (H, W), "masks")(objects), labels)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda labels: labels.astype(np.float32), r"masks is float32 \(6, 32, 40\); expected integers or bool"),
        (lambda labels: labels[:, :-1], r"masks is uint8 \(6, 31, 40\); expected .* of size 32x40"),
        (lambda labels: labels.astype(int) * 100, "masks has labels from 0 to 400; expected 0 to 255: renumber them"),
        (lambda labels: labels.astype(int) - 1, "masks has labels from -1 to 3; expected 0 to 255"),
        (lambda labels: one_hot(labels, np.float32, 1000), "masks has the value 1000.0; expected masks of 0"),
        (lambda labels: one_hot(labels, one=3), "masks has the value 3; expected masks of 0 and 1, or of 0 and 255"),
        (lambda labels: one_hot(labels, np.float32, 0.5), "masks has the value 0.5; expected masks of 0"),
        (lambda labels: one_hot(labels, np.int16, -1), "masks has the value -1; expected masks of 0"),
        (lambda labels: one_hot(labels, np.float32, np.nan), "masks has the value nan; expected masks of 0"),
        (lambda labels: one_hot(labels) + 254 * one_hot(labels == 1), "masks has the value 1; expected masks of 0"),
        (lambda labels: np.stack([one_hot(labels), one_hot(labels > 1)], -1), "masks has masks whose channels differ"),
        (lambda labels: np.repeat(labels[:, None], 256, 1), r"masks is uint8 \(6, 256, 32, 40\)"),
        (lambda labels: one_hot(labels)[:, :0], r"masks is empty \(shape \(6, 0, 32, 40\)\); expected"),
        (lambda labels: one_hot(labels)[..., None][..., :0], "masks is empty"),
        (lambda labels: one_hot(labels).transpose(0, 2, 3, 1)[..., :0], "masks is empty"),
        (lambda labels: labels[:0], r"masks is empty \(shape \(0, 32, 40\)\)"),
        (lambda labels: labels[:, :0], "masks is empty"),
    ],
)
def test_wrong_labels(labels, spoil, reason):
    masks = spoil(labels)
    with pytest.raises(UserError, match=reason):
        label_converter(masks, masks[:1], (H, W), "masks")(masks)


def test_scenes_of_other_forms_are_refused(images, labels):
    class Unchecked(Scenes):
        __init__ = object.__init__

    scenes = Unchecked()
    for name, value in {"images": images / 255, "labels": None}.items():
        object.__setattr__(scenes, name, value)
    with pytest.raises(UserError, match="these Scenes are not of bytes .N, H, W, C.: make them by scenes_of"):
        scenes_of(scenes)
    with pytest.raises(UserError, match="there are 5 labels for 6 images: pass one for each"):
        scenes_of(images, labels[:5])
    with pytest.raises(UserError, match="labels in scenes is empty"):
        scenes_of(images, labels[:0])


def test_scenes_are_fitted_in_memory_or_refused(images, labels, monkeypatch):
    splits = {"train": range(4), "test": range(4, 6)}
    scenes = Scenes(images, labels, {}, num_background=1, splits=splits, name="towers", version=1)
    assert fit_scenes(scenes, (H, W), pad=False, place="a.h5") is scenes
    fitted = fit_scenes(scenes, (32, 32), pad=False, place="a.h5")
    np.testing.assert_array_equal(fitted.images, images[:, :, 4:36])
    np.testing.assert_array_equal(fitted.labels, labels[:, :, 4:36])
    assert (fitted.name, fitted.splits) == ("towers at 32x32", splits)
    assert fitted.notes == ("a.h5: images of 32x40 (height x width) are cropped and resized to 32x32",)
    padded = fit_scenes(scenes, (48, 48), pad=True, place="a.h5")
    np.testing.assert_array_equal(padded.images[:, 8:40, 4:44], images)
    assert padded.images.sum() == images.sum() and padded.labels.sum() == labels.sum()
    assert padded.notes == ("a.h5: images of 32x40 (height x width) are padded with black to 48x48",)
    monkeypatch.setattr("pyro_lom.data.scenes.IN_MEMORY", 1000)
    with pytest.raises(UserError, match="6 images of 32x40 in a.h5 take more than 1 GiB .* import images a.h5 FILE.h5"):
        fit_scenes(scenes, (32, 32), pad=False, place="a.h5")


def test_labels_without_objects_are_told(images, labels):
    scenes = Scenes(images, labels, {}, num_background=4, splits={"train": range(N)}, name="mine", version=0)
    assert why_no_objects(scenes) is None
    scenes = Scenes(images, labels, {}, num_background=9, splits={"train": range(N)}, name="mine", version=0)
    assert why_no_objects(scenes) == (
        "no pixel is an object: labels are 0 to 4, and num_background is 9, so labels below 9 are background; lower it"
    )
