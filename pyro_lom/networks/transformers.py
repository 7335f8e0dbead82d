"""The LOM's three Transformers: scene encoder g, and the causal f and f' (Sec. 3.2, A.1, Fig. 5)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


def xavier_(module: nn.Module) -> nn.Module:
    """Xavier-normal weights and zero biases for every linear layer in `module` (A.1)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class SelfAttentionBlock(nn.Module):
    """Residual single-head self-attention (Eqs. 10-11).

        a = softmax(q(x) k(x)^T / sqrt(D)) v(x)
        x = x + MLP(LayerNorm(x + a))

    With `causal`, token i attends to tokens 0..i only. The perceptron has `mlp_ratio` times D hidden units.
    """

    def __init__(self, dim: int, *, causal: bool, mlp_ratio: int = 1):
        super().__init__()
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))
        # Three projections in one product; each is initialised as the square matrix it is.
        for projection in xavier_(self).qkv.weight.data.chunk(3):
            nn.init.xavier_normal_(projection)

    def forward(self, tokens: Float[Tensor, "*batch N D"]) -> Float[Tensor, "*batch N D"]:
        query, key, value = self.qkv(tokens).chunk(3, dim=-1)
        attended = scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return tokens + self.mlp(self.norm(tokens + attended))


def _blocks(num_blocks: int, dim: int, *, causal: bool, mlp_ratio: int) -> nn.Sequential:
    return nn.Sequential(*(SelfAttentionBlock(dim, causal=causal, mlp_ratio=mlp_ratio) for _ in range(num_blocks)))


class SceneEncoder(nn.Module):
    """g: an orderless set of slots to features of the scene, whatever the order of the slots (Fig. 5a).

    The slots and one trainable embedding o_s pass through residual self-attention without positions; the K+1 outputs
    are summed and projected: Linear(sum_i SA(o_1:K, o_s)_i). The projection has no activation: a GELU on this
    sum cuts away much of what it says. With `pooling` "token" it reads output K+1, that of o_s, alone (Fig. 5b).
    """

    def __init__(
        self, slot_dim: int, scene_dim: int, *, width: int, num_blocks: int, mlp_ratio: int = 1, pooling: str = "sum"
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
        return self.project(outputs.sum(-2) if self.pooling == "sum" else outputs[..., -1, :])


class CausalTransformer(nn.Module):
    """f and f': a sequence that starts with the scene; output i depends on the scene and on tokens up to i (A.1).

    Token i of K+1 carries its position as a linear map of i / (K+1). With `shared` it has the weights of another, which
    owns them: they are trained, moved and saved there.
    """

    def __init__(
        self,
        scene_dim: int,
        *,
        width: int,
        num_blocks: int,
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
        """All N+1 outputs for [scene, tokens], shape (*batch, N+1, D)."""
        sequence = torch.cat([self.project_scene(scene).unsqueeze(-2), tokens], dim=-2)
        index = torch.arange(sequence.shape[-2], device=sequence.device, dtype=sequence.dtype)
        return self.blocks(sequence + self.position((index / (num_slots + 1)).unsqueeze(-1)))


class PriorOrder(CausalTransformer):
    """f: unrolls a scene into h_1:K, which say what each slot must draw (Eq. 2, Fig. 5c).

    Its input is the scene and K copies of one trainable embedding; its output starts from the second token.
    """

    def __init__(self, scene_dim: int, *, num_slots: int, width: int, num_blocks: int, mlp_ratio: int = 1):
        super().__init__(scene_dim, width=width, num_blocks=num_blocks, mlp_ratio=mlp_ratio)
        self.num_slots = num_slots
        self.token = nn.Parameter(torch.zeros(width))

    def forward(self, scene: Float[Tensor, "*batch Ds"]) -> Float[Tensor, "*batch K D"]:
        tokens = self.token.expand(*scene.shape[:-1], self.num_slots, -1)
        return self.run(scene, tokens, self.num_slots)[..., 1:, :]


class PosteriorOrder(CausalTransformer):
    """f': h'_k = f'(o_pi(1):pi(k-1), s), from the slots placed before k and the scene (Sec. 3.2, Fig. 5d)."""

    def __init__(
        self,
        scene_dim: int,
        slot_dim: int,
        *,
        width: int,
        num_blocks: int,
        mlp_ratio: int = 1,
        shared: CausalTransformer | None = None,
    ):
        super().__init__(scene_dim, width=width, num_blocks=num_blocks, mlp_ratio=mlp_ratio, shared=shared)
        self.embed = nn.Identity() if width == slot_dim else xavier_(nn.Linear(slot_dim, width))

    def forward(
        self, scene: Float[Tensor, "*batch Ds"], slots: Float[Tensor, "*batch K Dz"]
    ) -> Float[Tensor, "*batch K D"]:
        # The scene takes the first place and the last slot is left out: output k has seen slots 1..k-1 only.
        return self.run(scene, self.embed(slots[..., :-1, :]), num_slots=slots.shape[-2])
