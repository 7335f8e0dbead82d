"""The recurrent network of an autoregressive slot prior (A.5, Models 7 and 8)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.transformers import xavier_

State = tuple[Float[Tensor, "... width"], Float[Tensor, "... width"]]  # an LSTM's output and cell


class SlotRecurrence(nn.Module):
    """LSTM over s and z_1 to z_k-1, whose output parametrises the prior of slot k.

        state_1 = LSTM(GELU(linear(s)))            or, without a scene, LSTM(a trainable embedding)
        state_k = LSTM(z_k-1, state_k-1)

    The paper does not specify the recurrent network. This one is an LSTM cell with PyTorch's default initialisation.

    Args:
        scene_dim: Ds; None for a model without a scene latent.
    """

    def __init__(self, slot_dim: int, *, width: int, scene_dim: int | None = None):
        super().__init__()
        if scene_dim is None:
            self.first = nn.Parameter(torch.zeros(slot_dim))
        else:
            self.project_scene = xavier_(nn.Sequential(nn.Linear(scene_dim, slot_dim), nn.GELU()))
        self.cell = nn.LSTMCell(slot_dim, width)

    def start(self, scene: Float[Tensor, "*batch Ds"] | None) -> State:
        """Return the state for the first slot; without a scene, the state has no batch axes."""
        token = self.first if scene is None else self.project_scene(scene)
        zeros = token.new_zeros(*token.shape[:-1], self.cell.hidden_size)
        return self(token, (zeros, zeros))

    def forward(self, slot: Float[Tensor, "*batch Dz"], state: State) -> State:
        """Return the state for the next slot; a `state` without batch axes is expanded to the batch of `slot`."""
        flat = (part.expand(*slot.shape[:-1], -1).reshape(-1, part.shape[-1]) for part in state)
        output, cell = self.cell(slot.reshape(-1, slot.shape[-1]), tuple(flat))
        return output.view(*slot.shape[:-1], -1), cell.view(*slot.shape[:-1], -1)
