"""Every system, small enough to run in milliseconds."""

from dataclasses import fields
from typing import NamedTuple

import pytest
import torch

from experiments.config import Config, Train
from experiments.systems import build
from experiments.systems.autoregressive import Autoregressive, SceneAutoregressive
from experiments.systems.emorl import Emorl, EmorlInference
from experiments.systems.genesis import Genesis
from experiments.systems.genesis_v2 import GenesisV2, GenesisV2Inference
from experiments.systems.genesis_v2_autoregressive import GenesisV2Autoregressive
from experiments.systems.gnm import Gnm
from experiments.systems.lom import Lom, LomSchedule, SceneFreeNats
from experiments.systems.nvae import Nvae
from experiments.systems.options import Geco
from experiments.systems.sri import Sri
from experiments.systems.vae import Vae
from pyro_lom.objective import Objective
from pyro_lom.program import Guide, Model
from pyro_lom.system import System, result

LATENTS = {
    "lom-genesis-v2": {"s", "z"},
    "genesis-v2": {"o"},
    "genesis": {f"z_{part}_{k}" for part in ("mask", "component") for k in (1, 2, 3)},
    "lom-emorl": {"s", "z"},
    "emorl": {"o_1", "o_2", "o_3"},
    "autoregressive-emorl": {"z_1", "z_2", "z_3"},
    "scene-autoregressive-emorl": {"s", "z_1", "z_2", "z_3"},
    "genesis-v2-autoregressive": {"o_1", "o_2", "o_3"},
    "sri-genesis-v2": {"s", "z_1", "z_2", "z_3"},
    "vae": {"s"},
    "gnm": {"z_g_1", "z_g_2", "z_bg", "z_pres", "z_where", "z_depth", "z_what"},
    "nvae": {"z_1", "z_2", "z_3"},
}
AUXILIARY = {system: {"noise"} if "emorl" in system else {"seed_scores"} for system in LATENTS} | {
    "genesis": set(),
    "vae": set(),
    "gnm": set(),
    "nvae": set(),
}
AUXILIARY["sri-genesis-v2"] |= {"o", "rollout_1", "rollout_2", "rollout_3"}
SYSTEMS = tuple(LATENTS)
ALONE = ("genesis-v2", "genesis", "emorl", "genesis-v2-autoregressive", "vae", "gnm", "nvae")
WITH_SLOTS = tuple(system for system in SYSTEMS if system not in ("vae", "nvae", "gnm"))  # slots of one kind
NETWORKS = {
    "published": dict(encoder="published"),
    "compact": dict(encoder="compact", decoder="separable"),
}
SHADED = {"regions": dict(encoder="regions", decoder="frame")}
"""Networks of systems with the inference of GENESIS-v2 or EMORL."""
IMAGE_SHAPE = (3, 32, 32)
NUM_SCENES = 2
NUM_SLOTS = 3
SLOT_DIM = 8
COMPONENT_DIM = 4
SCENE_DIM = 12
CELLS = 2  # in a row and in a column

_ALONE = dict(zip(ALONE, (GenesisV2, Genesis, Emorl, GenesisV2Autoregressive, Vae, Gnm, Nvae), strict=True))
_OVER = {"lom-": Lom, "autoregressive-": Autoregressive, "scene-autoregressive-": SceneAutoregressive, "sri-": Sri}
_INFERENCE = {"genesis-v2": GenesisV2Inference, "emorl": EmorlInference}
_DECODERS = {"genesis-v2": "deconvolution", "emorl": "broadcast"}


def some_slow(values, quick):
    """Return `values` as parameters of a test, of which those that are not in `quick` are slow."""
    return [pytest.param(value, marks=() if value in quick else pytest.mark.slow) for value in values]


class Programs(NamedTuple):
    """A model and its guide, without the criterion that trains them."""

    model: Model
    guide: Guide


def tiny_config(
    system: str = "lom-genesis-v2", networks: str = "published", *, rendered: int | None = None, **options
) -> Config:
    """The configuration of a system; `options` are those of its class, such as `matching` of a LOM.

    Every system has the Gaussian likelihood, unless `options` name another.
    """
    base = next(name for name in sorted(_ALONE, key=len, reverse=True) if system.endswith(name))
    kind = _OVER[system.removesuffix(base)] if system != base else _ALONE[base]
    inference = dict(encoder_width=8, free_nats_per_dim=0.0)
    values = dict(
        num_slots=NUM_SLOTS,
        likelihood="gaussian",
        slot_dim=SLOT_DIM,
        decoder=_DECODERS.get(base, "deconvolution"),
        decoder_width=8,
        # The KL of an untrained slot prior can be anything.
        geco=Geco(initial=0.02, analytic_kl=system != "genesis-v2-autoregressive"),
        scene_dim=SCENE_DIM,
        transformer_width=SLOT_DIM,
        token_width=SLOT_DIM,
        num_encoder_blocks=2,
        free_nats=SceneFreeNats(final_steps=2),
        recurrence_width=4 * SLOT_DIM,
        mask_dim=SLOT_DIM,
        component_dim=COMPONENT_DIM,
        image_scale=0.7,
        num_cells=CELLS,
        num_draws=2,
        global_dim=SLOT_DIM,
        what_dim=COMPONENT_DIM,
        background_dim=COMPONENT_DIM,
        width=2,
        groups=(1, 2),
        latent_channels=2,
        cells_per_group=1,
    )
    for name, value in (NETWORKS | SHADED)[networks].items():
        (inference if name == "encoder" else values)[name] = value
    values |= inference if system in _ALONE else dict(orderless=_INFERENCE[base](**inference))
    if rendered is not None:
        values |= dict(schedule=LomSchedule(ordered_rendered=rendered))
    own = {field.name for field in fields(kind)}
    model = kind(**({name: value for name, value in values.items() if name in own} | options))
    return Config("tiny", model=model, train=Train(steps=10, batch_size=NUM_SCENES))


def tiny_system(system: str = "lom-genesis-v2", networks: str = "published", **options) -> System:
    torch.manual_seed(0)
    return build(tiny_config(system, networks, **options), IMAGE_SHAPE)


def tiny_pair(system: str = "lom-genesis-v2", networks: str = "published", **options) -> Programs:
    """The model and the guide that the system is about."""
    return Programs(*result(tiny_system(system, networks, **options))[:2])


def tiny_objective(system: str = "lom-genesis-v2", networks: str = "published", **options) -> Objective:
    return Objective(tiny_system(system, networks, **options))


def tiny_images(num_scenes: int = NUM_SCENES, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> torch.Tensor:
    """Smooth random images in [0, 1]."""
    channels, *size = image_shape
    coarse = torch.rand(num_scenes, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
