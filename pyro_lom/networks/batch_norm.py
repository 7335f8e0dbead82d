"""Batch normalisation whose statistics are those of all processes."""

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from pyro_lom.distributions import at_least_float32


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of images (Ioffe & Szegedy, 2015), with the mean and variance of all processes together.

    Each process must have the same number of images. Unlike `nn.SyncBatchNorm`, it also runs on CPUs. In training, an
    output depends on all images of the step. In evaluation, running statistics replace those of the batch, and every
    image is processed as if it were alone.
    """

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N c h w"]:
        if not self.training or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return super().forward(images)
        variance, mean = torch.var_mean(at_least_float32(images), dim=(0, 2, 3), correction=0)
        # Moments of all processes: the mean of their variances, plus the variance of their means.
        variances, means = _GatherByProcess.apply(torch.stack([variance, mean])).unbind(1)
        variance, mean = variances.mean(0) + means.var(0, correction=0), means.mean(0)
        self._track(mean, variance, num_values=len(means) * images.numel() // self.num_features)
        scale = self.weight * (variance + self.eps).rsqrt()
        return images * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]

    @torch.no_grad()
    def _track(self, mean: Float[Tensor, "c"], variance: Float[Tensor, "c"], num_values: int) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (num_values / (num_values - 1)), self.momentum)


class _GatherByProcess(torch.autograd.Function):
    """Stack the tensors of all processes. The gradient is summed over processes, since all of them use each tensor."""

    @staticmethod
    def forward(ctx, own: Tensor) -> Tensor:
        gathered = own.new_zeros(distributed.get_world_size(), *own.shape)
        gathered[distributed.get_rank()] = own
        distributed.all_reduce(gathered)
        return gathered

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient[distributed.get_rank()]
