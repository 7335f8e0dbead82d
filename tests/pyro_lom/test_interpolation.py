"""SLERP walks along a great circle of the sphere on which standard normal scenes live."""

import math

import pytest
import torch

from pyro_lom.interpolation import random_walk, slerp


def on_sphere(scene):
    return scene.shape[-1] ** 0.5 * torch.nn.functional.normalize(scene, dim=-1)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_it_starts_and_ends_at_the_projected_ends(batch):
    start, end = torch.randn(2, *batch, 16)
    path = slerp(start, end, 7)
    assert path.shape == (7, *batch, 16)
    torch.testing.assert_close(path[0], on_sphere(start))
    torch.testing.assert_close(path[-1], on_sphere(end))


@pytest.mark.parametrize("scene_dim", [2, 16, 128])
def test_every_step_has_the_norm_sqrt_ds_and_covers_the_same_angle(scene_dim):
    start, end = torch.randn(2, 5, scene_dim)
    path = slerp(start, end, 9)
    torch.testing.assert_close(path.norm(dim=-1), torch.full((9, 5), math.sqrt(scene_dim)))
    cosines = (path[1:] * path[:-1]).sum(-1) / scene_dim
    angle = ((path[0] * path[-1]).sum(-1) / scene_dim).acos()
    torch.testing.assert_close(cosines.acos(), (angle / 8).expand(8, 5), rtol=1e-3, atol=1e-4)


def test_the_midpoint_halves_a_right_angle():
    start, end = torch.eye(2)
    torch.testing.assert_close(slerp(start, end, 3)[1], torch.ones(2))


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_between_a_scene_and_a_multiple_of_it_nothing_moves(factor):
    start = torch.randn(16)
    torch.testing.assert_close(slerp(start, factor * start, 5), on_sphere(start).expand(5, 16))


def test_a_walk_is_stationary_under_a_standard_normal():
    torch.manual_seed(0)
    walk = random_walk(torch.randn(4000, 3), 30, 0.3)
    assert walk.shape == (30, 4000, 3)
    assert walk[-1].mean().abs() < 0.03 and walk[-1].std().item() == pytest.approx(1, abs=0.03)
    correlation = (walk[10] * walk[11]).mean()
    assert correlation.item() == pytest.approx((1 - 0.3**2) ** 0.5, abs=0.05)


def test_a_walk_starts_where_it_is_told_to():
    start = torch.randn(2, 3)
    assert torch.equal(random_walk(start, 5, 0.2)[0], start)
    assert torch.equal(random_walk(start, 1, 0.2), start[None])
