"""The order network of a LOM without slot order, which is a topic model (Sec. 3.1)."""

from jaxtyping import Float
from torch import Tensor, nn


class BagOfWords(nn.Module):
    """Replacement for f with h_k = s for every k: given the scene, slots are independent and identically distributed.

    A model with this `order_net` requires `width=scene_dim`.
    """

    def __init__(self, num_slots: int):
        super().__init__()
        self.num_slots = num_slots

    def forward(self, scene: Float[Tensor, "*batch Ds"]) -> Float[Tensor, "*batch K Ds"]:
        return scene.unsqueeze(-2).expand(*scene.shape[:-1], self.num_slots, -1)
