"""bfloat16 where it is safe: in the networks, and nowhere else."""

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision


class NetworksInBfloat16(MixedPrecision):
    """Autocast that leaves what goes in as it is.

    Fabric's own rounds every input to bfloat16. Seeds of clusters, drawn like the images, would be drawn from some
    hundred different numbers, and so nearly always at the top of the image; posteriors handed on would keep eight bits.
    """

    def __init__(self, accelerator: str):
        super().__init__("bf16-mixed", accelerator)

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(accelerator: str, *, precision: str = "32-true", **options: Any) -> Fabric:
    """A Fabric for "cpu" or "cuda", in float32 ("32-true") or with networks in bfloat16 ("bf16-mixed")."""
    plugins = [NetworksInBfloat16(accelerator)] if precision == "bf16-mixed" else []
    return Fabric(accelerator=accelerator, plugins=plugins, **options)
