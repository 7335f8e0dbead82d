"""SRI's scene encoder: relation blocks, any batch, no order, the published initialisation."""

import pytest
import torch

from pyro_lom.networks.relations import RelationBlock, RelationSceneEncoder

K, D, DS = 4, 6, 5


def test_a_block_is_a_sum_over_pairs():
    """The equations of the docstring, slot by slot."""
    block, tokens = RelationBlock(D), torch.randn(K, D)
    expected = []
    for x_i in tokens:
        weights = torch.stack([block.query(x_i) @ block.key(x_j) / D**0.5 for x_j in tokens]).softmax(0)
        values = [block.relation(torch.cat([x_i, x_i - x_j])) for x_j in tokens]
        attended = sum(weight * value for weight, value in zip(weights, values, strict=True))
        expected.append(x_i + block.mlp(block.norm(x_i + attended)))
    torch.testing.assert_close(block(tokens), torch.stack(expected))


@pytest.mark.parametrize("width", [D, 8])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3, 1)])
def test_any_batch_is_as_one_at_a_time(width, batch):
    encoder, slots = RelationSceneEncoder(D, DS, width=width), torch.randn(*batch, K, D)
    alone = torch.stack([encoder(one) for one in slots.view(-1, K, D)])
    torch.testing.assert_close(encoder(slots), alone.view(*batch, DS))


def test_the_order_of_slots_does_not_matter():
    encoder, slots = RelationSceneEncoder(D, DS, width=D), torch.randn(3, K, D)
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter)
    torch.testing.assert_close(encoder(slots), encoder(slots[:, torch.randperm(K)]), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(encoder(slots), encoder(slots[:, [0, 0, 1, 2]]))


def test_published_size_and_start():
    encoder = RelationSceneEncoder(64, 128, width=64)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 95_488
    first = encoder.blocks[0].relation[0]
    assert first.weight.std().item() == pytest.approx(0.02 * (2 / (128 + 64)) ** 0.5, rel=0.05)
    assert not any(p.any() for name, p in encoder.named_parameters() if name.endswith("bias") and "norm" not in name)
