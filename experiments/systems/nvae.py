"""NVAE: its options and presets."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor, nn

from experiments.config import Bound, Config, NotNegative, Positive, Share, Size, Train, within
from experiments.systems import published
from experiments.systems.options import CLEVR6, RENDERED, ImageShape, SystemOptions, check_image_size
from guides.nvae import NvaeGuide
from models.nvae import Nvae as NvaeModel
from pyro_lom.balanced_elbo import BalancedELBO, group_weights
from pyro_lom.errors import UserError
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.networks.nvae import BottomUp, WeightNormConv, descents, image_decoder, map_shapes
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class Nvae(SystemOptions):
    """NVAE without normalising flows. It normalises batches, so the loss of a scene depends on the other scenes."""

    kind: ClassVar[str] = "nvae"

    width: Annotated[int, Bound("an even number from 2 to 256", lambda n: 2 <= n <= 256 and n % 2 == 0)] = 16
    """Channels at full resolution (A.4.3). They double with each halving of the image."""
    groups: tuple[Annotated[int, within(1, 64)], ...] = (5, 10, 20)
    """Groups of latents at each scale, from the top. The finest scale has half the image's size."""
    latent_channels: Size = 20
    """Dz: channels of a latent (A.4.3)."""
    cells_per_group: Annotated[int, within(1, 16)] = 2
    """Residual cells of each group, in either direction, and before the first and after the last group."""
    image_scale: Positive = 0.7
    """sigma, the standard deviation of the likelihood, for images in [0, 1] (A.4.3)."""
    kl_warmup: Share = 0.3
    """Share of the steps in which the weight of the KLs grows from 0.0001 to 1, and KLs are balanced."""
    penalty_weight: NotNegative = 0.1
    """lambda, the weight of the spectral norms of convolutions and of the scales of batch normalisation."""

    def build(self, image_shape: ImageShape, train: Train) -> System:
        check_image_size(image_shape)
        (channels, size, _), latent, num_cells = image_shape, self.latent_channels, self.cells_per_group
        if not 1 <= len(self.groups) <= 5 or size % 2 ** len(self.groups):
            raise UserError(
                f"--model.groups has {len(self.groups)} scales, each of half the size of the one before, but images "
                f"have {size} pixels: give 1 to 5 scales, so that 2^scales divides the size"
            )
        shapes = map_shapes(size, width=self.width, groups=self.groups)
        widths = [width for width, *_ in shapes]
        model = NvaeModel(
            shapes=shapes,
            latent_channels=latent,
            descents=descents(shapes, latent, num_cells=num_cells),
            prior_heads=nn.ModuleList(
                nn.Sequential(nn.ELU(), WeightNormConv(width, 2 * latent, 1)) for width in widths[1:]
            ),
            decoder=image_decoder(widths[-1], latent, 2 * channels, num_cells=num_cells),
            likelihood=GaussianLikelihood(self.image_scale),
        )
        guide = NvaeGuide(
            model,
            encoder=BottomUp(channels, width=self.width, groups=self.groups, num_cells=num_cells),
            combiners=nn.ModuleList(WeightNormConv(width, width, 1) for width in widths[1:]),
            heads=nn.ModuleList(WeightNormConv(width, 2 * latent, 3) for width in widths),
        )
        criterion = BalancedELBO(
            dict(zip(model.latent_sites, group_weights(self.groups), strict=True)),
            programs=(model, guide),
            num_steps=train.steps,
            warmup=self.kl_warmup,
            penalty_weight=self.penalty_weight,
        )
        return {"model": Pair(model, guide, criterion)}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.nvae(published.within(tensors, "pairs.model."))

    def check(self, train: Train, *, accumulate: int = 1, cuda_graph: bool = False) -> None:
        if accumulate > 1:
            raise UserError(
                f"--accumulate is {accumulate}, but the networks of {self.kind} normalise whole batches, so that parts "
                "of a batch give another step: leave it out, or lower --train.batch-size"
            )


NVAE_CLEVR6 = Config(
    preset="nvae-clevr6",
    model=Nvae(),
    data=CLEVR6,
    train=Train(
        steps=300_000,
        learning_rate=1e-2,
        optimizer="adamax",
        eps=1e-3,
        weight_decay=3e-4,
        warmup_steps=16_667,  # 5 of the published 90 epochs
        decay="cosine",
    ),
)
"""NVAE on CLEVR6, as in the paper (A.4.3), with the published optimiser and schedule."""

NVAE_TOWERS = Config(
    preset="nvae-towers",
    model=Nvae(width=8, groups=(2, 2, 2), latent_channels=8, cells_per_group=1, image_scale=0.1),
    train=Train(
        steps=2000,
        batch_size=16,
        learning_rate=2e-3,
        warmup_steps=100,
        decay="linear",
        log_every=50,
        checkpoint_every=1000,
        preview_every=1000,
    ),
)
"""A small NVAE for a CPU. Sigma is 0.1, as in emorl-towers."""

_SMALL = [
    replace(
        NVAE_TOWERS,
        preset=f"nvae-{name}-small",
        model=replace(NVAE_TOWERS.model, image_scale=0.3),
        data=data,
        train=replace(NVAE_TOWERS.train, steps=1400, batch_size=8, learning_rate=8e-3),
    )
    for name, data in RENDERED.items()
]
"""NVAE_TOWERS on rendered scenes, with smaller batches, a larger learning rate and a larger sigma."""

SYSTEMS = (Nvae,)
PRESETS = (NVAE_TOWERS, *_SMALL, NVAE_CLEVR6)
