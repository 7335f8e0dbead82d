"""A LOM without order: what it would be as a topic model (Sec. 3.1)."""

from jaxtyping import Float
from torch import Tensor, nn


class BagOfWords(nn.Module):
    """h_k = s for every k, in the place of f: slots are drawn from one distribution, independently given the scene.

    A model that has it as `order_net` needs `width=scene_dim`.
    """

    def __init__(self, num_slots: int):
        super().__init__()
        self.num_slots = num_slots

    def forward(self, scene: Float[Tensor, "*batch Ds"]) -> Float[Tensor, "*batch K Ds"]:
        return scene.unsqueeze(-2).expand(*scene.shape[:-1], self.num_slots, -1)
