"""From a configuration to objects: models, guides, objective and training phases."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from experiments.config import Config, Model
from guides.autoregressive import AutoregressiveGuide
from guides.emorl import EfficientMorlGuide
from guides.genesis_v2 import GenesisV2Guide
from guides.lom import LatentObjectGuide
from models.autoregressive import AutoregressiveModel
from models.emorl import EfficientMorl
from models.genesis_v2 import GenesisV2
from models.lom import LatentObjectModel
from pyro_lom.errors import UserError
from pyro_lom.geco import AdditiveGeco, FreeNats, Geco, MultiplicativeGeco, Target
from pyro_lom.likelihoods import LIKELIHOODS
from pyro_lom.networks.bag_of_words import BagOfWords
from pyro_lom.networks.decoders import DECODERS
from pyro_lom.objective import Objective
from pyro_lom.phase import Phase
from pyro_lom.program import Program
from pyro_lom.scene_priors import CouplingFlow, NormalMixture, StandardNormal

ImageShape = tuple[int, int, int]


class Pair(NamedTuple):
    model: Program
    guide: Program


class System(NamedTuple):
    """A pair to train, and the orderless pair it borrows from; an orderless model alone is its own."""

    orderless: Pair
    ordered: Pair | None

    @property
    def final(self) -> Pair:
        """The pair that the system is about."""
        return self.ordered or self.orderless

    @property
    def lom(self) -> Pair | None:
        """The ordered pair where it is a LOM, whose slots unroll from a scene."""
        return self.ordered if self.ordered and isinstance(self.ordered.model, LatentObjectModel) else None


def build_system(config: Config, image_shape: ImageShape, *, scene_prior: nn.Module | None = None) -> System:
    """The models and guides of a configuration for images (C, H, W); `scene_prior` takes the place of its own.

    Raises:
        UserError: the configuration and the images, or the prior, do not go together.
    """
    model, (_, height, width) = config.model, image_shape
    if scene_prior is not None and not model.system.startswith(("lom-", "scene-")):
        raise UserError(f"{model.system} has no scene latent for a scene_prior: choose a LOM")
    if scene_prior is not None:
        prior, wanted = scene_prior(), (model.scene_dim,)
        if prior.batch_shape or prior.event_shape != wanted:
            raise UserError(
                f"scene_prior returns a distribution of batch shape {tuple(prior.batch_shape)} and event shape "
                f"{tuple(prior.event_shape)}: a scene of this model wants () and {wanted}, as "
                f"dist.Normal(torch.zeros({wanted[0]}), 1.0).to_event(1) has"
            )
    if height != width or height not in range(32, 129, 16):
        raise UserError(
            f"images are {height}x{width}, but models need square ones of 32 to 128 pixels, a multiple of 16: "
            "crop and resize them, or choose such a --data.image-size for a folder of images"
        )
    for kind, build_ordered in _ORDERED.items():
        if model.system.startswith(kind):
            orderless = _ORDERLESS[model.system.removeprefix(kind)](config, image_shape)
            if scene_prior is None:
                scene_prior = _SCENE_PRIORS[model.scene_prior.kind](model)
            return System(orderless, build_ordered(config, image_shape, orderless, scene_prior))
    return System(_ORDERLESS[model.system](config, image_shape), None)


def build_objective(config: Config, system: System, image_shape: ImageShape) -> Objective:
    """Eq. 9 for a system: each pair's ELBO under a GECO of its own.

    Raises:
        UserError: the target cannot be reached.
    """
    train = config.train
    nats = FreeNats.constant(train.orderless_free_nats_per_dim * config.model.slot_dim)
    free_nats = {site: nats for site in system.orderless.model.latent_sites}
    pairs = {"orderless": _geco(config, image_shape, free_nats)(*system.orderless)}
    if system.ordered is not None:
        final_from = train.steps - round(train.orderless_first * train.steps) - train.final_steps
        nats, final_nats = (
            per_dim * config.model.scene_dim for per_dim in (train.free_nats_per_dim, train.final_free_nats_per_dim)
        )
        free_nats = {"s": FreeNats(nats, final_nats, final_from)}
        pairs["ordered"] = _geco(config, image_shape, free_nats)(*system.ordered)
    return Objective(pairs)


def build_phases(config: Config, system: System) -> list[Phase]:
    """The paper's one phase, of everything at once; or several: the orderless pair first, then the ordered one."""
    train = config.train
    phase = partial(Phase, warmup_steps=train.warmup_steps, decay=train.decay)
    orderless_steps = train.steps if system.ordered is None else round(train.orderless_first * train.steps)
    if orderless_steps == 0:
        return [phase(train.steps, train.batch_size, train.learning_rate)]

    def start_from_the_orderless_decoder() -> None:
        system.ordered.model.decoder.load_state_dict(system.orderless.model.decoder.state_dict())

    orderless = phase(orderless_steps, train.batch_size, train.learning_rate, pairs=("orderless",))
    if train.steps == orderless_steps:
        return [orderless]
    ordered = phase(
        train.steps - orderless_steps,
        train.ordered_batch_size or train.batch_size,
        train.ordered_learning_rate or train.learning_rate,
        pairs=("ordered",),
        prepare=start_from_the_orderless_decoder,
    )
    return [orderless, ordered]


