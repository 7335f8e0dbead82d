"""The paper's configurations, with every hyperparameter of A.4 and A.5.

What a preset leaves out keeps the default of `experiments/config.py`, which is the paper's.
"""

from dataclasses import replace

from experiments.config import Config, Data, Geco, Model


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
