"""With networks in bfloat16, what goes in, what is handed on and what is drawn stay float32."""

import pyro
import pytest
import torch
from pyro import poutine
from tiny import NETWORKS, SYSTEMS, tiny_images, tiny_objective
from torch.utils._pytree import tree_leaves

from pyro_lom.networks.pixel_encoders import pool
from pyro_lom.networks.stick_breaking import pixel_grid
from pyro_lom.training.precision import make_fabric
from pyro_lom.training.step import TrainingStep


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_only_networks_are_in_bfloat16(system, networks):
    pyro.enable_validation(False)
    objective, seen, inner = tiny_objective(system, networks), [], set()
    take_step = TrainingStep(make_fabric("cpu", precision="bf16-mixed", devices=1), objective)
    for pair in objective.pairs.values():
        pair.register_forward_pre_hook(lambda _, *given: seen.extend(tree_leaves(given)), with_kwargs=True)
        for name, network in pair.model.named_children():
            if name.endswith("decoder"):
                network.register_forward_hook(lambda *given: inner.add(given[-1].dtype))

    class Sites(poutine.messenger.Messenger):
        def _pyro_post_sample(self, msg):
            seen.append(msg["value"])
            seen.extend(getattr(msg["fn"], name) for name in ("mean", "stddev") if msg["name"] in "szox")

    with Sites():
        evaluation = take_step(tiny_images(2), 1e-4)
    floats = [value for value in seen if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert len(floats) > 6 and {value.dtype for value in floats} == {torch.float32}
    assert inner == {torch.bfloat16}
    assert all(torch.isfinite(value) for value in evaluation.terms.values())


@pytest.mark.parametrize("place", [-0.85, 0.0, 0.6, 0.9])
def test_moments_of_a_mask_keep_their_differences(place):
    """A square of 3x3 pixels, whose place has a standard deviation of 2 / 31 sqrt(2 / 3) along each axis."""
    grid = pixel_grid(32, 32)
    row = round((place + 1) / 2 * 31)
    mask = torch.zeros(32, 32)
    mask[row - 1 : row + 2, 4:7] = 1 / 9
    with torch.autocast("cpu", torch.bfloat16):
        moments = pool(torch.cat([grid, grid.square()]).unsqueeze(0), mask.reshape(1, 1, -1)).squeeze()
    deviations = (moments[2:] - moments[:2].square()).sqrt()
    torch.testing.assert_close(deviations, torch.full((2,), 2 / 31 * (2 / 3) ** 0.5), rtol=1e-2, atol=0)


def test_float32_is_float32():
    fabric = make_fabric("cpu", devices=1)
    assert fabric._precision.precision == "32-true"