def _genesis_v2(config: Config, image_shape: ImageShape) -> Pair:
    options = config.model
    model = GenesisV2(
        _decoder(config, image_shape),
        num_slots=options.num_slots,
        slot_dim=options.slot_dim,
        likelihood=_likelihood(options),
    )
    compact = options.encoder == "compact"
    guide = GenesisV2Guide(model, image_shape=image_shape, width=options.encoder_width, compact=compact)
    return Pair(model, guide)


def _emorl(config: Config, image_shape: ImageShape) -> Pair:
    options = config.model
    model = EfficientMorl(
        _decoder(config, image_shape),
        num_slots=options.num_slots,
        slot_dim=options.slot_dim,
        likelihood=_likelihood(options),
        width=2 * options.encoder_width,
    )
    guide = EfficientMorlGuide(
        model,
        image_shape=image_shape,
        width=options.encoder_width,
        compact=options.encoder == "compact",
        num_refinements=options.num_refinements,
    )
    return Pair(model, guide)


_ORDERLESS: dict[str, Callable[[Config, ImageShape], Pair]] = {"genesis-v2": _genesis_v2, "emorl": _emorl}


def _lom(config: Config, image_shape: ImageShape, orderless: Pair, scene_prior: nn.Module) -> Pair:
    options = config.model
    model = LatentObjectModel(
        _decoder(config, image_shape),
        num_slots=options.num_slots,
        slot_dim=options.slot_dim,
        scene_dim=options.scene_dim,
        likelihood=_likelihood(options),
        num_blocks=options.num_order_blocks,
        mlp_ratio=options.transformer_mlp_ratio,
        scene_prior=scene_prior,
        num_rendered=config.train.ordered_rendered,
        **_order(options),
    )
    guide = LatentObjectGuide(
        model,
        orderless.guide,
        num_blocks=options.num_order_blocks,
        matching=options.matching,
        order_aware_scales=options.order_aware_scales,
        shared_order_nets=options.shared_order_nets,
        **_scene_encoder(options),
    )
    return Pair(model, guide)


def _autoregressive(config: Config, image_shape: ImageShape, orderless: Pair, scene_prior: nn.Module | None) -> Pair:
    options = config.model
    model = AutoregressiveModel(
        orderless.model,
        width=4 * options.transformer_width,
        scene_prior=scene_prior,
        scene_dim=None if scene_prior is None else options.scene_dim,
    )
    return Pair(model, AutoregressiveGuide(model, orderless.guide, **_scene_encoder(options)))


def _autoregressive_without_scene(config: Config, image_shape: ImageShape, orderless: Pair, _: nn.Module) -> Pair:
    return _autoregressive(config, image_shape, orderless, scene_prior=None)


_ORDERED: dict[str, Callable[[Config, ImageShape, Pair, nn.Module], Pair]] = {
    "lom-": _lom,
    "autoregressive-": _autoregressive_without_scene,
    "scene-autoregressive-": _autoregressive,
}


_SCENE_PRIORS: dict[str, Callable[[Model], nn.Module]] = {
    "normal": lambda model: StandardNormal(model.scene_dim),
    "mixture": lambda model: NormalMixture(model.scene_dim, model.scene_prior.num_components),
    "flow": lambda model: CouplingFlow(model.scene_dim, model.scene_prior.num_couplings),
}


def _order(model: Model) -> dict[str, Any]:
    """What h_k is, and how many features it has."""
    if model.slot_prior == "bag-of-words":
        return {"order_net": BagOfWords(model.num_slots), "width": model.scene_dim}
    return {"width": model.transformer_width}


def _scene_encoder(model: Model) -> dict[str, Any]:
    """What g is."""
    return {
        "num_encoder_blocks": model.num_encoder_blocks,
        "width": model.transformer_width,
        "mlp_ratio": model.transformer_mlp_ratio,
        "scene_pooling": model.scene_pooling,
    }


def _decoder(config: Config, image_shape: ImageShape) -> nn.Module:
    options, (channels, size, _) = config.model, image_shape
    return DECODERS[options.decoder](options.slot_dim, size, out_channels=channels + 1, width=options.decoder_width)


def _likelihood(model: Model) -> nn.Module:
    return LIKELIHOODS[model.likelihood](model.image_scale)


_RULES: dict[str, type[Geco]] = {"multiplicative": MultiplicativeGeco, "additive": AdditiveGeco}


def _geco(config: Config, image_shape: ImageShape, free_nats: dict[str, FreeNats]) -> Geco:
    geco, image_scale = config.train.geco, config.model.image_scale
    if geco.target_rmse is not None:
        target = Target.from_rmse(geco.target_rmse, image_scale=image_scale, image_shape=image_shape)
    else:
        target = Target.from_paper(geco.target, image_scale=image_scale, image_shape=image_shape)
    scaled = geco.rule == "multiplicative" and not geco.goal_relative
    resolution = 64**2 / (image_shape[1] * image_shape[2]) if scaled else 1.0
    return _RULES[geco.rule](
        target,
        step_size=geco.step_size * resolution,
        speedup=geco.speedup,
        initial=geco.initial,
        bounds=(geco.minimum, geco.maximum),
        warm_start=geco.warm_start,
        free_nats=free_nats,
        goal_relative=geco.goal_relative,
    )
