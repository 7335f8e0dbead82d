"""SRI's scene encoder: self-attention whose values are relations between two slots (Emami et al., 2022)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyro_lom.networks.initialisation import small_xavier_


class RelationBlock(nn.Module):
    """Residual single-head self-attention over relations.

    v_ij = MLP([x_i, x_i - x_j])
    a_i  = sum_j softmax_j(q(x_i) . k(x_j) / sqrt(D)) v_ij
    x_i  = x_i + MLP(LayerNorm(x_i + a_i))
    """

    def __init__(self, dim: int):
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.relation = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, tokens: Float[Tensor, "*batch K D"]) -> Float[Tensor, "*batch K D"]:
        here, there = tokens.unsqueeze(-2), tokens.unsqueeze(-3)
        differences = here - there  # (*batch, K, K, D)
        values = self.relation(torch.cat([here.expand_as(differences), differences], dim=-1))
        logits = self.query(tokens) @ self.key(tokens).transpose(-1, -2) / tokens.shape[-1] ** 0.5
        attended = (logits.softmax(-1).unsqueeze(-2) @ values).squeeze(-2)
        return tokens + self.mlp(self.norm(tokens + attended))


class RelationSceneEncoder(nn.Module):
    """Map from a set of slots to features of the scene, invariant to the order of the slots.

    The slots pass through relation blocks, and their outputs are summed: GELU(linear(sum_k x_k)). If `width` is not Dz,
    a linear layer first maps slots to it. Weights start Xavier-normal with gain 0.02, biases at zero, as published.
    """

    def __init__(self, slot_dim: int, scene_dim: int, *, width: int, num_blocks: int = 3):
        super().__init__()
        self.embed = nn.Identity() if width == slot_dim else nn.Linear(slot_dim, width)
        self.blocks = nn.Sequential(*(RelationBlock(width) for _ in range(num_blocks)))
        self.project = nn.Sequential(nn.Linear(width, scene_dim), nn.GELU())
        small_xavier_(self)

    def forward(self, slots: Float[Tensor, "*batch K Dz"]) -> Float[Tensor, "*batch Ds"]:
        return self.project(self.blocks(self.embed(slots)).sum(-2))
