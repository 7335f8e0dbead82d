"""Named configurations: functions that return one, called `<system>-<dataset>[-<variant>]`.

A variant is one `replace` of another. What a preset leaves out keeps the default of `experiments/config.py`, which is
the paper's.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from experiments.config import Config, Data, Geco, Model, ScenePrior, Train
from pyro_lom.errors import UserError


def lom_genesis_v2_objects_room() -> Config:
    """LOM-GENESIS-v2-G on Objects Room with every hyperparameter of A.4."""
    return Config(
        preset="lom-genesis-v2-objects-room",
        data=Data(path="data/objects-room.h5", image_size=64),
        model=Model(num_slots=7),
    )


def lom_genesis_v2_shapestacks() -> Config:
    """LOM-GENESIS-v2-G on ShapeStacks (A.4)."""
    base = lom_genesis_v2_objects_room()
    return replace(
        base,
        preset="lom-genesis-v2-shapestacks",
        data=replace(base.data, path="data/shapestacks.h5"),
        model=replace(base.model, num_slots=9),
    )


def lom_genesis_v2_clevr6() -> Config:
    """LOM-GENESIS-v2-G on CLEVR6: larger images, a stricter target, fewer steps (A.4.2, A.4.3)."""
    base = lom_genesis_v2_objects_room()
    return replace(
        base,
        preset="lom-genesis-v2-clevr6",
        data=Data(path="data/clevr6.h5", image_size=96),
        train=replace(base.train, steps=300_000, geco=replace(base.train.geco, target=-0.356)),
    )


def lom_emorl_objects_room() -> Config:
    """LOM-EMORL on Objects Room with every hyperparameter of A.4."""
    base = lom_genesis_v2_objects_room()
    return replace(
        base,
        preset="lom-emorl-objects-room",
        model=replace(base.model, system="lom-emorl", decoder="broadcast"),
        train=replace(
            base.train,
            steps=400_000,
            learning_rate=4e-4,
            warmup_steps=10_000,
            decay="halving",
            clip_norm=5.0,
            orderless_free_nats_per_dim=0.75,
            geco=Geco(
                rule="additive",
                target=-0.352,
                speedup=5.0,
                initial=0.55,
                minimum=0.55,
                warm_start=1000,
            ),
        ),
    )


def lom_emorl_shapestacks() -> Config:
    """LOM-EMORL on ShapeStacks: a looser target, a faster return to an ELBO (A.4.2)."""
    base = lom_emorl_objects_room()
    return replace(
        base,
        preset="lom-emorl-shapestacks",
        data=replace(base.data, path="data/shapestacks.h5"),
        model=replace(base.model, num_slots=9),
        train=replace(base.train, geco=replace(base.train.geco, target=-0.351, speedup=50.0)),
    )


def lom_emorl_clevr6() -> Config:
    """LOM-EMORL on CLEVR6: larger images, a smaller sigma, fewer steps (A.4.1, A.4.2, A.4.3)."""
    base = lom_emorl_objects_room()
    return replace(
        base,
        preset="lom-emorl-clevr6",
        data=Data(path="data/clevr6.h5", image_size=96),
        model=replace(base.model, image_scale=0.1),
        train=replace(base.train, steps=300_000, geco=replace(base.train.geco, target=-2.265, speedup=10.0)),
    )


def _without_sum_pooling(lom: Callable[[], Config]) -> Callable[[], Config]:
    """The preset of a LOM whose g reads its own token in the place of a sum (Fig. 5b)."""

    def preset() -> Config:
        base = lom()
        return replace(base, preset=f"{base.preset}-no-sum-pooling", model=replace(base.model, scene_pooling="token"))

    preset.__doc__ = f"{lom().preset}, but g reads its own token in the place of a sum (Fig. 5b)."
    return preset


def lom_genesis_v2_towers() -> Config:
    """The demo: everything in small, for four to five minutes on two CPU cores.

    Departures from the paper, each told in ARCHITECTURE.md: small networks, with an encoder that starts from colours,
    pooling of moments, a separable decoder that starts by moving with a slot's place, and wide tokens and perceptrons
    in the Transformers; small slots; the orderless pair trained first, its posteriors then computed once and its
    decoder copied; large batches for the LOM, of which a part is rendered; a target-relative GECO that starts at a
    small multiplier; a scene KL of 0.45 nats per dimension for free; a learning rate twenty times as large, which warms
    up and decays; clipped gradients.
    """
    return Config(
        preset="lom-genesis-v2-towers",
        model=Model(
            num_slots=5,
            slot_dim=8,
            encoder="compact",
            encoder_width=24,
            decoder="separable",
            decoder_width=96,
            scene_dim=32,
            transformer_mlp_ratio=4,
        ),
        train=Train(
            steps=9000,
            batch_size=16,
            learning_rate=2e-3,
            warmup_steps=100,
            decay="linear",
            clip_norm=20.0,
            orderless_first=0.29,
            ordered_batch_size=64,
            ordered_rendered=16,
            free_nats_per_dim=0.45,
            final_free_nats_per_dim=0.45,
            final_steps=0,
            geco=Geco(
                target_rmse=0.028,
                step_size=0.01,
                speedup=3.0,
                initial=0.02,
                minimum=0.02,
                maximum=1.0,
                goal_relative=True,
            ),
            log_every=50,
            checkpoint_every=1000,
            preview_every=2000,
        ),
    )


def lom_emorl_towers() -> Config:
    """LOM-EMORL in small, for a quarter of an hour on two CPU cores.

    It departs from the paper as the demo does, and has in the place of EMORL's networks the demo's encoder, and an
    attention that starts as soft k-means over it. One slot more than things in a scene, as slots that start anywhere
    need one to spare; one refinement; sigma as on CLEVR6, so that the gradient that refines sees the error.
    """
    demo = lom_genesis_v2_towers()
    return replace(
        demo,
        preset="lom-emorl-towers",
        model=replace(demo.model, system="lom-emorl", num_slots=6, image_scale=0.1, num_refinements=1),
        train=replace(
            demo.train,
            steps=10_000,
            orderless_first=0.4,
            learning_rate=4e-3,
            ordered_learning_rate=2e-3,
            geco=replace(demo.train.geco, initial=1.0, minimum=1.0, maximum=50.0),
        ),
    )


def ablation_0() -> Config:
    """Model 0 of A.5: LOM-EMORL on Objects Room at 48x48, with two self-attention blocks in g, f and f'.

    Every other hyperparameter is that of the 64x64 images, as A.5 names none.
    """
    base = lom_emorl_objects_room()
    return replace(
        base,
        preset="ablation-0",
        data=Data(path="data/objects-room-48.h5", image_size=48),
        model=replace(base.model, num_encoder_blocks=2, num_order_blocks=2),
    )


def ablation_0_towers() -> Config:
    """Model 0 in small: lom-emorl-towers with two blocks in g, for five minutes on one thread.

    With one seed, the orderless model and its training are the same in Models 0 to 8: it is trained first, and what is
    compared is what is built on it.
    """
    base = lom_emorl_towers()
    return replace(
        base,
        preset="ablation-0-towers",
        model=replace(base.model, num_encoder_blocks=2),
        train=replace(base.train, steps=4000, orderless_first=0.35),
    )


def lom_genesis_v2_towers_64() -> Config:
    """The demo at 64x64, for a GPU: as many steps, on four times as many pixels."""
    return replace(
        lom_genesis_v2_towers(),
        preset="lom-genesis-v2-towers-64",
        data=Data(path="data/towers-64.h5", image_size=64),
    )


def lom_genesis_v2_towers_mixture() -> Config:
    """The demo with a mixture of normals over scenes."""
    return _demo_with("mixture", scene_prior=ScenePrior("mixture"))


def lom_genesis_v2_towers_flow() -> Config:
    """The demo with a flow over scenes."""
    return _demo_with("flow", scene_prior=ScenePrior("flow"))


def lom_genesis_v2_towers_bag_of_words() -> Config:
    """The demo without order: what its slots lose when all are drawn from one distribution, given the scene (3.1)."""
    return _demo_with("bag-of-words", slot_prior="bag-of-words")


def _demo_with(variant: str, **model: Any) -> Config:
    demo = lom_genesis_v2_towers()
    return replace(demo, preset=f"{demo.preset}-{variant}", model=replace(demo.model, **model))


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


_PAPERS_EMORL = (lom_emorl_objects_room, lom_emorl_shapestacks, lom_emorl_clevr6)

_LOMS = (
    lom_genesis_v2_towers,
    lom_emorl_towers,
    lom_genesis_v2_objects_room,
    lom_genesis_v2_shapestacks,
    lom_genesis_v2_clevr6,
    *_PAPERS_EMORL,
)

_VARIANTS = (
    lom_genesis_v2_towers_64,
    lom_genesis_v2_towers_mixture,
    lom_genesis_v2_towers_flow,
    lom_genesis_v2_towers_bag_of_words,
)

PRESETS: dict[str, Callable[[], Config]] = {
    preset().preset: preset
    for preset in [
        *_LOMS,
        *(_alone(lom) for lom in _LOMS),
        *_VARIANTS,
        *(_without_sum_pooling(lom) for lom in (*_PAPERS_EMORL, ablation_0, ablation_0_towers)),
        ablation_0,
        *(_ablated(ablation_0, number) for number in _ABLATIONS),
        ablation_0_towers,
        *(_ablated(ablation_0_towers, number) for number in _ABLATIONS),
    ]
} | {"demo": lom_genesis_v2_towers, "demo-64": lom_genesis_v2_towers_64}


def preset(name: str) -> Config:
    """The configuration called `name`.

    Raises:
        UserError: there is none of that name; lists those there are.
    """
    if name not in PRESETS:
        raise UserError(f"there is no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
