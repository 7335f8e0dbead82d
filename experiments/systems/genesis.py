"""GENESIS: its options and presets."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import Tensor, nn

from experiments.config import Config, Size, Train, Width
from experiments.systems import published
from experiments.systems.genesis_v2 import GENESIS_V2_SMALL, GENESIS_V2_TOWERS
from experiments.systems.options import (
    CLEVR6,
    OBJECTS_ROOM,
    SHAPESTACKS,
    CompositionOptions,
    Geco,
    ImageShape,
    check_image_size,
)
from guides.genesis import GenesisGuide, posterior_normal
from models.genesis import Genesis as GenesisModel
from pyro_lom.errors import UserError
from pyro_lom.networks.genesis import ComponentDecoder, ComponentEncoder, ImageEncoder, MaskDecoder
from pyro_lom.networks.recurrent_prior import RecurrentHead
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class Genesis(CompositionOptions):
    """GENESIS. Its networks normalise batches, so the loss of a scene in training depends on the other scenes."""

    kind: ClassVar[str] = "genesis"
    published_key: ClassVar[str | None] = "model_state_dict"
    published_older: ClassVar[dict[str, str]] = published.NO_WEIGHTS

    likelihood: Literal["gaussian", "mixture"] = "mixture"
    """p(x | z): a mixture over slots at each pixel, as published, or a normal whose mean is the sum of the slots."""
    geco: Geco = Geco(target=-0.353439, step_size=1e-5, analytic_kl=False)
    mask_dim: Size = 64
    """Dm: size of a mask latent."""
    component_dim: Size = 16
    """Dc: size of a component latent."""
    encoder_width: Width = 32
    """Channels of the guide's convolutions at their full resolution."""
    decoder_width: Width = 32
    """Channels of the model's convolutions at their full resolution."""

    def build(self, image_shape: ImageShape, train: Train) -> System:
        check_image_size(image_shape)
        (channels, size, _), in_prior = image_shape, 8 * self.decoder_width
        model = GenesisModel(
            mask_prior=RecurrentHead(self.mask_dim, self.mask_dim, width=in_prior),
            mask_decoder=MaskDecoder(self.mask_dim, size, width=self.decoder_width),
            component_prior=nn.Sequential(
                *(nn.Linear(self.mask_dim, in_prior), nn.ELU(), nn.Linear(in_prior, in_prior), nn.ELU()),
                nn.Linear(in_prior, 2 * self.component_dim),
            ),
            component_decoder=ComponentDecoder(
                self.component_dim, size, out_channels=channels, width=self.decoder_width
            ),
            likelihood=self.make_likelihood(),
            num_slots=self.num_slots,
            mask_dim=self.mask_dim,
            component_dim=self.component_dim,
        )
        encoder = ImageEncoder(image_shape, width=self.encoder_width)
        guide = GenesisGuide(
            model,
            encoder=encoder,
            first_mask=nn.Linear(encoder.out_dim, 2 * self.mask_dim),
            mask_posterior=RecurrentHead(
                encoder.out_dim + self.mask_dim,
                self.mask_dim,
                width=4 * self.encoder_width,
                to_distribution=posterior_normal,
            ),
            component_encoder=ComponentEncoder(image_shape, 2 * self.component_dim, width=self.encoder_width),
        )
        return {"model": Pair(model, guide, self.criterion(image_shape))}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.genesis(published.within(tensors, "pairs.model."))

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        super().check(train)
        if accumulate > 1:
            raise UserError(
                f"--accumulate is {accumulate}, but the networks of {self.kind} normalise whole batches, so that parts "
                "of a batch give another step: leave it out, or lower --train.batch-size"
            )

    def reference_gflop(self, image_shape: ImageShape) -> float | None:
        counted = (self.encoder_width, self.decoder_width) == (32, 32) and image_shape[1:] == (64, 64)
        return {7: 24.71, 9: 31.29}.get(self.num_slots) if counted else None


GENESIS_OBJECTS_ROOM = Config(preset="genesis-objects-room", model=Genesis(), data=OBJECTS_ROOM)
"""GENESIS on Objects Room with the published hyperparameters."""

GENESIS_SHAPESTACKS = Config(preset="genesis-shapestacks", model=Genesis(num_slots=9), data=SHAPESTACKS)
"""GENESIS on ShapeStacks."""

GENESIS_CLEVR6 = Config(preset="genesis-clevr6", model=Genesis(), data=CLEVR6, train=Train(steps=300_000))
"""GENESIS on CLEVR6, with the size of images and the number of steps of the paper's other systems (A.4.3)."""

GENESIS_TOWERS = replace(
    GENESIS_V2_TOWERS,
    preset="genesis-towers",
    model=Genesis(
        num_slots=5,
        mask_dim=16,
        component_dim=8,
        image_scale=0.1,
        encoder_width=8,
        decoder_width=8,
        geco=replace(GENESIS_V2_TOWERS.model.geco, initial=0.1, minimum=0.1, maximum=50.0),
    ),
    train=replace(GENESIS_V2_TOWERS.train, steps=3000, batch_size=8),
)
"""GENESIS with a quarter of the published widths.

It departs from the publication as emorl-towers does: sigma is 0.1, GECO is relative to its target, KLs have formulas,
and the learning rate is twenty times as high, with decay. The multiplier starts low, because the KL of the mask latents
after the first is otherwise 0 from the start on.
"""

_SMALL = [
    replace(
        GENESIS_TOWERS,
        preset=base.preset.replace("genesis-v2", "genesis"),
        model=replace(
            GENESIS_TOWERS.model,
            num_slots=base.model.num_slots,
            component_dim=base.model.slot_dim,
            image_scale=base.model.image_scale,
            geco=base.model.geco,
        ),
        data=base.data,
        train=replace(GENESIS_TOWERS.train, steps=2000, learning_rate=4e-3),
    )
    for base in GENESIS_V2_SMALL
]
"""GENESIS_TOWERS on rendered scenes, with the slots, sigma, GECO and data of GENESIS_V2_SMALL.

The learning rate is twice that of GENESIS_TOWERS.

With a sigma of 0.1, the mixture explained each pixel by one of several blurred components, and its mean was grey.
"""

SYSTEMS = (Genesis,)
PRESETS = (GENESIS_TOWERS, *_SMALL, GENESIS_OBJECTS_ROOM, GENESIS_SHAPESTACKS, GENESIS_CLEVR6)
