"""The losses of five training steps on a fixed tiny problem: they move when numbers move.

Where they ought to have moved, print the new ones with `python tests/test_golden.py`.
"""

import pytest
import torch
from tiny import NETWORKS, SYSTEMS, tiny_images, tiny_objective

GOLDEN = {
    ("lom-genesis-v2", "published"): [4051.904, 4100.382, 3996.616, 3937.243, 3886.737],
    ("lom-genesis-v2", "compact"): [3870.640, 3877.039, 3871.072, 3865.126, 3854.905],
    ("genesis-v2", "published"): [1903.700, 1896.984, 1893.230, 1888.494, 1885.548],
    ("genesis-v2", "compact"): [1903.724, 1903.836, 1902.238, 1899.864, 1898.892],
}


def losses_of_five_steps(system, networks):
    objective, images = tiny_objective(system, networks), tiny_images()
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-3)
    torch.manual_seed(1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        evaluation = objective(images)
        evaluation.loss.backward()
        optimizer.step()
        objective.update(evaluation.errors)
        losses.append(evaluation.loss.item())
    return losses


@pytest.mark.parametrize("networks", NETWORKS)
@pytest.mark.parametrize("system", SYSTEMS)
def test_losses_are_what_they_were(system, networks):
    assert losses_of_five_steps(system, networks) == pytest.approx(GOLDEN[system, networks], rel=1e-4)


if __name__ == "__main__":
    print("GOLDEN = {")
    for system in SYSTEMS:
        for networks in NETWORKS:
            losses = ", ".join(f"{loss:.3f}" for loss in losses_of_five_steps(system, networks))
            print(f'    ("{system}", "{networks}"): [{losses}],')
    print("}")
