"""The losses of five training steps on a fixed tiny problem: they change when numbers change.

After an intended change, print the new losses with `PYTHONPATH=. python tests/test_golden.py`.
"""

from functools import partial

import pytest
import torch
from tiny import NETWORKS, SYSTEMS, tiny_images, tiny_objective

from pyro_lom.training.precision import make_fabric
from pyro_lom.training.step import TrainingStep

GOLDEN = {
    ("lom-genesis-v2", "published"): [3803.322, 3792.572, 3783.181, 3778.043, 3772.489],
    ("lom-genesis-v2", "compact"): [4264.399, 4243.895, 4194.874, 4148.260, 4101.385],
    ("genesis-v2", "published"): [1901.860, 1895.272, 1891.635, 1886.965, 1884.345],
    ("genesis-v2", "compact"): [2202.470, 2133.164, 2133.937, 2153.064, 2113.008],
    ("genesis", "published"): [1890.959, 1885.595, 1886.487, 1886.052, 1885.035],
    ("genesis", "compact"): [1890.959, 1885.595, 1886.487, 1886.052, 1885.035],
    ("lom-emorl", "published"): [9385.096, 9384.923, 9381.863, 9379.763, 9380.760],
    ("lom-emorl", "compact"): [10637.326, 10661.244, 10523.559, 10414.024, 10366.774],
    ("emorl", "published"): [7502.626, 7502.379, 7502.113, 7501.832, 7501.526],
    ("emorl", "compact"): [8651.158, 8558.179, 8529.802, 8488.152, 8390.910],
    ("autoregressive-emorl", "published"): [9378.300, 9377.979, 9377.633, 9377.290, 9376.902],
    ("autoregressive-emorl", "compact"): [10800.823, 10771.043, 10649.868, 10590.295, 10453.870],
    ("scene-autoregressive-emorl", "published"): [9384.099, 9383.288, 9382.499, 9381.728, 9380.951],
    ("scene-autoregressive-emorl", "compact"): [10809.990, 10761.117, 10637.433, 10551.391, 10502.043],
    ("genesis-v2-autoregressive", "published"): [1901.475, 1895.455, 1892.542, 1889.133, 1885.556],
    ("genesis-v2-autoregressive", "compact"): [2181.063, 2158.417, 2136.177, 2156.945, 2121.902],
    ("vae", "published"): [1901.126, 1897.137, 1892.950, 1892.088, 1887.867],
    ("vae", "compact"): [1901.126, 1897.137, 1892.950, 1892.088, 1887.867],
    ("sri-genesis-v2", "published"): [3798.853, 3787.626, 3780.562, 3772.334, 3768.783],
    ("sri-genesis-v2", "compact"): [4294.341, 4152.606, 4188.666, 4185.695, 4154.437],
}


def losses_of_five_steps(system, networks):
    """The losses of the code that trains: one `TrainingStep` after another."""
    take_step = TrainingStep(
        make_fabric("cpu", devices=1),
        tiny_objective(system, networks),
        make_optimizer=partial(torch.optim.Adam, lr=1e-3),
    )
    torch.manual_seed(1)
    return [take_step(tiny_images(), 1e-3).loss.item() for _ in range(5)]


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
