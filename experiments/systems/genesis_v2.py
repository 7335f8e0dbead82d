"""GENESIS-v2 with independent slots: its options and presets."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor

from experiments.config import Config, Count, Natural, NotNegative, Train, Width
from experiments.systems import published
from experiments.systems.options import (
    CLEVR6,
    OBJECTS_ROOM,
    RENDERED,
    SHAPESTACKS,
    Geco,
    ImageShape,
    SlotOptions,
)
from guides.genesis_v2 import GenesisV2Guide
from models.genesis_v2 import GenesisV2 as GenesisV2Model
from pyro_lom.geco import FreeNats
from pyro_lom.networks.pixel_encoders import (
    CompactPixelEncoder,
    PartsEncoder,
    PixelEncoder,
    RegionEncoder,
    SlotReadout,
)
from pyro_lom.system import Pair, System

SMALL_ENCODERS = {"compact": CompactPixelEncoder, "regions": RegionEncoder, "parts": PartsEncoder}


@dataclass(frozen=True)
class GenesisV2Networks:
    """Options of GENESIS-v2's guide."""

    encoder: Literal["published", *SMALL_ENCODERS] = "published"
    """The published networks, or small networks for small images and short trainings (departure): compact for flat
    colours, regions for objects of any shape with visible outlines, parts if objects may have several colours."""
    encoder_width: Width = 64
    """Channels of the encoder at its full resolution."""
    encoder_hidden: Count | None = None
    """Hidden units in the bottleneck of the encoder's UNet; by default 128 as published, or in small encoders
    2 encoder_width."""

    fixed_clusters: Natural = 0
    """First steps in which the clusters do not learn, and the decoder learns from the initial ones (departure)."""

    def make_networks(self, slot_dim: int, image_shape: ImageShape) -> dict[str, Any]:
        """Build the encoder and the readout; return keyword arguments of the guide."""
        if self.encoder == "published":
            encoder = PixelEncoder(image_shape, width=self.encoder_width, bottleneck=self.encoder_hidden or 128)
            readout = SlotReadout(slot_dim, width=self.encoder_width)
        else:
            encoder = SMALL_ENCODERS[self.encoder](
                image_shape, width=self.encoder_width, bottleneck=self.encoder_hidden
            )
            readout = encoder.make_readout(slot_dim)
        return {"encoder": encoder, "readout": readout, "fixed_clusters": self.fixed_clusters}


@dataclass(frozen=True)
class GenesisV2Inference(GenesisV2Networks):
    """Options of GENESIS-v2's inference. In a LOM they are `--model.orderless.*`."""

    kind: ClassVar[str] = "genesis-v2"

    free_nats_per_dim: NotNegative = 0.0
    """Floor of the KL of all slots of a scene, in nats per dimension of a slot; 0 as published."""

    def pair(self, slots: SlotOptions, image_shape: ImageShape) -> Pair:
        """Build the model, the guide and the criterion."""
        model = GenesisV2Model(
            slots.make_decoder(image_shape),
            num_slots=slots.num_slots,
            slot_dim=slots.slot_dim,
            likelihood=slots.make_likelihood(),
        )
        guide = GenesisV2Guide(model, **self.make_networks(slots.slot_dim, image_shape))
        free_nats = {"o": FreeNats.constant(self.free_nats_per_dim * slots.slot_dim)}
        return Pair(model, guide, slots.criterion(image_shape, free_nats))


@dataclass(frozen=True)
class GenesisV2(GenesisV2Inference, SlotOptions):
    """GENESIS-v2 alone."""

    published_key: ClassVar[str | None] = "model_state_dict"
    published_older: ClassVar[dict[str, str]] = published.NO_WEIGHTS

    def build(self, image_shape: ImageShape, train: Train) -> System:
        return {"model": self.pair(self, image_shape)}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.genesis_v2(published.within(tensors, "pairs.model."))

    def reference_gflop(self, image_shape: ImageShape) -> float | None:
        counted = self.encoder == "published" and self.num_slots == 7 and image_shape[1:] == (64, 64)
        return 11.0 if counted else None


GENESIS_V2_OBJECTS_ROOM = Config(preset="genesis-v2-objects-room", model=GenesisV2(), data=OBJECTS_ROOM)
"""GENESIS-v2-G on Objects Room with all hyperparameters of A.4."""

GENESIS_V2_SHAPESTACKS = Config(preset="genesis-v2-shapestacks", model=GenesisV2(num_slots=9), data=SHAPESTACKS)
"""GENESIS-v2-G on ShapeStacks (A.4)."""

GENESIS_V2_CLEVR6 = Config(
    preset="genesis-v2-clevr6", model=GenesisV2(geco=Geco(target=-0.356)), data=CLEVR6, train=Train(steps=300_000)
)
"""GENESIS-v2-G on CLEVR6: larger images, a stricter target, fewer steps (A.4.2, A.4.3)."""

GENESIS_V2_TOWERS = Config(
    preset="genesis-v2-towers",
    model=GenesisV2(
        num_slots=5,
        slot_dim=8,
        encoder="compact",
        encoder_width=24,
        decoder="separable",
        decoder_width=96,
        geco=Geco(
            target=None,
            target_rmse=0.028,
            step_size=0.01,
            speedup=3.0,
            initial=0.02,
            minimum=0.02,
            maximum=1.0,
            goal_relative=True,
        ),
    ),
    train=Train(
        steps=9000,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=100,
        decay="linear",
        clip_norm=20.0,
        log_every=50,
        checkpoint_every=1000,
        preview_every=2000,
    ),
)
"""The orderless model of the demo, alone.

`ARCHITECTURE.md` lists the departures from the paper: small networks that start with colours and places of slots;
small slots; GECO relative to its target, with a small first multiplier; a learning rate twenty times as high, with
warm-up and decay; clipped gradients.
"""

_TARGETS = {"objects-room": 0.07, "shapestacks-near": 0.095, "clevr6": 0.03}
"""RMSE that small networks reach. The textures of stacks require a looser target."""

GENESIS_V2_SMALL = tuple(
    replace(
        GENESIS_V2_TOWERS,
        preset=f"genesis-v2-{name}-small",
        model=replace(
            GENESIS_V2_TOWERS.model,
            num_slots=7,
            slot_dim=16,
            encoder="regions",
            fixed_clusters=2000,
            decoder="frame",
            geco=replace(GENESIS_V2_TOWERS.model.geco, target_rmse=_TARGETS[name]),
        ),
        data=data,
        train=replace(GENESIS_V2_TOWERS.train, steps=6000, batch_size=8, learning_rate=8e-3),
    )
    for name, data in RENDERED.items()
)
"""Small networks on rendered scenes, which train in about 13 minutes on one thread.

They depart from the paper as GENESIS_V2_TOWERS does, with an encoder and a decoder for objects of any shape.
"""

SYSTEMS = (GenesisV2,)
PRESETS = (
    GENESIS_V2_TOWERS,
    *GENESIS_V2_SMALL,
    GENESIS_V2_OBJECTS_ROOM,
    GENESIS_V2_SHAPESTACKS,
    GENESIS_V2_CLEVR6,
)
