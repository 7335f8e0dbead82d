"""The Latent Object Model over an orderless model: its options, its presets, and the ablations of A.5."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from torch import nn

from experiments.config import Config, Count, Data, Depth, Positive, Train
from experiments.systems.emorl import (
    EMORL_CLEVR6,
    EMORL_OBJECTS_ROOM,
    EMORL_SHAPESTACKS,
    EMORL_SMALL,
    EMORL_TOWERS,
    EmorlInference,
)
from experiments.systems.genesis_v2 import (
    GENESIS_V2_CLEVR6,
    GENESIS_V2_OBJECTS_ROOM,
    GENESIS_V2_SHAPESTACKS,
    GENESIS_V2_SMALL,
    GENESIS_V2_TOWERS,
    GenesisV2Inference,
)
from experiments.systems.options import RENDERED, ImageShape, MatchedOptions, Schedule, SlotOptions, part
from experiments.systems.scene import SceneFreeNats, SceneOptions, ScenePrior
from guides.lom import LatentObjectGuide
from models.lom import LatentObjectModel
from pyro_lom.distributions import GaussianHead
from pyro_lom.errors import UserError
from pyro_lom.networks.bag_of_words import BagOfWords
from pyro_lom.networks.transformers import PosteriorOrder, PriorOrder, xavier_
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class LomSchedule(Schedule):
    ordered_rendered: Count | None = None
    """Number of scenes per batch of the ordered pair whose images are decoded; None for all. KLs use every scene."""


@dataclass(frozen=True)
class Lom(SceneOptions, MatchedOptions):
    """A LOM and the orderless model from which it borrows slots."""

    kind: ClassVar[str] = "lom"

    orderless: GenesisV2Inference | EmorlInference = field(default_factory=GenesisV2Inference)
    slot_prior: Literal["ordered", "bag-of-words"] = "ordered"
    """p(z_k | h_k), with h_k from a causal Transformer f (ordered) or with h_k = s for all k (Sec. 3.1)."""
    num_order_blocks: Depth = 2
    """Self-attention blocks of f and of f' (A.5, Model 0)."""
    order_aware_scales: bool = True
    """Compute the scales of ordered slots with f' (Sec. 3.2), instead of keeping the orderless scales (Model 5)."""
    largest_scale: Positive | None = None
    """Bound of the order-aware scales (departure); None for none, as published. Without it, those of empty slots may
    grow to many times the scale of the orderless prior, which is 1."""
    shared_order_nets: bool = False
    """f' has the weights of f (A.5, Model 6)."""
    schedule: LomSchedule = LomSchedule()

    def build(self, image_shape: ImageShape, train: Train) -> System:
        orderless = self.orderless.pair(self, image_shape)
        model = LatentObjectModel(
            self.make_decoder(image_shape),
            likelihood=self.make_likelihood(),
            num_slots=self.num_slots,
            slot_dim=self.slot_dim,
            scene_dim=self.scene_dim,
            scene_prior=self.scene_prior.make(self.scene_dim),
            num_rendered=self.schedule.ordered_rendered,
            **self._order(),
        )
        guide = LatentObjectGuide(
            model,
            orderless.guide,
            **self.make_scene_posterior(self.slot_dim),
            **self._posterior_order(model),
            matching=self.make_matching(),
            largest_scale=self.largest_scale,
        )
        if not self.order_aware_scales:
            guide.order_net = guide.scale_head = None
        free_nats = self.scene_free_nats(train.steps - self.first_steps(train))
        criterion = self.ordered_geco(train).criterion(image_shape, image_scale=self.image_scale, free_nats=free_nats)
        ordered = Pair(model, guide, criterion, reads="orderless")
        return {"orderless": orderless, "ordered": ordered}

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        super().check(train, cuda_graph=cuda_graph)
        self.scene_prior.check()
        self.free_nats.check()
        if self.shared_order_nets and self.slot_prior != "ordered":
            raise UserError(
                f"--model.shared-order-nets shares f, and --model.slot-prior {self.slot_prior} has none: drop one"
            )
        if self.shared_order_nets and not self.order_aware_scales:
            raise UserError("--model.shared-order-nets shares f', and --model.no-order-aware-scales has none: drop one")
        if self.largest_scale is not None and not self.order_aware_scales:
            raise UserError(
                "--model.largest-scale bounds order-aware scales, and --model.no-order-aware-scales has none: "
                "drop the latter, or give --model.largest-scale None"
            )
        if accumulate > 1 and self.schedule.ordered_rendered is not None:
            raise UserError(
                "--accumulate does not go with --model.schedule.ordered-rendered, which saves memory in another way: "
                "leave one of them out (--model.schedule.ordered-rendered None)"
            )

    def reference_gflop(self, image_shape: ImageShape) -> float | None:
        counted = self.orderless == GenesisV2Inference() and self.num_slots == 7 and image_shape[1:] == (64, 64)
        return 135 / 8 if counted else None

    def _order(self) -> dict[str, nn.Module]:
        """Return f and the heads of p(z_k | h_k), as keyword arguments of the model."""
        if self.slot_prior == "bag-of-words":
            order_net, width = BagOfWords(self.num_slots), self.scene_dim
        else:
            width = self.transformer_width
            order_net = PriorOrder(self.scene_dim, num_slots=self.num_slots, **self._transformer())
        return {"order_net": order_net, "slot_prior": xavier_(GaussianHead(width, self.slot_dim))}

    def _posterior_order(self, model: LatentObjectModel) -> dict[str, nn.Module]:
        """Return f' and w, as keyword arguments of the guide."""
        shared = model.order_net if self.shared_order_nets else None
        order_net = PosteriorOrder(self.scene_dim, self.slot_dim, **self._transformer(), shared=shared)
        return {"order_net": order_net, "scale_head": xavier_(nn.Linear(self.transformer_width, self.slot_dim))}

    def _transformer(self) -> dict[str, int]:
        return dict(
            width=self.transformer_width, num_blocks=self.num_order_blocks, mlp_ratio=self.transformer_mlp_ratio
        )


