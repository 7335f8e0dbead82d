"""SRI, the LOM's published successor: its options and presets."""

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from torch import Tensor, nn

from experiments.config import Config, Depth, Size, Train
from experiments.systems import published
from experiments.systems.emorl import EmorlInference
from experiments.systems.genesis_v2 import GENESIS_V2_SMALL, GENESIS_V2_TOWERS, GenesisV2Inference
from experiments.systems.lom import DEMO, LOM_SMALL, Lom
from experiments.systems.options import SHAPESTACKS, Geco, ImageShape, MatchedOptions, Schedule, SlotOptions, part
from guides.sri import SriGuide
from models.sri import Sri as SriModel
from pyro_lom.distributions import GaussianHead, positive_root
from pyro_lom.networks.initialisation import small_xavier_
from pyro_lom.networks.recurrent_prior import SlotRecurrence
from pyro_lom.networks.relations import RelationSceneEncoder
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class Sri(MatchedOptions):
    """SRI and the orderless model from which it borrows slots."""

    kind: ClassVar[str] = "sri"
    published_older: ClassVar[dict[str, str]] = published.NO_WEIGHTS

    orderless: GenesisV2Inference | EmorlInference = field(default_factory=GenesisV2Inference)
    likelihood: Literal["gaussian", "mixture"] = "mixture"
    geco: Geco = Geco(target=0.5655 - 0.5 * math.log(2 * math.pi), analytic_kl=False)
    """Rule of each pair. `analytic_kl` acts on the orderless pair; the KLs of the ordered pair have formulas."""
    scene_dim: Size = 128
    """Ds."""
    num_encoder_blocks: Depth = 3
    """Relation blocks of the scene encoder g."""
    token_width: Size = 64
    """Width of the tokens in g, and of the inputs of both LSTMs; Dz as published."""
    recurrence_width: Size = 256
    """Units of the LSTM of the slot prior and of the LSTM of the posterior's scales."""

    def build(self, image_shape: ImageShape, train: Train) -> System:
        orderless = self.orderless.pair(self, image_shape)
        model = SriModel(
            self.make_decoder(image_shape),
            likelihood=self.make_likelihood(),
            num_slots=self.num_slots,
            slot_dim=self.slot_dim,
            scene_dim=self.scene_dim,
            recurrence=self._recurrence(),
            slot_prior=self._head(self.recurrence_width, self.slot_dim),
        )
        guide = SriGuide(
            model,
            orderless.guide,
            scene_encoder=RelationSceneEncoder(
                self.slot_dim, self.scene_dim, width=self.token_width, num_blocks=self.num_encoder_blocks
            ),
            scene_posterior=self._head(self.scene_dim, self.scene_dim),
            recurrence=self._recurrence(),
            scale_head=small_xavier_(nn.Linear(self.recurrence_width, self.slot_dim)),
            matching=self.make_matching(),
        )
        geco = replace(self.ordered_geco(train), analytic_kl=True)
        criterion = geco.criterion(image_shape, image_scale=self.image_scale, rollouts=guide.rollouts)
        return {"orderless": orderless, "ordered": Pair(model, guide, criterion, reads="orderless")}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.sri(*(published.within(tensors, f"pairs.{pair}.") for pair in ("orderless", "ordered")))

    def _recurrence(self) -> nn.Module:
        return small_xavier_(
            SlotRecurrence(
                self.slot_dim, width=self.recurrence_width, scene_dim=self.scene_dim, token_dim=self.token_width
            )
        )

    @staticmethod
    def _head(in_dim: int, out_dim: int) -> nn.Module:
        return small_xavier_(GaussianHead(in_dim, out_dim, to_scale=positive_root))


SRI_SHAPESTACKS = Config(preset="sri-shapestacks", model=Sri(num_slots=9), data=SHAPESTACKS)
"""SRI on ShapeStacks as published, over GENESIS-v2."""


def _over(base: Config, lom: Config[Lom], **schedule: float) -> Config[Sri]:
    """Return SRI over the orderless model of a preset, with the scene latent, matching and schedule of a LOM."""
    model = Sri(
        **vars(part(base.model, SlotOptions)),
        orderless=part(base.model, GenesisV2Inference),
        scene_dim=lom.model.scene_dim,
        matching=lom.model.matching,
        schedule=replace(part(lom.model.schedule, Schedule), **schedule),
    )
    return replace(base, preset=base.preset.replace("genesis-v2", "sri"), model=model, train=lom.train)


def _small(base: Config, lom: Config[Lom]) -> Config[Sri]:
    """Return a small SRI for rendered scenes. Its ordered steps cost more than those of the LOM."""
    steps = base.train.steps + 3500
    sri = _over(base, lom, ordered_batch_size=12, orderless_first=base.train.steps / steps)
    return replace(sri, train=replace(sri.train, steps=steps))


SRI_TOWERS = _over(GENESIS_V2_TOWERS, DEMO, ordered_batch_size=24)
"""A small SRI with the orderless model, the likelihood and the schedule of the demo."""

SYSTEMS = (Sri,)
PRESETS = (
    SRI_TOWERS,
    *map(_small, GENESIS_V2_SMALL, LOM_SMALL),
    SRI_SHAPESTACKS,
)
