"""Mixed precision: bfloat16 inside of networks only."""

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision


class NetworksInBfloat16(MixedPrecision):
    """Autocast that does not convert inputs.

    Fabric's own class rounds every input to bfloat16. The random scores of GENESIS-v2's seeds, drawn in the images'
    dtype, would have ties, and most seeds would lie at the top of the image. Posteriors would keep eight bits.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(accelerator: str, *, precision: str = "32-true", **options: Any) -> Fabric:
    """Return a Fabric for "cpu" or "cuda", in float32 ("32-true") or with networks in bfloat16 ("bf16-mixed")."""
    plugins = [NetworksInBfloat16(precision, accelerator)] if precision == "bf16-mixed" else []
    return Fabric(accelerator=accelerator, plugins=plugins, **options)
