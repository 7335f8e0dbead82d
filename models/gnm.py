"""GNM (Jiang & Ahn, 2020): a scene latent, drawn step by step, decides what is in the cells of a grid."""

from typing import NamedTuple

import pyro
import torch
from jaxtyping import Float
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn.functional import pad, softplus

from pyro_lom.distributions import RelaxedBernoulli, at_least_float32, diagonal_normal
from pyro_lom.likelihoods import observed
from pyro_lom.networks.gnm import EPSILON, CellNet, StructDraw, boxes, by_cell, place
from pyro_lom.program import Model
from pyro_lom.schedules import Ramp
from pyro_lom.types import Rendering

LARGEST_LOGIT = 8.8  # of z_pres
RELAXATION = Ramp(1.0, 0.5, start=1000, end=20_000)
LARGEST_PRESENCE, EARLY_ALPHA = 0.99, 0.9  # of the first steps of training


class Layers(NamedTuple):
    """An image = foreground + (1 - alpha) background, and each cell's part of it."""

    image: Float[Tensor, "*batch C H W"]
    foreground: Float[Tensor, "*batch C H W"]
    background: Float[Tensor, "*batch C H W"]
    alpha: Float[Tensor, "*batch 1 H W"]
    importance: Float[Tensor, "*batch N 1 H W"]  # share of a cell in the foreground; the sum over cells is 1, or 0
    colours: Float[Tensor, "*batch N C H W"]  # of a cell, times its opacity
    opacity: Float[Tensor, "*batch N 1 H W"]  # of a cell; alpha is their sum


