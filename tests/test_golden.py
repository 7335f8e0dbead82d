"""The losses of five training steps on a fixed tiny problem: they change when numbers change.

After an intended change, print the new losses with `PYTHONPATH=. python tests/test_golden.py`.
"""

from functools import partial
from itertools import product

import pytest
import torch
from tiny import NETWORKS, SHADED, SYSTEMS, tiny_images, tiny_objective

from pyro_lom.training.precision import make_fabric
from pyro_lom.training.step import TrainingStep

GOLDEN = {
    ("lom-genesis-v2", "published"): [3810.319, 3795.414, 3793.147, 3790.531, 3787.161],
    ("lom-genesis-v2", "compact"): [4264.399, 4243.895, 4194.874, 4148.260, 4101.385],
    ("genesis-v2", "published"): [1900.724, 1894.761, 1891.428, 1887.103, 1884.863],
    ("genesis-v2", "compact"): [2202.470, 2133.164, 2133.937, 2153.064, 2113.008],
    ("genesis", "published"): [1890.959, 1885.595, 1886.487, 1886.052, 1885.035],
    ("genesis", "compact"): [1890.959, 1885.595, 1886.487, 1886.052, 1885.035],
    ("lom-emorl", "published"): [9383.494, 9384.543, 9381.797, 9380.113, 9380.322],
    ("lom-emorl", "compact"): [10643.308, 10555.246, 10476.675, 10472.900, 10366.939],
    ("emorl", "published"): [7502.626, 7502.373, 7502.102, 7501.808, 7501.477],
    ("emorl", "compact"): [8655.675, 8584.325, 8516.982, 8444.939, 8392.784],
    ("autoregressive-emorl", "published"): [9378.286, 9377.965, 9377.622, 9377.254, 9376.849],
    ("autoregressive-emorl", "compact"): [10805.941, 10850.284, 10631.467, 10584.589, 10517.766],
    ("scene-autoregressive-emorl", "published"): [9384.090, 9383.300, 9382.470, 9381.691, 9380.891],
    ("scene-autoregressive-emorl", "compact"): [10820.111, 10733.027, 10690.369, 10595.338, 10519.407],
    ("genesis-v2-autoregressive", "published"): [1899.533, 1893.994, 1891.248, 1888.344, 1884.198],
    ("genesis-v2-autoregressive", "compact"): [2181.063, 2158.417, 2136.177, 2156.945, 2121.902],
    ("vae", "published"): [1901.126, 1897.137, 1892.950, 1892.088, 1887.867],
    ("vae", "compact"): [1901.126, 1897.137, 1892.950, 1892.088, 1887.867],
    ("gnm", "published"): [2642.898, 2544.904, 2515.319, 2499.047, 2521.334],
    ("gnm", "compact"): [2642.898, 2544.904, 2515.319, 2499.047, 2521.334],
    ("nvae", "published"): [1913.604, 1981.718, 2032.469, 2085.510, 2000.459],
    ("nvae", "compact"): [1913.604, 1981.718, 2032.469, 2085.510, 2000.459],
    ("sri-genesis-v2", "published"): [3805.746, 3795.012, 3790.066, 3785.261, 3780.568],
    ("sri-genesis-v2", "compact"): [4294.341, 4152.606, 4188.666, 4185.695, 4154.437],
    ("lom-genesis-v2", "regions"): [3784.043, 3782.940, 3769.357, 3784.571, 3768.751],
    ("genesis-v2", "regions"): [1877.968, 1878.597, 1879.079, 1877.885, 1877.733],
    ("genesis-v2-autoregressive", "regions"): [1876.450, 1877.511, 1877.689, 1877.288, 1876.831],
    ("sri-genesis-v2", "regions"): [3760.390, 3761.062, 3756.392, 3753.392, 3758.158],
    ("lom-emorl", "regions"): [9413.359, 9421.074, 9411.869, 9399.146, 9404.355],
    ("emorl", "regions"): [7529.324, 7531.776, 7538.271, 7512.618, 7506.206],
    ("autoregressive-emorl", "regions"): [9410.271, 9405.916, 9387.945, 9403.818, 9404.739],
    ("scene-autoregressive-emorl", "regions"): [9411.533, 9400.053, 9406.458, 9394.731, 9393.792],
}


CASES = [
    *product(SYSTEMS, NETWORKS),
    *product([name for name in SYSTEMS if "genesis-v2" in name or "emorl" in name], SHADED),
]


def losses_of_five_steps(system, networks):
    """The losses of the code that trains: one `TrainingStep` after another."""
    take_step = TrainingStep(
        make_fabric("cpu", devices=1),
        tiny_objective(system, networks),
        make_optimizer=partial(torch.optim.Adam, lr=1e-3),
    )
    torch.manual_seed(1)
    return [take_step(tiny_images(), 1e-3).loss.item() for _ in range(5)]


@pytest.mark.parametrize(("system", "networks"), CASES, ids=[" ".join(case) for case in CASES])
def test_losses_are_what_they_were(system, networks):
    assert losses_of_five_steps(system, networks) == pytest.approx(GOLDEN[system, networks], rel=1e-4)


if __name__ == "__main__":
    print("GOLDEN = {")
    for system, networks in CASES:
        losses = ", ".join(f"{loss:.3f}" for loss in losses_of_five_steps(system, networks))
        print(f'    ("{system}", "{networks}"): [{losses}],')
    print("}")
