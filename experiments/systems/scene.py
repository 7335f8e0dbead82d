"""The options of a scene latent: its prior, its encoder, and the floor of its KL."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from experiments.config import Depth, Natural, NotNegative, Size, within
from pyro_lom.distributions import GaussianHead
from pyro_lom.errors import UserError
from pyro_lom.geco import FreeNats
from pyro_lom.networks.transformers import SceneEncoder, sum_pooling, token_pooling, xavier_
from pyro_lom.scene_priors import CouplingFlow, NormalMixture, StandardNormal

_POOLINGS = {"sum": sum_pooling, "token": token_pooling}


@dataclass(frozen=True)
class ScenePrior:
    kind: Literal["normal", "mixture", "flow"] = "normal"
    """p(s): standard normal (Sec. 3.1), mixture of normals (Sec. 5), or flow of affine couplings."""
    num_components: Size = 8
    """Number of normals in a mixture."""
    num_couplings: Annotated[int, within(1, 64)] = 4
    """Number of affine couplings in a flow."""

    def check(self) -> None:
        """Raise UserError if an option has no effect."""
        for name, kind in (("num_components", "mixture"), ("num_couplings", "flow")):
            if self.kind != kind and getattr(self, name) != getattr(ScenePrior, name):
                option = f"--model.scene-prior.{name.replace('_', '-')}"
                raise UserError(f"{option} has no effect without --model.scene-prior.kind {kind}")

    def make(self, scene_dim: int) -> nn.Module:
        """Build p(s) as a module."""
        if self.kind == "mixture":
            return NormalMixture(scene_dim, self.num_components)
        if self.kind == "flow":
            return CouplingFlow(scene_dim, self.num_couplings)
        return StandardNormal(scene_dim)


@dataclass(frozen=True)
class SceneFreeNats:
    """Floor of the KL of each scene latent (Eq. 26)."""

    per_dim: NotNegative = 0.25
    """lambda / Ds, in nats per dimension of s (A.4.2)."""
    final_per_dim: NotNegative = 0.167
    """The floor in the last steps (A.4.2)."""
    final_steps: Natural = 25_000
    """Number of last steps that use final_per_dim (A.4.2)."""

    def check(self) -> None:
        """Raise UserError if an option has no effect."""
        if self.final_steps == 0 and self.final_per_dim != SceneFreeNats.final_per_dim:
            raise UserError("--model.free-nats.final-per-dim has no effect without --model.free-nats.final-steps")


@dataclass(frozen=True)
class SceneOptions:
    """The scene latent s: its prior, its encoder g, and the floor of its KL."""

    scene_dim: Size = 128
    """Ds (A.4.1)."""
    scene_prior: ScenePrior = ScenePrior()
    scene_pooling: Literal["sum", "token"] = "sum"
    """Input of g's last layer: the sum of its K+1 outputs (Fig. 5a), or the output of its own token (Fig. 5b)."""
    num_encoder_blocks: Depth = 3
    """Self-attention blocks of the scene encoder g (A.1)."""
    transformer_width: Size = 64
    """Width of the tokens in the Transformers; Dz in the paper (A.1)."""
    transformer_mlp_ratio: Annotated[int, within(1, 16)] = 1
    """Width of the Transformers' perceptrons, as a multiple of the tokens' width; 1 in the paper (A.1)."""
    free_nats: SceneFreeNats = SceneFreeNats()

    def make_scene_posterior(self, slot_dim: int) -> dict[str, nn.Module]:
        """Build g and the heads of q(s), as keyword arguments of a guide."""
        encoder = SceneEncoder(
            slot_dim,
            self.scene_dim,
            width=self.transformer_width,
            num_blocks=self.num_encoder_blocks,
            mlp_ratio=self.transformer_mlp_ratio,
            pooling=_POOLINGS[self.scene_pooling],
        )
        return {"scene_encoder": encoder, "scene_posterior": xavier_(GaussianHead(self.scene_dim, self.scene_dim))}

    def scene_free_nats(self, steps: int) -> dict[str, FreeNats]:
        """Return the floor of the KL of s for a training of `steps` steps."""
        nats = self.free_nats
        per_dim = (nats.per_dim * self.scene_dim, nats.final_per_dim * self.scene_dim)
        return {"s": FreeNats(*per_dim, steps - nats.final_steps)}
