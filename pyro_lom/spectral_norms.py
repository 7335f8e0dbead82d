"""Spectral norms of convolutions, estimated by a power iteration whose vectors are kept (Yoshida & Miyato, 2017)."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_FIRST, _EVERY = 40, 4  # iterations in the first step, and in every other step


class SpectralNorms(nn.Module):
    """The sum of the spectral norms of convolutions, whose kernels are matrices W (out, in k k).

        v <- W^T u / |W^T u|,    u <- W v / |W v|,    spectral norm = u^T W v

    The constructor takes 36 iterations. Each call in training mode takes four more before it computes the norms. The
    vectors u and v are buffers, through which no gradient passes. Matrices of the same shape form one batch.

    Attributes:
        batches: the convolutions whose vectors are the rows of the buffers, by shape.

    Args:
        convolutions: owned by other modules. The kernel of a convolution is its `kernel()`, or else its weight.
    """

    def __init__(self, convolutions: Iterable[nn.Conv2d]):
        super().__init__()
        self.batches: dict[str, list[nn.Conv2d]] = {}
        for convolution in convolutions:
            rows, columns = convolution.weight.flatten(1).shape
            self.batches.setdefault(f"{rows}x{columns}", []).append(convolution)
        for shape, batch in self.batches.items():
            for vector, size in zip("uv", map(int, shape.split("x")), strict=True):
                self.register_buffer(f"{vector}_{shape}", F.normalize(torch.randn(len(batch), size), dim=1, eps=1e-3))
        self.iterate(_FIRST - _EVERY)

    def forward(self) -> Float[Tensor, ""]:
        if self.training:
            self.iterate(_EVERY)
        # Copies, because the next step changes the vectors in place.
        norms = [torch.einsum("nr,nrc,nc->", u.clone(), matrices, v.clone()) for u, matrices, v in self._problems()]
        return torch.stack(norms).sum()

    @torch.no_grad()
    def iterate(self, num_iterations: int) -> None:
        """Move all vectors by `num_iterations` iterations."""
        for u, matrices, v in self._problems():
            for _ in range(num_iterations):
                v.copy_(F.normalize(torch.einsum("nrc,nr->nc", matrices, u), dim=1, eps=1e-3))
                u.copy_(F.normalize(torch.einsum("nrc,nc->nr", matrices, v), dim=1, eps=1e-3))

    def _problems(self) -> Iterable[tuple[Float[Tensor, "n r"], Float[Tensor, "n r c"], Float[Tensor, "n c"]]]:
        """Yield u, W and v of each batch."""
        for shape, batch in self.batches.items():
            kernels = [layer.kernel() if hasattr(layer, "kernel") else layer.weight for layer in batch]
            matrices = torch.stack([kernel.flatten(1) for kernel in kernels])
            yield getattr(self, f"u_{shape}"), matrices, getattr(self, f"v_{shape}")
