"""Batch normalisation over all processes is that of the whole batch in one process."""

import pytest
import torch
from torch import distributed, multiprocessing, nn

from pyro_lom.networks.batch_norm import BatchNorm

IMAGES = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double() * 2 + 3
WEIGHTS = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(1)).double()


def step(images, weights):
    """The output, the running statistics, and gradients by the images and the parameters, of a weighted sum."""
    norm, images = BatchNorm(3).double(), images.clone().requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    out = norm(images)
    (weights * out).sum().backward()
    parameters = norm.weight.grad, norm.bias.grad
    return out.detach(), images.grad, parameters, dict(norm.named_buffers())


def work(rank, folder):
    """One of two processes, which has three of six images."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    rows = slice(3 * rank, 3 * rank + 3)
    torch.save(step(IMAGES[rows], WEIGHTS[rows]), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_have_the_statistics_and_gradients_of_one(tmp_path):
    multiprocessing.spawn(work, args=(tmp_path,), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    out, gradient, parameters, buffers = step(IMAGES, WEIGHTS)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), out)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient)
    for whole, *shares in zip(parameters, *(part[2] for part in parts), strict=True):
        torch.testing.assert_close(sum(shares), whole)
    for part in parts:
        torch.testing.assert_close(part[3], buffers)
    assert buffers["num_batches_tracked"] == 1
    torch.testing.assert_close(buffers["running_mean"], 0.1 * IMAGES.mean((0, 2, 3)))
    torch.testing.assert_close(buffers["running_var"], 0.9 + 0.1 * IMAGES.var((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_one_process_has_torchs(training):
    ours, theirs = (kind(3).double().train(training) for kind in (BatchNorm, nn.BatchNorm2d))
    torch.testing.assert_close(ours(IMAGES), theirs(IMAGES))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_in_evaluation_an_image_is_processed_as_if_it_were_alone():
    norm = BatchNorm(3).double()
    norm(IMAGES)
    norm.eval()
    torch.testing.assert_close(norm(IMAGES[2:3]), norm(IMAGES)[2:3])
