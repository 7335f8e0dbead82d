"""Averages over regions: they do not cross edges, go around corners, and equal averages with explicit weights."""

import pytest
import torch
import torch.nn.functional as F

from pyro_lom.networks.regions import EDGE, average_over_objects, average_over_regions, edges
from pyro_lom.networks.stick_breaking import pixel_grid


def halves(height=16, width=24, border=9):
    """Image (1, 3, H, W) of two flat colours, and the mask of the right one."""
    right = (torch.arange(width) >= border).expand(height, width)
    return torch.where(right, 0.8, 0.2).expand(1, 3, height, width), right


def test_values_do_not_cross_an_edge():
    images, right = halves()
    values = torch.rand(1, 2, 16, 24)
    found = average_over_regions(values, images)
    for mask in (right, ~right):
        assert found[..., mask].std(-1).max() < 0.06 < values[..., mask].std(-1).min()
    torch.testing.assert_close(average_over_regions(images, images), images, atol=1e-4, rtol=0)


def test_places_become_the_middle_of_the_object():
    grid = pixel_grid(32, 32)
    disc = ((grid[0] - 0.3).square() + (grid[1] + 0.2).square()) < 0.3**2
    images = torch.where(disc, 1.0, 0.0).expand(1, 3, 32, 32)
    found = average_over_regions(grid.unsqueeze(0), images)[0, :, disc]
    assert (found - torch.tensor([[0.3], [-0.2]])).abs().max() < 0.05
    assert grid[:, disc].std(-1).min() > 0.1


def test_values_go_around_corners():
    path = torch.zeros(16, 16, dtype=torch.bool)
    path[2, 2:14] = path[2:14, 13] = path[13, 2:14] = True  # three sides of a square
    images = torch.where(path, 1.0, 0.0).expand(1, 3, 16, 16)
    ends = torch.zeros(1, 1, 16, 16)
    ends[..., 2, 2] = 1.0
    found = average_over_regions(ends, images)[0, 0]
    assert found[13, 2] > 100 * found[7, 7]


def test_the_edges_of_noise_are_weak():
    torch.manual_seed(0)
    images, right = halves()
    values = torch.rand(1, 2, 16, 24)
    found = average_over_regions(values, images + 0.05 * torch.randn(images.shape))
    for mask in (right, ~right):
        assert found[..., mask].std(-1).max() < 0.02 < values[..., mask].std(-1).min()


