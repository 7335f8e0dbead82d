"""The recurrent network of an autoregressive slot prior (A.5, Models 7 and 8)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.transformers import xavier_

State = tuple[Float[Tensor, "... width"], Float[Tensor, "... width"]]  # an LSTM's output and cell


class SlotRecurrence(nn.Module):
    """What the prior of slot k knows: an LSTM that has read s, then z_1 to z_k-1.

        state_1 = LSTM(GELU(linear(s)))            or, without a scene, LSTM(a trainable embedding)
        state_k = LSTM(z_k-1, state_k-1)

    The paper leaves the recurrent network open. Here it is one LSTM cell with PyTorch's own initialisation.

    Args:
        scene_dim: Ds; None where there is no scene latent.
    """

    def __init__(self, slot_dim: int, *, width: int, scene_dim: int | None = None):
        super().__init__()
        if scene_dim is None:
            self.first = nn.Parameter(torch.zeros(slot_dim))
        else:
            self.project_scene = xavier_(nn.Sequential(nn.Linear(scene_dim, slot_dim), nn.GELU()))
        self.cell = nn.LSTMCell(slot_dim, width)

    def start(self, scene: Float[Tensor, "*batch Ds"] | None) -> State:
        """The state for the first slot; without a scene it is one for all, with no batch axes."""
        token = self.first if scene is None else self.project_scene(scene)
        zeros = token.new_zeros(*token.shape[:-1], self.cell.hidden_size)
        return self(token, (zeros, zeros))

    def forward(self, slot: Float[Tensor, "*batch Dz"], state: State) -> State:
        """The state for the next slot; a state without batch axes is that of every slot in the batch."""
        flat = (part.expand(*slot.shape[:-1], -1).reshape(-1, part.shape[-1]) for part in state)
        output, cell = self.cell(slot.reshape(-1, slot.shape[-1]), tuple(flat))
        return output.view(*slot.shape[:-1], -1), cell.view(*slot.shape[:-1], -1)
