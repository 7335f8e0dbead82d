"""Every system, small enough to run in milliseconds."""

from typing import get_args, get_type_hints

import torch

from experiments.config import Config, Geco, Model, Train
from experiments.systems import System, build_objective, build_system
from pyro_lom.objective import Objective

LATENTS = {
    "lom-genesis-v2": {"s", "z"},
    "genesis-v2": {"o"},
    "lom-emorl": {"s", "z"},
    "emorl": {"o_1", "o_2", "o_3"},
    "autoregressive-emorl": {"z_1", "z_2", "z_3"},
    "scene-autoregressive-emorl": {"s", "z_1", "z_2", "z_3"},
}
AUXILIARY = {system: "seed_scores" if system.endswith("genesis-v2") else "noise" for system in LATENTS}
SYSTEMS = get_args(get_type_hints(Model)["system"])
NETWORKS = {
    "published": dict(encoder="published"),
    "compact": dict(encoder="compact", decoder="separable"),
}
PUBLISHED_DECODERS = {"genesis-v2": "deconvolution", "emorl": "broadcast"}
IMAGE_SHAPE = (3, 32, 32)
NUM_SCENES = 2
NUM_SLOTS = 3
SLOT_DIM = 8
SCENE_DIM = 12


def tiny_config(
    system: str = "lom-genesis-v2", networks: str = "published", *, rendered: int | None = None, **options
) -> Config:
    model = dict(
        num_slots=NUM_SLOTS,
        slot_dim=SLOT_DIM,
        scene_dim=SCENE_DIM,
        encoder_width=8,
        decoder=next(decoder for name, decoder in PUBLISHED_DECODERS.items() if system.endswith(name)),
        decoder_width=8,
        transformer_width=SLOT_DIM,
        num_encoder_blocks=2,
    )
    geco = Geco(initial=0.02)  # the KL of an untrained slot prior can be anything
    train = Train(steps=10, batch_size=NUM_SCENES, final_steps=2, ordered_rendered=rendered, geco=geco)
    return Config("tiny", model=Model(system, **(model | NETWORKS[networks] | options)), train=train)


def tiny_system(system: str = "lom-genesis-v2", networks: str = "published", **options) -> System:
    torch.manual_seed(0)
    return build_system(tiny_config(system, networks, **options), IMAGE_SHAPE)


def tiny_objective(system: str = "lom-genesis-v2", networks: str = "published") -> Objective:
    config = tiny_config(system, networks)
    return build_objective(config, tiny_system(system, networks), IMAGE_SHAPE)


def tiny_images(num_scenes: int = NUM_SCENES, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> torch.Tensor:
    """Smooth random images in [0, 1]."""
    channels, *size = image_shape
    coarse = torch.rand(num_scenes, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
