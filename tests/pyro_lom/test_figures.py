"""Pictures are PNG files that show what they should, slot k in the same colour everywhere."""

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pyro_lom.errors import UserError
from pyro_lom.figures import (
    boxed,
    colour_labels,
    colour_masks,
    save_box_plots,
    save_curves,
    save_error_bars,
    save_gif,
    save_grid,
    save_sheet,
    single_slots,
)
from pyro_lom.types import Rendering


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


def drawn_by(monkeypatch):
    """The panels of the figures that follow: titles and labels of lines."""
    panels, save = [], Figure.savefig

    def spy(figure, *arguments, **options):
        panels.extend((axis.get_title(), [line.get_label() for line in axis.lines]) for axis in figure.axes)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", spy)
    return panels


def test_curves_of_a_plain_elbo(tmp_path, monkeypatch):
    """Its criterion reports nothing: the negative log-likelihood is drawn instead of an RMSE."""
    panels = drawn_by(monkeypatch)
    rows = [{"step": step, "seconds": 0.1 * step, "model/x": 3.0 - step, "model/s": 60.0 / step} for step in (1, 2, 3)]
    save_curves(tmp_path / "curves.png", rows)
    assert panels == [("negative log-likelihood, nats per scene", ["model/x"]), ("KL, nats per scene", ["model/s"])]
    assert pixels_of(tmp_path / "curves.png").std() > 5


def test_curves_of_pairs_with_different_criteria(tmp_path, monkeypatch):
    panels = drawn_by(monkeypatch)
    rows = [row | {"plain/x": -3.0, "plain/z": 2.0} for row in metrics([1, 2])]
    save_curves(tmp_path / "curves.png", rows)
    target = next(labels for title, labels in panels if "RMSE" in title)
    assert target[0] == "orderless/rmse" and len(target) == 2  # the target has no label
    assert dict(panels[1:]) == {
        "negative log-likelihood, nats per scene": ["plain/x"],
        "KL, nats per scene": ["orderless/o", "plain/z"],
        "multiplier": ["orderless/multiplier"],
    }


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


def a_rendering(num_scenes=2):
    masks = one_hot_masks(torch.arange(8).expand(num_scenes, 8, 8) % 4, 4).clamp(1e-9, 1)
    components = torch.rand(num_scenes, 4, 3, 8, 8)
    return Rendering((masks * components).sum(1), components, masks.log())


def test_a_single_slot_shows_where_its_mask_is():
    rendering = a_rendering()
    slots = single_slots(rendering)
    assert slots.shape == rendering.components.shape
    inside = (rendering.log_masks.exp() > 0.5).expand_as(slots)
    torch.testing.assert_close(slots[inside], rendering.components[inside])
    assert slots[~inside].unique().numel() < 4 and slots[~inside].mean() == pytest.approx(0.94, abs=1e-5)


def test_a_box_surrounds_its_region():
    images, regions = torch.full((3, 1, 16, 16), 0.5), torch.zeros(3, 16, 16, dtype=torch.bool)
    regions[0, 4:8, 5:10] = True
    regions[1, :, :] = True
    shown = boxed(images, regions)
    assert shown.shape == (3, 3, 16, 16)
    black = (shown[0] == 0).all(0)
    assert black.sum() == 2 * (6 + 7) - 4 and not (black & regions[0]).any()
    assert (shown[1, :, 0] == 0).all() and (shown[1, :, 1:-1, 1:-1] == 0.5).all()
    assert (shown[2] == 0.5).all()  # no region, no box
    assert (images == 0.5).all()


@pytest.mark.parametrize("num", [1, 10, 23])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_is_written(num, channels, tmp_path):
    save_sheet(tmp_path / "sheet.png", torch.rand(num, channels, 16, 16), "Sheet")
    shown = pixels_of(tmp_path / "sheet.png")
    assert shown.std() > 5 and shown.shape[0] == pytest.approx(60 + -(-num // 10) * 130, abs=15)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_gif_moves_and_repeats(channels, tmp_path):
    frames = torch.linspace(0, 1, 5).view(5, 1, 1, 1).expand(5, channels, 32, 48)
    save_gif(tmp_path / "film.gif", frames, side=64)
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.format, film.n_frames, film.size, film.info["loop"]) == ("GIF", 5, (96, 64), 0)
        shades = []
        for number in range(5):
            film.seek(number)
            shades.append(np.asarray(film.convert("L")).mean())
    assert shades == pytest.approx([0, 64, 128, 191, 255], abs=2)


def test_error_bars_are_written(tmp_path):
    lines = {"one": ([0.6, 0.8], [3.0, 2.0], [0.1, 0.2]), "other": ([0.6, 0.8], [4.0, 3.0], [0.0, 0.0])}
    save_error_bars(tmp_path / "bars.png", lines, x="temperature", y="distance")
    assert pixels_of(tmp_path / "bars.png").std() > 5


def test_box_plots_show_every_value(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot

    def spy(self, *arguments, **options):
        if arguments[2:] == ("o",):
            drawn.append(arguments[:2])
        return plot(self, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", spy)
    boxes = {"first": [1.0, 2.0, 50.0], "second": [3.0, None], "none": [None, None]}
    save_box_plots(tmp_path / "boxes.png", {"KL": boxes, "distance": boxes})
    assert drawn == 2 * [([1, 1, 1], [1.0, 2.0, 50.0]), ([2], [3.0]), ([], [])]
    assert pixels_of(tmp_path / "boxes.png").std() > 5
