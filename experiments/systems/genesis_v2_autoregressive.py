"""GENESIS-v2 with its autoregressive slot prior: its options and presets."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from experiments.config import Config, Size, Train
from experiments.systems import published
from experiments.systems.genesis_v2 import (
    GENESIS_V2_CLEVR6,
    GENESIS_V2_OBJECTS_ROOM,
    GENESIS_V2_SHAPESTACKS,
    GENESIS_V2_SMALL,
    GENESIS_V2_TOWERS,
    GenesisV2,
    GenesisV2Networks,
)
from experiments.systems.options import Geco, ImageShape, SlotOptions, part
from guides.genesis_v2_autoregressive import AutoregressiveGenesisV2Guide
from models.genesis_v2_autoregressive import AutoregressiveGenesisV2
from pyro_lom.networks.recurrent_prior import RecurrentHead
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class GenesisV2Autoregressive(GenesisV2Networks, SlotOptions):
    """GENESIS-v2 with its autoregressive slot prior."""

    kind: ClassVar[str] = "genesis-v2-autoregressive"
    published_key: ClassVar[str | None] = "model_state_dict"
    published_older: ClassVar[dict[str, str]] = published.NO_WEIGHTS

    geco: Geco = Geco(analytic_kl=False)
    recurrence_width: Size = 256
    """Units of the LSTM of the slot prior."""

    def build(self, image_shape: ImageShape, train: Train) -> System:
        model = AutoregressiveGenesisV2(
            self.make_decoder(image_shape),
            slot_prior=RecurrentHead(self.slot_dim, self.slot_dim, width=self.recurrence_width),
            num_slots=self.num_slots,
            slot_dim=self.slot_dim,
            likelihood=self.make_likelihood(),
        )
        guide = AutoregressiveGenesisV2Guide(model, **self.make_networks(self.slot_dim, image_shape))
        return {"model": Pair(model, guide, self.criterion(image_shape))}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.genesis_v2(published.within(tensors, "pairs.model."))


def _gaussian(base: Config[GenesisV2]) -> Config[GenesisV2Autoregressive]:
    """Return GENESIS-v2-G: the Gaussian likelihood, the targets and the step sizes of LOM-GENESIS-v2-G (A.4.3)."""
    shared = vars(part(base.model, GenesisV2Networks)) | vars(part(base.model, SlotOptions))
    shared["geco"] = replace(base.model.geco, analytic_kl=False)
    name = base.preset.replace("genesis-v2", "genesis-v2-g")
    return replace(base, preset=name, model=GenesisV2Autoregressive(**shared))


def _mixture(base: Config[GenesisV2], *, geco: Geco, image_scale: float = 0.7) -> Config[GenesisV2Autoregressive]:
    """Return GENESIS-v2-MoG: the mixture likelihood and the step size of the published code."""
    gaussian = _gaussian(base)
    model = replace(gaussian.model, likelihood="mixture", image_scale=image_scale, geco=geco)
    return replace(gaussian, preset=base.preset.replace("genesis-v2", "genesis-v2-mog"), model=model)


_PUBLISHED = Geco(target=0.5655 - 0.5 * math.log(2 * math.pi), step_size=1e-5, analytic_kl=False)
"""0.5655 nats per pixel and channel with (1/2) log 2 pi, which the target does not contain."""

_SMALL = (
    replace(GENESIS_V2_TOWERS, train=replace(GENESIS_V2_TOWERS.train, steps=4000)),
    *GENESIS_V2_SMALL,
)
"""The networks, GECO and training of the small LOMs' orderless models; on towers with fewer steps."""

SYSTEMS = (GenesisV2Autoregressive,)
PRESETS = (
    *(_mixture(base, geco=replace(base.model.geco, analytic_kl=False)) for base in _SMALL),
    _mixture(GENESIS_V2_OBJECTS_ROOM, geco=_PUBLISHED),
    _mixture(GENESIS_V2_SHAPESTACKS, geco=_PUBLISHED),
    _mixture(GENESIS_V2_CLEVR6, geco=replace(_PUBLISHED, target=-2.265), image_scale=0.1),  # A.4.3
    *map(_gaussian, (*_SMALL, GENESIS_V2_OBJECTS_ROOM, GENESIS_V2_SHAPESTACKS, GENESIS_V2_CLEVR6)),
)
