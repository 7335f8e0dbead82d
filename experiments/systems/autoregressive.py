"""Autoregressive slot priors over an orderless model: Models 7 and 8 of A.5, with their presets."""

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from experiments.config import Config, Size, Train
from experiments.systems.emorl import EmorlInference
from experiments.systems.genesis_v2 import GenesisV2Inference
from experiments.systems.lom import MODELS_0, Lom
from experiments.systems.options import ImageShape, PairedOptions, Schedule, SlotOptions, part
from experiments.systems.scene import SceneOptions
from guides.autoregressive import AutoregressiveGuide
from models.autoregressive import AutoregressiveModel
from pyro_lom.distributions import GaussianHead
from pyro_lom.geco import FreeNats
from pyro_lom.networks.recurrent_prior import SlotRecurrence
from pyro_lom.networks.transformers import xavier_
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class Autoregressive(PairedOptions):
    """Model 7: an autoregressive slot prior without a scene latent."""

    kind: ClassVar[str] = "autoregressive"

    orderless: GenesisV2Inference | EmorlInference = field(default_factory=EmorlInference)
    recurrence_width: Size = 256
    """Units of the LSTM of the slot prior."""

    def build(self, image_shape: ImageShape, train: Train) -> System:
        return self._build(image_shape, train)

    def _build(
        self,
        image_shape: ImageShape,
        train: Train,
        scene: SceneOptions | None = None,
        free_nats: dict[str, FreeNats] | None = None,
    ) -> System:
        """Build both pairs, with a scene latent if `scene` is given."""
        orderless, scene_dim = self.orderless.pair(self, image_shape), scene and scene.scene_dim
        model = AutoregressiveModel(
            orderless.model,
            scene_prior=scene and scene.scene_prior.make(scene.scene_dim),
            recurrence=SlotRecurrence(self.slot_dim, width=self.recurrence_width, scene_dim=scene_dim),
            slot_prior=xavier_(GaussianHead(self.recurrence_width, self.slot_dim)),
        )
        guide = AutoregressiveGuide(
            model, orderless.guide, **(scene.make_scene_posterior(self.slot_dim) if scene else {})
        )
        criterion = self.ordered_geco(train).criterion(image_shape, image_scale=self.image_scale, free_nats=free_nats)
        ordered = Pair(model, guide, criterion, reads="orderless")
        return {"orderless": orderless, "ordered": ordered}


@dataclass(frozen=True)
class SceneAutoregressive(SceneOptions, Autoregressive):
    """Model 8: an autoregressive slot prior that starts from a scene latent."""

    kind: ClassVar[str] = "scene-autoregressive"

    def build(self, image_shape: ImageShape, train: Train) -> System:
        free_nats = self.scene_free_nats(train.steps - self.first_steps(train))
        return self._build(image_shape, train, self, free_nats)

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        super().check(train)
        self.scene_prior.check()
        self.free_nats.check()


def _ablated(model_0: Config[Lom], number: int, kind: type[Autoregressive]) -> Config:
    """Return the preset of Model 7 or 8, with the options that it shares with Model 0."""
    base = model_0.model
    shared: dict[str, Any] = vars(part(base, SlotOptions))
    if issubclass(kind, SceneOptions):
        shared |= vars(part(base, SceneOptions))
    model = kind(**shared, orderless=base.orderless, schedule=part(base.schedule, Schedule))
    return replace(model_0, preset=model_0.preset.replace("ablation-0", f"ablation-{number}"), model=model)


SYSTEMS = (Autoregressive, SceneAutoregressive)
PRESETS = tuple(_ablated(model_0, *model) for model_0 in MODELS_0 for model in enumerate(SYSTEMS, start=7))
