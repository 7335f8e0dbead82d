"""Named configurations: functions that return one, called `<system>-<dataset>[-<variant>]`.

Those of the paper are in `paper_presets.py`, those that a laptop trains in `towers_presets.py`. A variant is one
`replace` of another.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from experiments import paper_presets as paper
from experiments import towers_presets as towers
from experiments.config import Config
from pyro_lom.errors import UserError


def _without_sum_pooling(lom: Callable[[], Config]) -> Callable[[], Config]:
    """The preset of a LOM whose g reads its own token in the place of a sum (Fig. 5b)."""

    def preset() -> Config:
        base = lom()
        return replace(base, preset=f"{base.preset}-no-sum-pooling", model=replace(base.model, scene_pooling="token"))

    preset.__doc__ = f"{lom().preset}, but g reads its own token in the place of a sum (Fig. 5b)."
    return preset


def _ablated(model_0: Callable[[], Config], number: int) -> Callable[[], Config]:
    """The preset of one of A.5's Models 1 to 8, by what it changes in Model 0; Model 8 extends Model 7."""
    what, changes = _ABLATIONS[number]

    def preset() -> Config:
        base = model_0()
        name = base.preset.replace("ablation-0", f"ablation-{number}")
        return replace(base, preset=name, model=replace(base.model, **changes))

    preset.__doc__ = f"Model {number} of A.5: {model_0().preset}, but {what}."
    return preset


_ABLATIONS: dict[int, tuple[str, dict[str, Any]]] = {
    1: ("one self-attention block in g", dict(num_encoder_blocks=1)),
    2: ("three in g", dict(num_encoder_blocks=3)),
    3: ("one in f and f'", dict(num_order_blocks=1)),
    4: ("three in f and f'", dict(num_order_blocks=3)),
    5: ("ordered slots keep the orderless posterior's scales", dict(order_aware_scales=False)),
    6: ("f and f' share their weights", dict(shared_order_nets=True)),
    7: ("an autoregressive slot prior and no scene latent", dict(system="autoregressive-emorl")),
    8: ("an autoregressive slot prior that starts from the scene", dict(system="scene-autoregressive-emorl")),
}


def _alone(lom: Callable[[], Config]) -> Callable[[], Config]:
    """The preset of a LOM's orderless model, trained alone."""

    def preset() -> Config:
        base = lom()
        return replace(
            base,
            preset=base.preset.removeprefix("lom-"),
            model=replace(base.model, system=base.model.system.removeprefix("lom-")),
            train=replace(base.train, orderless_first=0.0),
        )

    preset.__doc__ = f"The orderless model of {lom().preset}, alone."
    return preset


_PAPERS_EMORL = (paper.lom_emorl_objects_room, paper.lom_emorl_shapestacks, paper.lom_emorl_clevr6)

_LOMS = (
    towers.lom_genesis_v2_towers,
    towers.lom_emorl_towers,
    paper.lom_genesis_v2_objects_room,
    paper.lom_genesis_v2_shapestacks,
    paper.lom_genesis_v2_clevr6,
    *_PAPERS_EMORL,
)

_VARIANTS = (
    towers.lom_genesis_v2_towers_64,
    towers.lom_genesis_v2_towers_mixture,
    towers.lom_genesis_v2_towers_flow,
    towers.lom_genesis_v2_towers_bag_of_words,
)

_MODELS_0 = (paper.ablation_0, towers.ablation_0_towers)

PRESETS: dict[str, Callable[[], Config]] = {
    preset().preset: preset
    for preset in [
        *_LOMS,
        *(_alone(lom) for lom in _LOMS),
        *_VARIANTS,
        *(_without_sum_pooling(lom) for lom in (*_PAPERS_EMORL, *_MODELS_0)),
        *_MODELS_0,
        *(_ablated(model_0, number) for model_0 in _MODELS_0 for number in _ABLATIONS),
    ]
} | {"demo": towers.lom_genesis_v2_towers, "demo-64": towers.lom_genesis_v2_towers_64}


def preset(name: str) -> Config:
    """The configuration called `name`.

    Raises:
        UserError: there is none of that name; lists those there are.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
