"""EfficientMORL: its options and presets."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from torch import Tensor, nn

from experiments.config import Config, NotNegative, Train, Width, within
from experiments.systems import published
from experiments.systems.genesis_v2 import (
    GENESIS_V2_SMALL,
    GENESIS_V2_TOWERS,
    SMALL_ENCODERS,
    GenesisV2,
)
from experiments.systems.options import CLEVR6, OBJECTS_ROOM, SHAPESTACKS, Decoder, Geco, ImageShape, SlotOptions
from guides.emorl import EfficientMorlGuide
from models.emorl import EfficientMorl
from pyro_lom.geco import FreeNats
from pyro_lom.networks.compact_slot_attention import CompactSlotAttention, RegionSlotAttention
from pyro_lom.networks.pixel_encoders import RegionEncoder
from pyro_lom.networks.slot_attention import RampEncoder, Refinement, StochasticSlotAttention
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class EmorlInference:
    """Options of EMORL's inference. In a LOM they are `--model.orderless.*`."""

    kind: ClassVar[str] = "emorl"

    encoder: Literal["published", *SMALL_ENCODERS] = "published"
    """The published networks, or small networks for small images and short trainings (departure): compact for flat
    colours, regions for objects of any shape with visible outlines, parts if objects may have several colours."""
    encoder_width: Width = 64
    """Channels of the encoder."""
    num_refinements: Annotated[int, within(1, 64)] = 2
    """Steps of iterative refinement (A.4.1)."""
    first_gradient: Literal["published", "refined"] = "published"
    """Loss whose gradient the first refinement follows: that of step 0, as published, or that of all later refinements
    (departure), which also contains KL(q(o_1) || p(o_1 | o_2))."""
    free_nats_per_dim: NotNegative = 0.75
    """lambda / Dz: floor of each KL of the hierarchy, in nats per dimension of a slot (A.4.2)."""

    def pair(self, slots: SlotOptions, image_shape: ImageShape) -> Pair:
        """Build the model, the guide and the criterion."""
        model = EfficientMorl(
            slots.make_decoder(image_shape),
            num_slots=slots.num_slots,
            slot_dim=slots.slot_dim,
            likelihood=slots.make_likelihood(),
            width=2 * self.encoder_width,
        )
        encoder, attention = self._networks(slots.slot_dim, image_shape)
        guide = EfficientMorlGuide(
            model,
            encoder=encoder,
            attention=attention,
            refinement=Refinement(slots.slot_dim, width=self.encoder_width),
            num_refinements=self.num_refinements,
            first_gradient_of_top=self.first_gradient == "published",
        )
        nats = FreeNats.constant(self.free_nats_per_dim * slots.slot_dim)
        return Pair(model, guide, slots.criterion(image_shape, {site: nats for site in ("o_3", "o_2", "o_1")}))

    def _networks(self, slot_dim: int, image_shape: ImageShape) -> tuple[nn.Module, nn.Module]:
        if self.encoder == "published":
            encoder = RampEncoder(image_shape[0], width=self.encoder_width)
            return encoder, StochasticSlotAttention(slot_dim, width=self.encoder_width)
        encoder = SMALL_ENCODERS[self.encoder](image_shape, width=self.encoder_width)
        make_attention = RegionSlotAttention if isinstance(encoder, RegionEncoder) else CompactSlotAttention
        return encoder, make_attention(slot_dim, encoder)


@dataclass(frozen=True)
class Emorl(EmorlInference, SlotOptions):
    """EMORL alone."""

    published_older: ClassVar[dict[str, str]] = {
        r"(?=pos_embed_projection|encoder_pt_)": "hvae_networks.",
        r"object_discovery_block\.": "hvae_networks.",
        r".*(generation_relation|gru\.cell\.zeros).*": "",
    }

    decoder: Decoder = "broadcast"

    def build(self, image_shape: ImageShape, train: Train) -> System:
        return {"model": self.pair(self, image_shape)}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.emorl(published.within(tensors, "pairs.model."))

    def reference_gflop(self, image_shape: ImageShape) -> float | None:
        counted = self.encoder == "published" and self.num_slots == 7 and image_shape[1:] == (64, 64)
        return 943 / 8 if counted else None


