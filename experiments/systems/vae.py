"""A variational autoencoder: its options and presets."""

from dataclasses import dataclass, replace
from typing import ClassVar

from experiments.config import Config, Positive, Size, Train, Width
from experiments.systems.options import (
    CLEVR6,
    OBJECTS_ROOM,
    RENDERED,
    SHAPESTACKS,
    ImageShape,
    SystemOptions,
    check_image_size,
)
from guides.vae import VaeGuide
from models.vae import Vae as VaeModel
from pyro_lom.distributions import GaussianHead
from pyro_lom.elbo import TraceScene_ELBO
from pyro_lom.likelihoods import GaussianLikelihood
from pyro_lom.networks.convolution_encoder import ConvolutionEncoder
from pyro_lom.networks.decoders import DeconvolutionDecoder
from pyro_lom.scene_priors import StandardNormal
from pyro_lom.system import Pair, System


@dataclass(frozen=True)
class Vae(SystemOptions):
    """A variational autoencoder."""

    kind: ClassVar[str] = "vae"

    scene_dim: Size = 128
    """Ds, the number of dimensions of the latent."""
    image_scale: Positive = 0.7
    """sigma, the standard deviation of the likelihood, for images in [0, 1]."""
    encoder_width: Width = 64
    """Channels of the encoder's layers."""
    decoder_width: Width = 64
    """Channels of the decoder's layers."""

    def build(self, image_shape: ImageShape, train: Train) -> System:
        check_image_size(image_shape)
        channels, size, _ = image_shape
        model = VaeModel(
            DeconvolutionDecoder(self.scene_dim, size, out_channels=channels, width=self.decoder_width),
            likelihood=GaussianLikelihood(self.image_scale),
            scene_prior=StandardNormal(self.scene_dim),
        )
        encoder = ConvolutionEncoder(size, in_channels=channels, width=self.encoder_width)
        guide = VaeGuide(model, encoder=encoder, scene_posterior=GaussianHead(encoder.num_features, self.scene_dim))
        return {"model": Pair(model, guide, TraceScene_ELBO())}


VAE_TOWERS = Config(
    preset="vae-towers",
    model=Vae(encoder_width=32, decoder_width=32),
    train=Train(
        steps=4000,
        batch_size=16,
        learning_rate=1e-3,
        warmup_steps=100,
        decay="linear",
        log_every=50,
        checkpoint_every=1000,
        preview_every=2000,
    ),
)
"""A small VAE for a CPU."""

_SMALL = [
    replace(
        VAE_TOWERS,
        preset=f"vae-{name}-small",
        model=replace(VAE_TOWERS.model, scene_dim=32, image_scale=0.4),
        data=data,
        train=replace(VAE_TOWERS.train, steps=6000),
    )
    for name, data in RENDERED.items()
]
"""VAE_TOWERS on rendered scenes, with more steps, and with the Ds and the sigma that were best in trials on rooms."""

SYSTEMS = (Vae,)
PRESETS = (
    VAE_TOWERS,
    *_SMALL,
    Config(preset="vae-objects-room", model=Vae(), data=OBJECTS_ROOM),
    Config(preset="vae-shapestacks", model=Vae(), data=SHAPESTACKS),
    Config(preset="vae-clevr6", model=Vae(), data=CLEVR6, train=Train(steps=300_000)),
)
