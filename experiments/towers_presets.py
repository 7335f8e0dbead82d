"""Configurations in small, on towers, for a laptop."""

from dataclasses import replace
from typing import Any

from experiments.config import Config, Data, Geco, Model, ScenePrior, Train


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


def lom_emorl_towers() -> Config:
    """LOM-EMORL in small, for 7 to 15 minutes on two CPU cores.

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


def _demo_with(variant: str, **model: Any) -> Config:
    demo = lom_genesis_v2_towers()
    return replace(demo, preset=f"{demo.preset}-{variant}", model=replace(demo.model, **model))
