"""GNM's guide: the scene step by step from the image and the canvas, cells and background from the image."""

import pyro
from jaxtyping import Float
from torch import Tensor, nn

from models.gnm import Gnm, normal
from pyro_lom.networks.gnm import ConvolutionalLSTM, by_cell
from pyro_lom.program import Guide


class GnmGuide(Guide):
    """q(z | x) = prod_t q(z_g_t | z_g_1:t-1, x) q(z_bg | x) prod_n q(z_pres_n, z_where_n, z_depth_n, z_what_n | x)

        e       = encoder(x)                        features of the image, at the cells
        memory  = recurrence(e, e - canvas)         reads also the memory of the model's StructDRAW
        z_g_t   ~ N(global_posterior(memory))       then the model draws z_g_t on the canvas
        z_bg    ~ N(background_posterior(e))
        z_pres, z_where, z_depth, z_what            as in the model, but from e instead of the canvas

    Args:
        encoder: maps images to features (B, C, rows, columns), which `infer` returns.
        recurrence: a `ConvolutionalLSTM`.
        global_posterior: maps its memory, cell by cell, to raw parameters of q(z_g_t | z_g_1:t-1, x).
        background_posterior: maps all features of an image to raw parameters of q(z_bg | x).
    """

    def __init__(
        self,
        model: Gnm,
        *,
        encoder: nn.Module,
        recurrence: ConvolutionalLSTM,
        global_posterior: nn.Module,
        background_posterior: nn.Module,
    ):
        super().__init__()
        self.borrow("model", model)
        self.encoder, self.recurrence = encoder, recurrence
        self.global_posterior, self.background_posterior = global_posterior, background_posterior

    def forward(
        self, images: Float[Tensor, "B C H W"], *, inferred: Float[Tensor, "B C_e rows columns"] | None = None
    ) -> Float[Tensor, "*batch K Dz"]:
        """Sample slots. `inferred` is the result of `infer(images)` if already computed."""
        features = self.infer(images) if inferred is None else inferred
        with pyro.plate("scenes", len(images), dim=-2):
            drawing, memory = self.model.draw.start(), self.recurrence.start()
            for site in self.model.scene_sites:
                memory = self.recurrence(memory, features, features - drawing.canvas, drawing.memory.hidden)
                latent = pyro.sample(site, normal(self.global_posterior(by_cell(memory.hidden)).unsqueeze(-2)))
                drawing = self.model.draw(drawing, latent.squeeze(-2))
            return self.model.join(self._sample_slots(features))

    def infer(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_e rows columns"]:
        """Return the features of images."""
        return self.encoder(images)

    def log_masks(self, inferred: Float[Tensor, "B C_e rows columns"]) -> Float[Tensor, "B K 1 H W"]:
        """Return the log masks of cells and background in a rendering of sampled slots."""
        with pyro.plate("scenes", len(inferred), dim=-2):
            return self.model.render(self._sample_slots(inferred)).log_masks

    def _sample_slots(self, features: Float[Tensor, "B C_e rows columns"]) -> dict[str, Tensor]:
        background = pyro.sample("z_bg", normal(self.background_posterior(features.flatten(-3)).unsqueeze(-2)))
        return self.model.sample_cells(features) | {"z_bg": background}