@pytest.mark.parametrize("width", [2, 3])
def test_fine_patterns_are_one_object(width):
    row, column = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    stripes, checks = ((line // width % 2).bool() for line in (row + column, row // width * width + column))
    for pattern in (stripes, checks):
        inside = (row - 32).abs().maximum((column - 32).abs()) < 12
        images = torch.where(inside, torch.where(pattern, 0.9, 0.4), 0.1).expand(1, 3, 64, 64)
        values = pattern[None, None].float()
        merged = average_over_objects(values, images)[0, 0]
        middle = merged[24:40, 24:40]
        assert (middle - 0.5).abs().max() < 0.2, "both colours have the same average"
        separate = average_over_regions(values, images)[0, 0]
        assert separate[pattern & inside].min() > 0.9 > 0.1 > separate[~pattern & inside].max()
        grounds = average_over_objects(inside[None, None].float(), images)[0, 0]
        assert grounds[~inside].max() < 0.05 and grounds[24:40, 24:40].min() > 0.95, "the outline stays an edge"


@pytest.mark.parametrize("size", [(32, 96), (96, 96), (128, 96)])
def test_stripes_from_a_sixteenth_of_the_width_on_stay_regions_of_their_own(size):
    differences = []
    for width in (4, 5, 6, 7, 12):
        stripes = (torch.arange(96) // width % 2).float().expand(1, 1, *size)
        images = 0.2 + 0.6 * stripes.expand(1, 3, *size)
        found = average_over_objects(stripes, images)[..., 24:72]
        differences.append((found - stripes[..., 24:72]).abs().max().item())
    assert min(differences[:2]) > 0.3 and max(differences[3:]) < 0.05, differences


def test_objects_are_found_at_low_contrast_and_in_noise():
    torch.manual_seed(0)
    inside = disc(32, 30, 12)[2::4, 2::4]
    mask = inside[None, None].float()
    clean = mask.expand(-1, 3, -1, -1)
    for images in (0.4 + 0.08 * clean, 0.3 + 0.4 * clean + 0.1 * torch.randn(clean.shape)):
        found, coarse = (average(mask, images)[0, 0] for average in (average_over_objects, average_over_regions))
        assert found[inside].mean() - found[~inside].mean() > 0.8
        assert coarse[inside].mean() - coarse[~inside].mean() < 0.6


def test_shading_is_no_edge_at_high_contrast():
    row, column = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    spots = [disc(r, c, 5)[2::4, 2::4] for r in (8, 24, 40, 56) for c in (8, 24, 40, 56)]
    shaded = (0.3 + 0.02 * (row % 16 + column % 16)).expand(3, -1, -1)
    images = torch.where(torch.stack(spots).any(0), shaded, torch.zeros(3, 64, 64))[None]
    found = average_over_objects(row[None, None], images)[0, 0]
    for spot in spots:
        assert found[spot].std() < 0.15 * row[spot].std()


def test_faint_steps_are_no_edges():
    images, right = halves(32, 32, 16)
    images = 0.5 + 0.008 * (images - 0.2)  # two steps of 8 bits
    found = average_over_objects(right[None, None].float(), images)[0, 0]
    assert found[right].mean() - found[~right].mean() < 0.3


@pytest.mark.parametrize("average", [average_over_regions, average_over_objects])
def test_each_image_has_its_own_regions(average):
    torch.manual_seed(0)
    inside = disc(32, 30, 12)[2::4, 2::4].expand(1, 1, -1, -1).float()
    images = torch.cat([0.4 + 0.08 * inside, inside, 0.1 * torch.rand_like(inside), torch.full_like(inside, 0.5)])
    values = torch.rand(4, 2, 64, 64)
    together = average(values, images)
    alone = torch.cat([average(value[None], image[None]) for value, image in zip(values, images, strict=True)])
    torch.testing.assert_close(together, alone)
    assert together[3].flatten(1).std(1).max() < 0.1 * values[3].flatten(1).std(1).min(), "one colour is one region"


def painted(*shapes):
    """Image (1, 3, 64, 64) of flat colours with soft outlines, from masks of four times this size, and the masks."""
    colours = torch.tensor([[0.2, 0.5, 0.4], [0.9, 0.9, 0.9], [0.8, 0.1, 0.2], [0.1, 0.2, 0.9]])
    large = colours[0].view(3, 1, 1).expand(3, 256, 256)
    for colour, shape in zip(colours[1:], shapes, strict=False):
        large = torch.where(shape, colour.view(3, 1, 1), large)
    masks = [F.avg_pool2d(shape[None].float(), 4)[0] == 1 for shape in shapes]
    return F.avg_pool2d(large[None], 4), masks


def disc(row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(256) / 4, torch.arange(256) / 4, indexing="ij")
    return (rows - row).square() + (columns - column).square() < radius**2


def test_pixels_of_soft_outlines_belong_to_the_side_whose_colour_is_nearer():
    shape = disc(31.3, 32.4, 11)
    images, (inside,) = painted(shape)
    cover = F.avg_pool2d(shape[None].float(), 4)[0]
    soft = (cover > 0.05) & (cover < 0.95)
    inner, outer = soft & (cover > 0.6), soft & (cover < 0.4)
    found = average_over_objects(inside[None, None].float(), images)[0, 0]
    assert found[inner].mean() > 0.75 and found[outer].mean() < 0.2


def test_parts_join_what_encloses_them():
    images, (outline, face, eye) = painted(disc(32, 30, 12), disc(32, 30, 9), disc(30, 30, 3))
    values = face[None, None].float()
    joined = average_over_objects(values, images)[0, 0]
    assert joined[outline].std() < 0.05 and joined[outline].min() > 0.3, "outline, face and eye have one average"
    assert joined[~disc(32, 30, 14)[2::4, 2::4]].max() < 0.05, "the ground keeps its own"
    apart = average_over_regions(values, images)[0, 0]
    cheek, rim = face & ~disc(30, 30, 5)[2::4, 2::4], outline & ~disc(32, 30, 10)[2::4, 2::4]
    assert apart[cheek].min() > 0.8 and apart[rim].max() < 0.2


@pytest.mark.parametrize(
    "shapes",
    [
        (disc(32, 24, 10), disc(32, 38, 10)),
        (disc(32, 2, 10), disc(32, 4, 5)),
        (disc(32, 0, 10), disc(32, 18, 9)),
        (disc(32, 32, 22), disc(30, 34, 6)),
    ],
    ids=["both on the ground", "one in the other at the border", "side by side at the border", "one on a table"],
)
def test_other_regions_stay_apart(shapes):
    images, (first, second) = painted(*shapes)
    values = second[None, None].float()
    found = average_over_objects(values, images)[0, 0]
    behind = first & ~F.max_pool2d(second[None].float(), 5, 1, 2)[0].bool()
    assert found[second].mean() > 0.75 and found[behind].mean() < 0.1


@pytest.mark.parametrize("contrast", [0.05, 0.15])
def test_they_are_averages_with_explicit_weights(contrast):
    torch.manual_seed(0)
    images, values = contrast * torch.rand(2, 3, 8, 12), torch.rand(2, 4, 8, 12)
    distances = [images.diff(dim=axis).norm(dim=1).flatten(1) for axis in (-2, -1)]
    edge = torch.cat(distances, dim=1).median(dim=1).values.clamp_min(EDGE).view(2, 1, 1)
    assert (edge == EDGE).all() == (contrast == 0.05)

    def weights(lines):
        steps = F.relu(lines.diff(dim=-1).norm(dim=1) / edge - 1) + 0.01
        places = F.pad(steps.cumsum(-1), (1, 0))
        return (-(places.unsqueeze(-1) - places.unsqueeze(-2)).abs()).softmax(-1)

    expected = values
    for _ in range(6):
        expected = torch.einsum("bhij,bfhj->bfhi", weights(images), expected)
        expected = torch.einsum("bwij,bfjw->bfiw", weights(images.transpose(-1, -2)), expected)
    torch.testing.assert_close(average_over_regions(values, images), expected, atol=1e-5, rtol=1e-5)


def test_the_share_of_edges():
    images, _ = halves()
    share = edges(images).item()
    assert share == pytest.approx(16 / (15 * 24 + 16 * 23)), "smoothing makes no edge wider"
    assert edges(torch.full((1, 3, 16, 24), 0.4)) == 0
    assert edges(torch.rand(1, 3, 64, 64)) < 0.75, "a noisy image has a threshold of its own"