def over(base: Config, *, train: Train | None = None, **options: Any) -> Config[Lom]:
    """Return a LOM over the orderless model of a preset, with its data, slots, networks and GECO.

    `options` are the other options of `Lom`.
    """
    shared = {one.name: getattr(base.model, one.name) for one in fields(SlotOptions)}
    kind = next(kind for kind in (GenesisV2Inference, EmorlInference) if isinstance(base.model, kind))
    model = Lom(**shared, orderless=part(base.model, kind), **options)
    return replace(base, preset=f"lom-{base.preset}", model=model, train=train or base.train)


def _variant(base: Config[Lom], name: str, *, data: Data | None = None, **options: Any) -> Config[Lom]:
    model = replace(base.model, **options)
    return replace(base, preset=f"{base.preset}-{name}", model=model, data=data or base.data)


DEMO = over(
    GENESIS_V2_TOWERS,
    scene_dim=32,
    transformer_mlp_ratio=4,
    free_nats=SceneFreeNats(per_dim=0.45, final_steps=0),
    schedule=LomSchedule(orderless_first=0.29, ordered_batch_size=64, ordered_rendered=16),
)
"""A small model that trains in four to seven minutes on two CPU cores.

It departs from the paper as GENESIS_V2_TOWERS does, and further (`ARCHITECTURE.md` gives the reasons): wide perceptrons
in the Transformers; the orderless pair trained first, its posteriors then computed once and its decoder copied; large
batches for the LOM, of which a part is rendered; a scene KL with 0.45 free nats per dimension.
"""


def _small(base: Config, ordered_steps: int) -> Config[Lom]:
    """Return a small LOM over `base`. The orderless model trains first, with the steps and options of `base`."""
    steps = base.train.steps + ordered_steps
    return over(
        base,
        train=replace(base.train, steps=steps),
        scene_dim=64,
        transformer_mlp_ratio=DEMO.model.transformer_mlp_ratio,
        free_nats=DEMO.model.free_nats,
        matching="hungarian",
        schedule=LomSchedule(
            orderless_first=base.train.steps / steps,
            ordered_batch_size=64,
            ordered_learning_rate=1e-3,
            ordered_rendered=8,
        ),
    )