class Gnm(Model):
    """p(x, z) = prod_t p(z_g_t | z_g_1:t-1) p(z_bg | z_g) prod_n p(z_pres_n, z_where_n, z_depth_n, z_what_n | z_g)
    p(x | z_bg, z_pres, z_where, z_depth, z_what)

        z_g_t   ~ N(global_prior(memory))       the scene, in T steps of StructDRAW; each adds to a canvas of N cells
        z_bg    ~ N(background_prior(z_g_1:T))  the background
        z_pres  ~ Bernoulli(cells(canvas))      whether the cell has an object; relaxed to a number in (0, 1)
        z_where ~ N(cells(canvas))              scale, ratio of height to width and place of the object's box
        z_depth ~ N(cells(canvas))              depth of the object; a small depth is in front
        z_what  ~ N(cells(canvas))              colours and alpha of the object in its box
        x       ~ N(objects over background, sigma)

    Sites `z_g_1` to `z_g_T` (B, 1 | G), `z_bg` (B, 1 | Dbg) and `x` (B, 1 | C, H, W), in the plate `scenes` at dim -2;
    `z_pres` (B, N | 1), `z_where` (B, N | 4), `z_depth` (B, N | 1) and `z_what` (B, N | Dwhat), also in the plate
    `cells` at dim -1. Slots are the N cells, row after row, and the background.

    Before training step `alpha_steps`, counted from 1, every pixel is 0.9 foreground, so that cells learn before the
    background. The trainer sets `step`, which counts from 0. To train with other tools, set it, or pass
    `alpha_steps=0`.

    Args:
        draw: one step of StructDRAW.
        global_prior: maps the memory of StructDRAW, cell by cell, to raw parameters of p(z_g_t | z_g_1:t-1).
        background_prior: maps z_g_1:T to raw parameters of p(z_bg | z_g).
        cells: maps features of all cells to raw parameters of their latents. The guide uses it as well.
        glimpse_decoder: maps z_what to the logits of the colours and of alpha of a glimpse.
        background_decoder: maps z_bg to the logits of a background (C, H, W).
        likelihood: maps a rendering to p(x | z), as the modules of `pyro_lom/likelihoods.py` do.
        num_cells: cells in a row and in a column; N is its square.
        image_size: H and W.
        what_dim, background_dim: Dwhat and Dbg.
        num_draws: T.
        relaxation: the relaxation of z_pres by training step.
        alpha_steps: the first training step, counted from 1, whose alpha is not fixed.
    """

    mode_sites = ("z_bg", "z_pres", "z_where", "z_depth", "z_what")

    def __init__(
        self,
        draw: StructDraw,
        *,
        global_prior: nn.Module,
        background_prior: nn.Module,
        cells: CellNet,
        glimpse_decoder: nn.Module,
        background_decoder: nn.Module,
        likelihood: nn.Module,
        num_cells: int,
        image_size: int,
        what_dim: int,
        background_dim: int,
        num_draws: int = 4,
        relaxation: Ramp = RELAXATION,
        alpha_steps: int = 500,
    ):
        super().__init__()
        self.scene_sites = tuple(f"z_g_{t}" for t in range(1, num_draws + 1))
        self.cell_dims = {"z_pres": 1, "z_where": 4, "z_depth": 1, "z_what": what_dim}
        self.slot_sites = (*self.cell_dims, "z_bg")
        self.num_slots, self.slot_dim = num_cells**2 + 1, sum(self.cell_dims.values()) + background_dim
        self.draw, self.global_prior, self.background_prior = draw, global_prior, background_prior
        self.cells, self.glimpse_decoder, self.background_decoder = cells, glimpse_decoder, background_decoder
        self.likelihood = likelihood
        self.num_cells, self.image_size, self.background_dim = num_cells, image_size, background_dim
        self.relaxation, self.alpha_steps = relaxation, alpha_steps

    def forward(self, images: Float[Tensor, "B C H W"] | None = None, *, num_scenes: int = 1) -> Tensor:
        """Observe `images`, or sample `num_scenes` images; return them in the shape (B, 1, C, H, W)."""
        with pyro.plate("scenes", num_scenes if images is None else len(images), dim=-2):
            drawing, scene = self.draw.start(), []
            for site in self.scene_sites:
                scene.append(pyro.sample(site, normal(self.global_prior(by_cell(drawing.memory.hidden)).unsqueeze(-2))))
                drawing = self.draw(drawing, scene[-1].squeeze(-2))
            scene = torch.cat(torch.broadcast_tensors(*scene), dim=-1)
            background = pyro.sample("z_bg", normal(self.background_prior(scene)))
            latents = self.sample_cells(drawing.canvas) | {"z_bg": background}
            return pyro.sample("x", self.likelihood(self.render(latents)), obs=observed(images))

    def sample_cells(self, features: Float[Tensor, "*batch C rows columns"]) -> dict[str, Tensor]:
        """Sample the latents of the cells: from p(. | g) with the canvas as features, from q(. | x) with the image's.

        Call this within the plate `scenes`.
        """
        raw = self.cells(features)
        with pyro.plate("cells", self.num_cells**2, dim=-1):
            return {site: pyro.sample(site, self._distribution(site, raw[site])) for site in self.cell_dims}

    def _distribution(self, site: str, raw: Float[Tensor, "*batch N _"]) -> Distribution:
        if site != "z_pres":
            return normal(raw)
        return RelaxedBernoulli(LARGEST_LOGIT * raw.tanh(), self.relaxation.at(self.step)).to_event(1)

    def render(self, latents: dict[str, Tensor]) -> Rendering:
        """Draw the cells over the background. A pixel belongs to the cell whose visible opacity is the largest.

        The masks are importance times opacity, and 1 - alpha for the background, divided by their sum. The components
        are colours times this sum, so that the image is the sum of masks times components.
        """
        layers = self.paint(latents)
        background = layers.background.unsqueeze(-4)
        weights = torch.cat([layers.importance * layers.opacity, (1 - layers.alpha).unsqueeze(-4)], dim=-4) + EPSILON
        total = weights.sum(-4, keepdim=True)
        components = torch.cat([layers.colours / (layers.opacity + EPSILON), background], dim=-4) * total
        return Rendering(layers.image, components, (weights / total).log())

    def paint(self, latents: dict[str, Tensor]) -> Layers:
        """Decode the latents of the slot sites, and put the glimpses into their boxes."""
        is_early = self.step + 1 < self.alpha_steps  # published steps count from 1
        present = latents["z_pres"].unsqueeze(-1).unsqueeze(-1)
        present = torch.where(is_early, present.clamp_max(LARGEST_PRESENCE), present)
        glimpses = at_least_float32(self.glimpse_decoder(latents["z_what"])).sigmoid()
        colours, alpha = glimpses.tensor_split([-1], dim=-3)
        alpha = alpha * present
        glimpses = torch.cat([alpha * colours, alpha], dim=-3)
        placed = place(glimpses, boxes(latents["z_where"], self.num_cells), self.image_size)
        colours, opacity = placed.tensor_split([-1], dim=-3)

        nearness = opacity * torch.sigmoid(-latents["z_depth"]).unsqueeze(-1).unsqueeze(-1)
        importance = nearness / (nearness.sum(-4, keepdim=True) + EPSILON)
        foreground = (importance * colours).sum(-4)
        alpha = opacity.sum(-4)
        alpha = alpha.clamp(EPSILON, 1 - EPSILON).detach() + (alpha - alpha.detach())  # the gradient ignores the clamp
        alpha = torch.where(is_early, EARLY_ALPHA, alpha)
        background = at_least_float32(self.background_decoder(latents["z_bg"])).sigmoid().squeeze(-4)
        return Layers(
            foreground + (1 - alpha) * background, foreground, background, alpha, importance, colours, opacity
        )

    def join(self, latents: dict[str, Tensor]) -> Float[Tensor, "*batch K Dz"]:
        """Return slots: [z_pres, z_where, z_depth, z_what, 0] for each cell, then [0, z_bg] for the background."""
        cells = torch.cat([latents[site] for site in self.cell_dims], dim=-1)
        background = pad(latents["z_bg"], (cells.shape[-1], 0))
        return torch.cat([pad(cells, (0, self.background_dim)), background], dim=-2)

    def split(self, slots: Float[Tensor, "*batch K Dz"]) -> dict[str, Tensor]:
        """Return slots by site; the inverse of `join`, which ignores the numbers that `join` sets to 0."""
        *cells, _ = slots[..., :-1, :].split([*self.cell_dims.values(), self.background_dim], dim=-1)
        return dict(zip(self.cell_dims, cells, strict=True)) | {"z_bg": slots[..., -1:, -self.background_dim :]}


def normal(raw: Float[Tensor, "*batch two_D"]) -> Distribution:
    """Map raw parameters to a diagonal normal whose scale is softplus(raw)."""
    loc, raw_scale = at_least_float32(raw).chunk(2, dim=-1)
    return diagonal_normal(loc, softplus(raw_scale))
