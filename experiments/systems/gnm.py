"""GNM: its options and presets."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor, nn

from experiments.config import Bound, Config, Data, Natural, Positive, Size, Train, Width
from experiments.systems import published
from experiments.systems.options import OBJECTS_ROOM, RENDERED, SHAPESTACKS, ImageShape, SystemOptions
from guides.gnm import GnmGuide
from models.gnm import RELAXATION
from models.gnm import Gnm as GnmModel
from pyro_lom.errors import UserError
from pyro_lom.gnm_elbo import PUBLISHED, Annealing, GnmELBO
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.networks.gnm import (
    CellNet,
    ConvolutionalLSTM,
    ConvolutionStack,
    Perceptron,
    StructDraw,
    SubPixelDecoder,
)
from pyro_lom.system import Pair, System

CLEVR6_128 = Data(path="data/clevr6-128.h5", image_size=128)
"""The paper's CLEVR6 at the resolution of GNM (A.4.3)."""


@dataclass(frozen=True)
class Curriculum:
    alpha_steps: Natural = 500
    """Step, counted from 1, before which every pixel is 0.9 foreground."""
    where_steps: Natural = 500
    """Steps in which the weight of the auxiliary KL of z_where falls from 10 to 1."""
    presence_steps: Natural = 4000
    """Steps in which the fixed prior's probability of an object in a cell falls from 0.1 to 0.001."""
    background_steps: Natural = 50_000
    """Steps in which the weight of the auxiliary KL of z_bg falls from 50 to 1."""
    global_steps: Natural = 100_000
    """Steps in which the weight of the KLs of z_g grows from 0 to 1."""
    relaxation_start: Natural = 1000
    """Step up to which the relaxation of z_pres is 1."""
    relaxation_end: Natural = 20_000
    """Step from which on the relaxation of z_pres is 0.5."""


