"""Which files of a folder are images, which are masks, and what is left out, in the layouts that people have."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_lom.data.folders import find_pictures
from pyro_lom.data.hdf5 import read_scenes
from pyro_lom.errors import UserError


def fill(folder, *names):
    """Write a picture for each name; braces are as in a shell, such as {0,1}."""
    for name in names:
        head, brace, rest = name.partition("{")
        if brace:
            choices, _, tail = rest.partition("}")
            fill(folder, *(head + choice + tail for choice in choices.split(",")))
            continue
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg"):
            Image.new("RGB", (4, 4)).save(path)
        else:
            path.write_text("something else")


CLEVRTEX = "{0,1}/CLEVRTEX_full_00000{0,1,2}"
LAYOUTS = {
    "flat": (["{a,b}.png", "c.jpg", "._a.png", ".hidden/x.png", "notes.txt"], "1 *.jpg, 2 *.png as images", 3, 0),
    "nested": (["{a,b}/{1,2}/x.png"], "4 *.png as images", 4, 0),
    "ImageFolder": (["{train,val}/{cat,dog}/{1,2}.jpg"], "8 *.jpg as images; 4 for train, 4 for test", 8, 0),
    "with years": (["{train2017,val2017,test2017}/{1,2}.jpg"], "2 for train, 2 for validation, 2 for test", 6, 0),
    "classes named as splits": (["{train,car,plane}/1.jpg"], "3 *.jpg as images", 3, 0),
    "classes named as masks": (["{normal,flat}/{1,2}.jpg"], "4 *.jpg as images", 4, 0),
    "outside of splits": (["{train,test}/1.png", "overview.png"], "left out: 1 outside of train/ and test/", 2, 0),
    "ClevrTex": (
        [CLEVRTEX + "{,_flat,_depth_0001,_albedo_0001}.png", "0/CLEVRTEX_full_000000.json"],
        "6 *.png as images; masks *_flat.png; left out: 6 *_albedo_*.png, 6 *_depth_*.png",
        6,
        1,
    ),
    "Kubric": (
        ["{0000,0001}/{rgba,segmentation,forward_flow,normal,object_coordinates}_0000{0,1}.png", "0000/depth_0.tiff"],
        "4 *.png as images; masks segmentation_*.png; left out: 1 *.tiff, 4 *_coordinates_*.png, 4 *_flow_*.png, "
        "4 normal_*.png",
        4,
        1,
    ),
    "frames in folders": (
        ["{train,test}/0000000{0,1}/0000000{0,1}_{image,mask_00,mask_01}.png"],
        "8 *.png as images; 4 for train, 4 for test; masks *_mask_*.png",
        8,
        2,
    ),
    "CLEVR in two folders": (
        ["images/CLEVR_image_{0,1}.png", "masks/CLEVR_mask_{0,1}_{0,1,2}.png"],
        "2 *.png as images; masks masks/*.png",
        2,
        3,
    ),
    "CLEVR in one": (
        ["CLEVR_image_{1,11}.png", "CLEVR_mask_{1,11}_{0,1}.png"],
        "2 *.png as images; masks *_mask_*.png",
        2,
        2,
    ),
    "a folder of masks for each image": (["images/{a,b}.png", "masks/{a,b}/{0,1}.png"], "masks masks/*.png", 2, 2),
    "VOC": (
        ["JPEGImages/2007_{1,2}.jpg", "Segmentation{Object,Class}/2007_{1,2}.png"],
        "2 *.jpg as images; masks SegmentationObject/*.png; left out: 2 SegmentationClass/*.png",
        2,
        1,
    ),
    "DAVIS": (
        ["JPEGImages/480p/bear/0000{1,2}.jpg", "Annotations/480p/bear/0000{1,2}.png"],
        "2 *.jpg as images; masks Annotations/*.png",
        2,
        1,
    ),
    "splits below": (["{images,masks}/{train,test}/{1,2}.png"], "2 for train, 2 for test; masks masks/*.png", 4, 1),
    "words together": (["{image,mask}{1,2}.png"], "2 *.png as images; masks mask_*.png", 2, 1),
    "a word in all names": (["label_studio_{1,2}{,_mask}.png"], "2 *.png as images; masks *_mask.png", 2, 1),
    "another word": (["S_00{1,2}{,_foo}.png"], "2 *.png as images; left out: 2 *_foo.png", 2, 0),
    "a mask too few": (
        ["S_00{1,2,3}.png", "S_00{1,3,4}_flat.png"],
        "masks *_flat.png are not used, as some images have none (1, such as",
        3,
        0,
    ),
    "photographs of masks": (["mask_{1,2}.jpg", "face_{1,2,3}.jpg"], "5 *.jpg as images", 5, 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(tmp_path, name):
    names, found, num_images, num_masks = LAYOUTS[name]
    fill(tmp_path, *names)
    pictures = find_pictures(tmp_path)
    assert found in pictures.found, pictures.found
    assert "left out" in found or "left out" not in pictures.found or num_masks == 0
    assert len(pictures.images) == num_images
    assert [len(masks) for masks in pictures.masks] == [num_masks] * num_images * (num_masks > 0)


def test_masks_belong_to_their_images(tmp_path):
    fill(tmp_path, "CLEVR_image_{1,2,12}.png", "CLEVR_mask_{1,2,12}_{0,1,12}.png")
    pictures = find_pictures(tmp_path)
    for image, masks in zip(pictures.images, pictures.masks, strict=True):
        number = image.stem.rpartition("_")[2]
        assert [mask.name for mask in masks] == [f"CLEVR_mask_{number}_{k}.png" for k in ("0", "1", "12")]


def test_masks_of_a_folder_of_their_own(tmp_path):
    fill(tmp_path / "images", "a/image_{1,2}.png")
    fill(tmp_path / "other", "a/mask_{1,2}_{0,1}.png")
    pictures = find_pictures(tmp_path / "images", tmp_path / "other")
    assert [[mask.name for mask in masks] for masks in pictures.masks] == [
        [f"mask_{image}_{k}.png" for k in (0, 1)] for image in (1, 2)
    ]
    inside = find_pictures(tmp_path, tmp_path / "other")
    assert inside.images == pictures.images


def test_rows_are_in_the_order_of_the_splits(tmp_path):
    fill(tmp_path, "{test,training,validation}/{1,2}.png")
    pictures = find_pictures(tmp_path)
    assert pictures.splits == {"train": range(2), "validation": range(2, 4), "test": range(4, 6)}
    assert [path.parent.name for path in pictures.images[::2]] == ["training", "validation", "test"]
    scenes = read_scenes(tmp_path)
    assert scenes.splits == pictures.splits
    assert scenes.notes == (f"{tmp_path}: 6 *.png as images; 2 for train, 2 for validation, 2 for test",)


def test_images_of_one_name_are_refused(tmp_path):
    fill(tmp_path, "{1,2}.{jpg,png}")
    with pytest.raises(UserError, match="2 images have the name of another one but for its end, such as .*1.jpg: keep"):
        find_pictures(tmp_path)


def test_other_formats_are_named(tmp_path):
    fill(tmp_path, "{1,2}.gif", "3.webp")
    held = r"\.jpeg; it holds 2 \*.gif, 1 \*.webp, which are not read: convert them to PNG, or name one"
    with pytest.raises(UserError, match=f"no images in .*: expected files ending in .*{held}"):
        find_pictures(tmp_path)
    fill(tmp_path, "4.png")
    assert find_pictures(tmp_path).found == "1 *.png as images; left out: 2 *.gif, 1 *.webp"


def test_links_and_deep_folders_are_not_followed(tmp_path):
    fill(tmp_path, "in/a.png", "out/b.png", "in/" + "d/" * 30 + "c.png")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "away").symlink_to(tmp_path / "out")
    pictures = find_pictures(tmp_path / "in")
    assert [path.name for path in pictures.images] == ["a.png"]
    assert pictures.found == "1 *.png as images; left out: 1 folders deeper than 16 levels, 2 links to folders"


def test_a_subfolder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "in/a.png", "locked/b.png")

    def scandir(path, original=os.scandir):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr("pyro_lom.data.folders.os.scandir", scandir)
    with pytest.raises(UserError, match="cannot read .*locked: Permission denied; name a folder of images"):
        find_pictures(tmp_path)


def test_transparent_pixels_and_sizes_are_told(tmp_path):
    for number, size in enumerate([(60, 40), (60, 40), (40, 60)]):
        image = Image.new("RGBA", size, (200, 0, 0, 255))
        if number:
            image.paste((9, 9, 9, 0), (0, 0, *size))
        image.save(tmp_path / f"{number}.png")
    scenes = read_scenes(tmp_path, (32, 32))
    assert scenes.notes == (
        f"{tmp_path}: 3 *.png as images",
        f"{tmp_path}: images of 40x60 and 1 other sizes (height x width) are cropped and resized to 32x32",
        f"{tmp_path}: 2 images have transparent pixels, which are laid on white",
    )
    np.testing.assert_array_equal(scenes.images[:, 16, 16], [[200, 0, 0], [255] * 3, [255] * 3])


def test_padded(tmp_path):
    Image.new("RGB", (60, 30), "red").save(tmp_path / "wide.png")
    Image.new("RGB", (20, 40), "red").save(tmp_path / "tall.png")
    tall, wide = read_scenes(tmp_path, (48, 48), pad=True).images[..., 0]
    for image, height, width in ((tall, 40, 20), (wide, 24, 48)):  # the small image keeps its pixels
        expected = np.zeros((48, 48), np.uint8)
        top, left = (48 - height) // 2, (48 - width) // 2
        expected[top : top + height, left : left + width] = 255
        np.testing.assert_array_equal(image, expected)