LOM_SMALL = tuple(_small(base, 4000 if base.data == RENDERED["clevr6"] else 9000) for base in GENESIS_V2_SMALL)
"""Small LOMs on rendered scenes, which train on one thread in 25 minutes, and on CLEVR6 in 20."""

_ROOMS = LOM_SMALL[0]

OWN = replace(
    _ROOMS,
    preset="lom-genesis-v2-own",
    model=replace(
        _ROOMS.model,
        orderless=replace(_ROOMS.model.orderless, encoder="parts"),
        largest_scale=1.0,
        geco=replace(_ROOMS.model.geco, target_rmse=0.05, relax_at=2800),
    ),
    data=Data(path="my_images", image_size=64),
    train=replace(_ROOMS.train, steps=10_000, preview_every=1000),
)
"""A small LOM for one's own images. The command adapts some of the options to them (`experiments/adapt.py`)."""

LOM_EMORL_TOWERS = over(
    EMORL_TOWERS,
    scene_dim=DEMO.model.scene_dim,
    transformer_mlp_ratio=DEMO.model.transformer_mlp_ratio,
    free_nats=DEMO.model.free_nats,
    schedule=replace(DEMO.model.schedule, orderless_first=0.4, ordered_learning_rate=2e-3),
)
"""A small LOM-EMORL that trains in 7 to 15 minutes on two CPU cores, with the demo's departures and others."""

_EMORL = [over(base) for base in (EMORL_OBJECTS_ROOM, EMORL_SHAPESTACKS, EMORL_CLEVR6)]

MODELS_0 = (
    # Model 0 of A.5, at 48x48 pixels. A.5 names no other hyperparameters, so the others are those of 64x64 images.
    replace(
        _EMORL[0],
        preset="ablation-0",
        data=Data(path="data/objects-room-48.h5", image_size=48),
        model=replace(_EMORL[0].model, num_encoder_blocks=2, num_order_blocks=2),
    ),
    # A small Model 0, which trains in five minutes on one thread. Models 0 to 8 with the same seed have identical
    # orderless models, because these are built and trained first.
    replace(
        LOM_EMORL_TOWERS,
        preset="ablation-0-towers",
        model=replace(
            LOM_EMORL_TOWERS.model,
            num_encoder_blocks=2,
            schedule=replace(LOM_EMORL_TOWERS.model.schedule, orderless_first=0.35),
        ),
        train=replace(LOM_EMORL_TOWERS.train, steps=4000),
    ),
)

_ABLATIONS: dict[int, dict[str, Any]] = {
    1: dict(num_encoder_blocks=1),
    2: dict(num_encoder_blocks=3),
    3: dict(num_order_blocks=1),
    4: dict(num_order_blocks=3),
    5: dict(order_aware_scales=False),
    6: dict(shared_order_nets=True),
}
"""What Models 1 to 6 of A.5 change in Model 0."""


def _ablated(model_0: Config[Lom], number: int) -> Config[Lom]:
    name = model_0.preset.replace("ablation-0", f"ablation-{number}")
    return replace(model_0, preset=name, model=replace(model_0.model, **_ABLATIONS[number]))


SYSTEMS = (Lom,)
PRESETS = (
    DEMO,
    LOM_EMORL_TOWERS,
    *LOM_SMALL,
    *(_small(base, 4500) for base in EMORL_SMALL),
    OWN,
    *(over(base) for base in (GENESIS_V2_OBJECTS_ROOM, GENESIS_V2_SHAPESTACKS, GENESIS_V2_CLEVR6)),
    *_EMORL,
    _variant(DEMO, "64", data=Data(path="data/towers-64.h5", image_size=64)),  # for a GPU
    _variant(DEMO, "mixture", scene_prior=ScenePrior("mixture")),
    _variant(DEMO, "flow", scene_prior=ScenePrior("flow")),
    _variant(DEMO, "bag-of-words", slot_prior="bag-of-words"),
    *(_variant(lom, "no-sum-pooling", scene_pooling="token") for lom in (*_EMORL, *MODELS_0)),  # Fig. 5b
    *MODELS_0,
    *(_ablated(model_0, number) for model_0 in MODELS_0 for number in _ABLATIONS),
)