@dataclass(frozen=True)
class Gnm(SystemOptions):
    """GNM."""

    kind: ClassVar[str] = "gnm"
    published_older: ClassVar[dict[str, str]] = {r"p_z_given_g_net\..*$": ""}  # the cell net under its second name

    num_cells: Annotated[int, Bound("2, 4 or 8", lambda number: number in (2, 4, 8))] = 4
    """Cells in a row and in a column."""
    num_draws: Size = 4
    """T: steps of StructDRAW."""
    global_dim: Size = 32
    """G: size of each z_g."""
    what_dim: Size = 64
    """Dwhat: size of z_what."""
    background_dim: Size = 10
    """Dbg: size of z_bg."""
    encoder_width: Width = 128
    """Channels of a cell's features, of the image and of the canvas. Perceptrons have widths in proportion to it."""
    decoder_width: Width = 128
    """Channels of the decoders of glimpses and of the background, before they are halved at each stage."""
    image_scale: Positive = 0.2
    """sigma, the standard deviation of the likelihood, for images in [0, 1]."""
    curriculum: Curriculum = Curriculum()

    def build(self, image_shape: ImageShape, train: Train) -> System:
        (channels, size, _), width, num_cells = image_shape, self.encoder_width, self.num_cells
        _check_image_size(image_shape)
        in_cells, in_scene = width * num_cells**2, (4 * width, 4 * width, 2 * self.global_dim)
        curriculum = self.curriculum
        model = GnmModel(
            StructDraw(
                Perceptron(self.global_dim, 4 * width, 8 * width, in_cells, is_open=False),
                ConvolutionalLSTM(2 * width, width, num_cells),
                nn.Conv2d(width, width, 3, padding=1),
            ),
            global_prior=Perceptron(in_cells, *in_scene),
            background_prior=Perceptron(self.num_draws * self.global_dim, width, width // 2, 2 * self.background_dim),
            cells=CellNet(width, {"z_pres": 1, "z_where": 8, "z_depth": 2, "z_what": 2 * self.what_dim}),
            glimpse_decoder=SubPixelDecoder(self.what_dim, _glimpse_stages(size, self.decoder_width, channels + 1)),
            background_decoder=SubPixelDecoder(
                self.background_dim, _background_stages(size, self.decoder_width, channels)
            ),
            likelihood=GaussianLikelihood(self.image_scale),
            num_cells=num_cells,
            image_size=size,
            what_dim=self.what_dim,
            background_dim=self.background_dim,
            num_draws=self.num_draws,
            relaxation=RELAXATION._replace(start=curriculum.relaxation_start, end=curriculum.relaxation_end),
            alpha_steps=curriculum.alpha_steps,
        )
        guide = GnmGuide(
            model,
            encoder=ConvolutionStack(channels, _encoder_layers(size // num_cells, width)),
            recurrence=ConvolutionalLSTM(3 * width, width, num_cells),
            global_posterior=Perceptron(in_cells, *in_scene),
            background_posterior=Perceptron(in_cells, 4 * width, 2 * width, 2 * self.background_dim),
        )
        return {"model": Pair(model, guide, GnmELBO(model, self._annealing()))}

    def published(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return published.gnm(published.within(tensors, "pairs.model."))

    def _annealing(self) -> Annealing:
        """Return the published weights with the steps of the options."""
        steps = self.curriculum
        return Annealing(
            global_weight=PUBLISHED.global_weight._replace(end=steps.global_steps),
            presence=PUBLISHED.presence._replace(end=steps.presence_steps),
            where_weight=PUBLISHED.where_weight._replace(end=steps.where_steps),
            background_weight=PUBLISHED.background_weight._replace(end=steps.background_steps),
        )


def _check_image_size(image_shape: ImageShape) -> None:
    """Raise UserError if the sizes of images are not equal or not products of factors 2 and 3."""
    _, height, width = image_shape
    if height != width or height not in (32, 48, 64, 96, 128):
        raise UserError(
            f"images are {height}x{width}, but GNM needs square ones of 32, 48, 64, 96 or 128 pixels: crop and resize "
            "them, or choose such a --data.image-size for a folder of images"
        )


def _factors(number: int) -> list[int]:
    """Return the factors 2, then the factors 3, of a number that has no others."""
    found = []
    for factor in (2, 3):
        while number % factor == 0:
            found.append(factor)
            number //= factor
    return found


def _encoder_layers(cell_size: int, width: int) -> list[tuple[int, int, int]]:
    """Return a strided layer for each factor of a cell's side, the first four with a layer of the same width behind.

    The widths double up to `width`, which the fourth strided layer reaches, or the last one.
    """
    strides = _factors(cell_size)
    first = min(len(strides), 4) - 1
    layers = []
    for number, stride in enumerate(strides):
        filters = max(1, width >> max(0, first - number))
        layers += [(filters, 4, stride), (filters, 3, 1)][: 2 if number < 4 else 1]
    return layers


def _glimpse_stages(size: int, width: int, channels: int) -> list[tuple[int, int, int]]:
    """Return stages of factor 2 up to half of the image's side, or less if this is no power of 2."""
    num = (size // 2).bit_length() - 1
    return [(max(1, width >> stage), 3, 2) for stage in range(num - 1)] + [(channels, 3, 2)]


def _background_stages(size: int, width: int, channels: int) -> list[tuple[int, int, int]]:
    """Return stages of factors 4, 2, 4 and, for larger images, more; then one of factor 1."""
    rest = size // 8
    scales = [4, 2, *([4, *_factors(rest // 4)] if rest % 4 == 0 else _factors(rest))]
    return [(max(1, width >> stage), 1, scale) for stage, scale in enumerate(scales)] + [(channels, 3, 1)]


TRAIN = Train(optimizer="rmsprop", clip_norm=1.0)
"""The published optimiser; steps, batch size and learning rate are those of the paper's other systems (A.4.3)."""

GNM_OBJECTS_ROOM = Config(preset="gnm-objects-room", model=Gnm(), data=OBJECTS_ROOM, train=TRAIN)
"""GNM on Objects Room, without one downsampling and one upsampling layer, as 64x64 images require (A.4.3)."""

GNM_SHAPESTACKS = Config(preset="gnm-shapestacks", model=Gnm(), data=SHAPESTACKS, train=TRAIN)
"""GNM on ShapeStacks."""

GNM_CLEVR6 = Config(preset="gnm-clevr6", model=Gnm(), data=CLEVR6_128, train=TRAIN)
"""GNM on CLEVR6 at 128x128 pixels, with the published hyperparameters for such images."""

GNM_TOWERS = Config(
    preset="gnm-towers",
    model=Gnm(
        global_dim=8,
        what_dim=8,
        encoder_width=32,
        decoder_width=32,
        image_scale=0.15,
        curriculum=Curriculum(
            alpha_steps=300,
            where_steps=600,
            presence_steps=1500,
            background_steps=800,
            global_steps=20_000,
            relaxation_start=500,
            relaxation_end=2000,
        ),
    ),
    train=Train(
        steps=3500,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=100,
        decay="linear",
        clip_norm=1.0,
        log_every=50,
        checkpoint_every=1000,
        preview_every=2000,
    ),
)
"""A small GNM for a CPU, with shorter schedules and a smaller sigma.

The weight of the KLs of z_g stays small, because these KLs are otherwise 0 from the start on.
"""

_SMALL = [
    replace(
        GNM_TOWERS,
        preset=f"gnm-{name}-small",
        model=replace(
            GNM_TOWERS.model,
            background_dim=32,
            curriculum=replace(
                GNM_TOWERS.model.curriculum,
                alpha_steps=0 if name == "shapestacks-near" else 300,
                global_steps=34_500,
            ),
        ),
        data=data,
        train=replace(GNM_TOWERS.train, steps=6000),
    )
    for name, data in RENDERED.items()
]
"""GNM_TOWERS on rendered scenes, with more steps and a larger z_bg.

The weight of the KLs of z_g has nearly the same last value. On stacks, alpha is never fixed: when 300 such steps ended,
the background had not learned, and with some seeds all KLs fell to 0.
"""

SYSTEMS = (Gnm,)
PRESETS = (GNM_TOWERS, *_SMALL, GNM_OBJECTS_ROOM, GNM_SHAPESTACKS, GNM_CLEVR6)
