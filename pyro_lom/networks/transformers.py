"""The three Transformers of a LOM: scene encoder g and causal Transformers f and f' (Sec. 3.2, A.1, Fig. 5)."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pyro_lom.networks.initialisation import xavier_


class SelfAttentionBlock(nn.Module):
    """Residual single-head self-attention (Eqs. 10-11).

        a = softmax(q(x) k(x)^T / sqrt(D)) v(x)
        x = x + MLP(LayerNorm(x + a))

    If `causal`, token i attends to tokens 0..i only. The perceptron has `mlp_ratio` times D hidden units.
    """

    def __init__(self, dim: int, *, causal: bool, mlp_ratio: int = 1):
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        # The layer computes three projections at once. Each is initialised as a separate square matrix.
        for projection in xavier_(self).qkv.weight.data.chunk(3):
            nn.init.xavier_normal_(projection)

    def forward(self, tokens: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N D"]:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        attended = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return tokens + self.mlp(self.norm(tokens + attended))


def _blocks(num_blocks: int, dim: int, *, causal: bool, mlp_ratio: int) -> nn.Sequential:
    return nn.Sequential(*(SelfAttentionBlock(dim, causal=causal, mlp_ratio=mlp_ratio) for _ in range(num_blocks)))


def sum_pooling(outputs: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch D"]:
    """The sum of all outputs of g (Fig. 5a)."""
    return outputs.sum(-2)


def token_pooling(outputs: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch D"]:
    """The last output of g, which belongs to its own token o_s (Fig. 5b)."""
    return outputs[..., -1, :]


class SceneEncoder(nn.Module):
    """g: map from a set of slots to features of the scene, invariant to the order of the slots (Fig. 5a).

    The slots and one trainable embedding o_s pass through residual self-attention without positions. The K+1 outputs
    are pooled and projected: Linear(sum_i SA(o_1:K, o_s)_i) with the paper's `pooling`. The projection has no
    activation, since a GELU on this sum removes much of its information.
    """

    def __init__(
        self,
        slot_dim: int,
        scene_dim: int,
        *,
        width: int,
        num_blocks: int = 3,
        mlp_ratio: int = 1,
        pooling: Callable[[Tensor], Tensor] = sum_pooling,
    ):
        super().__init__()
        self.pooling = pooling
        self.embed = nn.Identity() if width == slot_dim else nn.Linear(slot_dim, width)
        self.scene_token = nn.Parameter(torch.zeros(width))
        self.blocks = _blocks(num_blocks, width, causal=False, mlp_ratio=mlp_ratio)
        self.project = nn.Linear(width, scene_dim)
        xavier_(self.project)
        xavier_(self.embed)

    def forward(self, slots: Float[Tensor, "*batch K Dz"]) -> Float[Tensor, "*batch Ds"]:
        tokens = self.embed(slots)
        scene_token = self.scene_token.expand(*tokens.shape[:-2], 1, -1)
        outputs = self.blocks(torch.cat([tokens, scene_token], dim=-2))
        return self.project(self.pooling(outputs))


class CausalTransformer(nn.Module):
    """Base class of f and f': output i depends on the scene, the first token, and on the tokens up to i (A.1).

    The position i of a token is encoded as a linear map of i / (K+1). If `shared` is given, its weights are
    used without being registered here: they are trained, moved and saved with `shared`.
    """

    def __init__(
        self,
        scene_dim: int,
        *,
        width: int,
        num_blocks: int = 2,
        mlp_ratio: int = 1,
        shared: "CausalTransformer | None" = None,
    ):
        super().__init__()
        if shared is not None:
            for name in ("project_scene", "position", "blocks"):
                object.__setattr__(self, name, getattr(shared, name))
            return
        self.project_scene = nn.Sequential(nn.Linear(scene_dim, width), nn.GELU())
        self.position = nn.Linear(1, width)
        self.blocks = _blocks(num_blocks, width, causal=True, mlp_ratio=mlp_ratio)
        xavier_(self.project_scene)
        xavier_(self.position)

    def run(self, scene: Float[Tensor, "*batch Ds"], tokens: Float[Tensor, "*batch N D"], num_slots: int) -> Tensor:
        """Return all N+1 outputs for [scene, tokens], shape (*batch, N+1, D)."""
        sequence = torch.cat([self.project_scene(scene).unsqueeze(-2), tokens], dim=-2)
        index = torch.arange(sequence.shape[-2], device=sequence.device, dtype=sequence.dtype)
        return self.blocks(sequence + self.position((index / (num_slots + 1)).unsqueeze(-1)))


class PriorOrder(CausalTransformer):
    """f: map from a scene to h_1:K, the features that parametrise the prior of each slot (Eq. 2, Fig. 5c).

    The input is the scene and K copies of a trainable embedding. `options` are those of `CausalTransformer`.
    """

    def __init__(self, scene_dim: int, *, num_slots: int, width: int, **options):
        super().__init__(scene_dim, width=width, **options)
        self.num_slots = num_slots
        self.token = nn.Parameter(torch.zeros(width))

    def forward(self, scene: Float[Tensor, "*batch Ds"]) -> Float[Tensor, "*batch K D"]:
        tokens = self.token.expand(*scene.shape[:-1], self.num_slots, -1)
        return self.run(scene, tokens, self.num_slots)[..., 1:, :]


class PosteriorOrder(CausalTransformer):
    """f': map from the scene and the slots at places 1..k-1 to h'_k = f'(o_pi(1):pi(k-1), s) (Sec. 3.2, Fig. 5d).

    `options` are those of `CausalTransformer`.
    """

    def __init__(self, scene_dim: int, slot_dim: int, *, width: int, **options):
        super().__init__(scene_dim, width=width, **options)
        self.embed = nn.Identity() if width == slot_dim else xavier_(nn.Linear(slot_dim, width))

    def forward(
        self, scene: Float[Tensor, "*batch Ds"], slots: Float[Tensor, "*batch K Dz"]
    ) -> Float[Tensor, "*batch K D"]:
        # The scene is the first token and the last slot is left out, so output k depends on slots 1..k-1 only.
        return self.run(scene, self.embed(slots[..., :-1, :]), num_slots=slots.shape[-2])
