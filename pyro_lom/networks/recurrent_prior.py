"""Recurrent networks over slots: of GENESIS, GENESIS-v2, Models 7 and 8 (A.5), and SRI."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.distributions import bounded_normal
from pyro_lom.networks.transformers import xavier_

State = tuple[Float[Tensor, "... width"], Float[Tensor, "... width"]]  # an LSTM's output and cell


def next_state(cell: nn.LSTMCell, inputs: Float[Tensor, "*batch in_dim"], state: State | None = None) -> State:
    """Return the state after `inputs`, from `state`, which may lack their batch axes, or from zeros."""
    if state is not None:
        state = tuple(part.expand(*inputs.shape[:-1], -1).reshape(-1, part.shape[-1]) for part in state)
    output, memory = cell(inputs.reshape(-1, inputs.shape[-1]), state)
    return output.view(*inputs.shape[:-1], -1), memory.view(*inputs.shape[:-1], -1)


class RecurrentHead(nn.Module):
    """The distributions of slots one after another, in GENESIS and GENESIS-v2 (Engelcke et al., 2020, 2021).

        state_k = LSTM(inputs_k, state_k-1),    with state_0 = 0
        slot k  ~ to_distribution(linear(output of state_k))

    Args:
        in_dim: size of the inputs, such as the slot before.
        out_dim: size of a slot.
        width: units of the LSTM.
        to_distribution: maps raw parameters (*batch, 2 out_dim) to a distribution of event shape (out_dim,).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        width: int,
        to_distribution: Callable[[Tensor], dist.Distribution] = bounded_normal,
    ):
        super().__init__()
        self.cell = nn.LSTMCell(in_dim, width)
        self.raw = nn.Linear(width, 2 * out_dim)
        self.to_distribution = to_distribution

    def forward(
        self, inputs: Float[Tensor, "*batch in_dim"], state: State | None = None
    ) -> tuple[dist.Distribution, State]:
        """Return the distribution of the next slot and the next state; None stands for the state 0."""
        state = next_state(self.cell, inputs, state)
        return self.to_distribution(self.raw(state[0])), state


class SlotRecurrence(nn.Module):
    """LSTM over s and z_1 to z_k-1, whose output parametrises the distribution of slot k.

        state_1 = LSTM(GELU(linear(s)))            or, without a scene, LSTM(a trainable embedding)
        state_k = LSTM(z_k-1, state_k-1)

    The paper does not specify the recurrent network. This one is an LSTM cell with PyTorch's default initialisation.

    Args:
        width: units of the LSTM.
        scene_dim: Ds; None for a model without a scene latent.
        token_dim: width of the LSTM's inputs; Dz by default. With another width, a linear layer maps slots to it.
    """

    def __init__(self, slot_dim: int, *, width: int, scene_dim: int | None = None, token_dim: int | None = None):
        super().__init__()
        token_dim = token_dim or slot_dim
        if scene_dim is None:
            self.first = nn.Parameter(torch.zeros(token_dim))
        else:
            self.project_scene = xavier_(nn.Sequential(nn.Linear(scene_dim, token_dim), nn.GELU()))
        self.embed = nn.Identity() if token_dim == slot_dim else xavier_(nn.Linear(slot_dim, token_dim))
        self.cell = nn.LSTMCell(token_dim, width)

    def start(self, scene: Float[Tensor, "*batch Ds"] | None) -> State:
        """Return the state for the first slot; without a scene, the state has no batch axes."""
        token = self.first if scene is None else self.project_scene(scene)
        return next_state(self.cell, token)

    def forward(self, slot: Float[Tensor, "*batch Dz"], state: State) -> State:
        """Return the state for the next slot; a `state` without batch axes is expanded to the batch of `slot`."""
        return next_state(self.cell, self.embed(slot), state)

    def read(
        self, scene: Float[Tensor, "*batch Ds"], slots: Float[Tensor, "*batch K Dz"]
    ) -> Float[Tensor, "*batch K width"]:
        """Return all K outputs for given slots: output k depends on the scene and on slots 1 to k-1."""
        states = [self.start(scene)]
        for slot in slots.unbind(-2)[:-1]:
            states.append(self(slot, states[-1]))
        return torch.stack([output for output, _ in states], dim=-2)
