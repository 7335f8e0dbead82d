"""Pictures are PNG files that show what they should, slot k in the same colour everywhere."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from pyro_lom.errors import UserError
from pyro_lom.figures import colour_labels, colour_masks, save_curves, save_grid


def pixels_of(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return np.asarray(image.convert("RGB"))


def one_hot_masks(labels, num_slots):
    return torch.nn.functional.one_hot(labels, num_slots).movedim(-1, -3).unsqueeze(-3).float()


def test_labels_and_masks_have_the_same_colours():
    labels = torch.arange(7).expand(2, 4, 7)
    colours = colour_labels(labels)
    assert colours.shape == (2, 3, 4, 7)
    assert len(colours[0, :, 0].T.unique(dim=0)) == 7
    torch.testing.assert_close(colour_masks(one_hot_masks(labels, 7).log()), colours)


def test_undecided_pixels_mix_colours():
    half = torch.full((2, 1, 1, 1), 0.5)
    mixed = (colour_labels(torch.tensor([[0]])) + colour_labels(torch.tensor([[1]]))) / 2
    torch.testing.assert_close(colour_masks(half.log()), mixed)


def test_more_slots_than_colours_start_over():
    labels = torch.tensor([[0, 20, 21]])
    colours = colour_labels(labels)
    assert torch.equal(colours[:, :, 0], colours[:, :, 1])
    torch.testing.assert_close(colour_masks(one_hot_masks(labels, 22).log()), colours)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_grid_shows_its_images(tmp_path, num_channels):
    dark, bright = torch.full((2, num_channels, 8, 8), 0.2), torch.full((5, num_channels, 8, 8), 1.7)
    save_grid(tmp_path / "grid.png", [("dark", dark), ("too bright", bright)], "A title")
    shown = pixels_of(tmp_path / "grid.png")
    height, width = shown.shape[:2]
    assert 100 < height < 600 and 400 < width < 1200
    assert (shown == 51).all(-1).sum() > 2 * 50**2  # two scenes of grey 0.2, more than 50 pixels wide
    assert list(tmp_path.iterdir()) == [tmp_path / "grid.png"]


def test_grids_grow_with_their_scenes(tmp_path):
    for name, rows, columns in (("small", 1, 2), ("large", 3, 12)):
        save_grid(tmp_path / name, [("row", torch.rand(columns, 3, 4, 4))] * rows, "title")
    small, large = pixels_of(tmp_path / "small").shape, pixels_of(tmp_path / "large").shape
    assert large[0] > 2 * small[0] and large[1] > 3 * small[1]


def metrics(steps):
    return [
        {
            "step": step,
            "seconds": 0.1 * step,
            "orderless/x": 3.0,
            "orderless/o": 60.0 / step,
            "orderless/rmse": 0.3 / step,
            "orderless/rmse_target": 0.035,
            "orderless/multiplier": 0.02 * step,
        }
        for step in steps
    ]


@pytest.mark.parametrize("rows", [[], metrics([1]), metrics(range(1, 9))], ids=["none", "one", "some"])
def test_curves(tmp_path, rows):
    save_curves(tmp_path / "curves.png", rows)
    shown = pixels_of(tmp_path / "curves.png")
    assert shown.shape[0] > 200 and shown.shape[1] > 800
    assert shown.std() > 5


def test_curves_of_pairs_that_took_turns_and_of_values_at_zero(tmp_path):
    rows = metrics([1, 2]) + [
        {key.replace("orderless", "ordered"): v for key, v in row.items()} for row in metrics([3, 4])
    ]
    rows[1] |= {"orderless/rmse": 0.0, "orderless/o": -0.1}  # a sampled KL may be negative
    save_curves(tmp_path / "curves.png", rows)
    assert pixels_of(tmp_path / "curves.png").std() > 5


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "curves.png"
    save_curves(path, [])
    before = path.read_bytes()

    def fill(figure, file, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", fill)
    with pytest.raises(UserError, match=f"cannot write {path}: the disk is full"):
        save_curves(path, metrics([1]))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