EMORL_OBJECTS_ROOM = Config(
    preset="emorl-objects-room",
    model=Emorl(geco=Geco(rule="additive", target=-0.352, speedup=5.0, initial=0.55, minimum=0.55, warm_start=1000)),
    data=OBJECTS_ROOM,
    train=Train(steps=400_000, learning_rate=4e-4, warmup_steps=10_000, decay="halving", clip_norm=5.0),
)
"""EMORL on Objects Room with all hyperparameters of A.4."""

_GECO = EMORL_OBJECTS_ROOM.model.geco

EMORL_SHAPESTACKS = replace(
    EMORL_OBJECTS_ROOM,
    preset="emorl-shapestacks",
    model=Emorl(num_slots=9, geco=replace(_GECO, target=-0.351, speedup=50.0)),
    data=SHAPESTACKS,
)
"""EMORL on ShapeStacks: a looser target, a faster return to an ELBO (A.4.2)."""

EMORL_CLEVR6 = replace(
    EMORL_OBJECTS_ROOM,
    preset="emorl-clevr6",
    model=Emorl(image_scale=0.1, geco=replace(_GECO, target=-2.265, speedup=10.0)),
    data=CLEVR6,
    train=replace(EMORL_OBJECTS_ROOM.train, steps=300_000),
)
"""EMORL on CLEVR6: larger images, a smaller sigma, fewer steps (A.4.1, A.4.2, A.4.3)."""

_SLOTS = GENESIS_V2_TOWERS.model

EMORL_TOWERS = replace(
    GENESIS_V2_TOWERS,
    preset="emorl-towers",
    model=Emorl(
        num_slots=6,
        slot_dim=_SLOTS.slot_dim,
        image_scale=0.1,
        decoder=_SLOTS.decoder,
        decoder_width=_SLOTS.decoder_width,
        geco=replace(_SLOTS.geco, initial=1.0, minimum=1.0, maximum=50.0),
        encoder=_SLOTS.encoder,
        encoder_width=_SLOTS.encoder_width,
        num_refinements=1,
        first_gradient="refined",
        free_nats_per_dim=0.0,
    ),
    train=replace(GENESIS_V2_TOWERS.train, steps=10_000, learning_rate=4e-3),
)
"""The orderless model of lom-emorl-towers, alone.

It has the encoder and the decoder of the demo, and an attention that starts as soft k-means over pixels. There is
one slot more than a scene has things, because slots start at random (`ARCHITECTURE.md`). It refines once, by a gradient
that depends on the prior of o_1. Sigma is 0.1, as on CLEVR6, so that this gradient depends on the error.
"""


def _small(base: Config[GenesisV2]) -> Config[Emorl]:
    """Return EMORL with the inference of EMORL_TOWERS, and otherwise the slots, networks and data of `base`."""
    model = replace(
        EMORL_TOWERS.model,
        num_slots=base.model.num_slots,
        slot_dim=base.model.slot_dim,
        encoder=base.model.encoder,
        decoder=base.model.decoder,
        decoder_width=base.model.decoder_width,
        geco=replace(EMORL_TOWERS.model.geco, target_rmse=base.model.geco.target_rmse),
    )
    preset = base.preset.replace("genesis-v2", "emorl")
    return replace(base, preset=preset, model=model, train=replace(base.train, steps=3200, learning_rate=4e-3))


EMORL_SMALL = tuple(map(_small, GENESIS_V2_SMALL))
"""Small networks on rendered scenes, which train in about 12 minutes on one thread.

A step costs twice as much as GENESIS-v2's. There is no spare slot, because slots start at pixels far from each other.
"""

SYSTEMS = (Emorl,)
PRESETS = (
    EMORL_TOWERS,
    *EMORL_SMALL,
    EMORL_OBJECTS_ROOM,
    EMORL_SHAPESTACKS,
    EMORL_CLEVR6,
)
