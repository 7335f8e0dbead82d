"""A posterior is mapped as a whole, whatever it carries."""

import pytest
import torch
from torch.utils._pytree import tree_map, tree_map_only

from pyro_lom.types import OrderlessPosterior, SlotMoments


def some_posterior(masks, steps):
    log_masks = torch.randn(2, 3, 1, 4, 4).log_softmax(1) if masks else None
    moments = [SlotMoments(torch.randn(2, 3, 5), torch.rand(2, 3, 5)) for _ in range(steps)]
    return OrderlessPosterior(torch.randn(2, 3, 5), torch.rand(2, 3, 5), log_masks, tuple(moments))


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("steps", [0, 2])
def test_batches_come_apart_and_together_again(masks, steps):
    posterior = some_posterior(masks, steps)
    first, second = (tree_map_only(torch.Tensor, lambda part, b=b: part[b : b + 1], posterior) for b in range(2))
    assert first.loc.shape == (1, 3, 5) and len(first.earlier) == steps and (first.log_masks is None) == (not masks)
    joined = tree_map(lambda *parts: None if parts[0] is None else torch.cat(parts), first, second)
    assert str(joined) == str(posterior)


def test_detaching_reaches_every_tensor():
    posterior = tree_map(torch.Tensor.requires_grad_, some_posterior(masks=True, steps=2))
    detached = posterior.detach()
    assert not any(part.requires_grad for part in (*detached[:3], *detached.earlier[0], *detached.earlier[1]))
    torch.testing.assert_close(detached, tree_map(torch.Tensor.detach, posterior))
