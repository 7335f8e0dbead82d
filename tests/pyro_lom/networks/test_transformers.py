"""Who sees whom: g is blind to order, f and f' look back only."""

import math

import pytest
import torch
from torch import nn

from pyro_lom.networks.transformers import (
    CausalTransformer,
    PosteriorOrder,
    PriorOrder,
    SceneEncoder,
    SelfAttentionBlock,
    sum_pooling,
    token_pooling,
    xavier_,
)

K, DZ, DS, WIDTH = 5, 6, 10, 8


def make(kind):
    """A network with its zero tokens moved, and the inputs it takes: everything it can depend on, it does."""
    network = {
        "g": lambda: SceneEncoder(DZ, DS, width=WIDTH, num_blocks=2),
        "f": lambda: PriorOrder(DS, num_slots=K, width=WIDTH, num_blocks=2),
        "f'": lambda: PosteriorOrder(DS, DZ, width=WIDTH, num_blocks=2),
    }[kind]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    shapes = {"g": [(K, DZ)], "f": [(DS,)], "f'": [(DS,), (K, DZ)]}[kind]
    return network, lambda *batch: [torch.randn(*batch, *shape) for shape in shapes]


def reference_block(block, tokens):
    """Eqs. 10-11 for one sequence, token by token."""
    query, key, value = (tokens @ weight.T for weight in block.qkv.weight.chunk(3))
    outputs = []
    for i in range(len(tokens)):
        seen = slice(0, i + 1) if block.causal else slice(None)
        attention = (key[seen] @ query[i] / math.sqrt(tokens.shape[-1])).softmax(0)
        outputs.append(tokens[i] + block.mlp(block.norm(tokens[i] + attention @ value[seen])))
    return torch.stack(outputs)


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_is_equations_10_and_11(causal):
    block, tokens = SelfAttentionBlock(WIDTH, causal=causal), torch.randn(K, WIDTH)
    torch.testing.assert_close(block(tokens), reference_block(block, tokens))


@pytest.mark.parametrize("kind", ["g", "f", "f'"])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_any_batch_is_as_one_at_a_time(kind, batch):
    network, draw = make(kind)
    inputs = draw(*batch)
    outputs = network(*inputs)
    assert outputs.shape == (*batch, *{"g": (DS,), "f": (K, WIDTH), "f'": (K, WIDTH)}[kind])
    flat = zip(*(x.reshape(-1, *x.shape[len(batch) :]) for x in inputs), strict=True)
    torch.testing.assert_close(
        outputs.reshape(-1, *outputs.shape[len(batch) :]), torch.stack([network(*x) for x in flat])
    )


class TestSceneEncoder:
    @pytest.mark.parametrize("pooling", [sum_pooling, token_pooling])
    @pytest.mark.parametrize("width", [DZ, WIDTH])
    def test_the_order_of_the_slots_does_not_matter(self, width, pooling):
        encoder = SceneEncoder(DZ, DS, width=width, num_blocks=3, pooling=pooling)
        slots = torch.randn(4, K, DZ)
        for _ in range(5):
            torch.testing.assert_close(encoder(slots[:, torch.randperm(K)]), encoder(slots), rtol=1e-4, atol=1e-5)

    def test_every_slot_matters(self):
        encoder, draw = make("g")
        (slots,) = draw()
        jacobian = torch.autograd.functional.jacobian(encoder, slots)
        assert jacobian.any(0).any(-1).all()

    def test_outputs_are_summed_and_not_averaged(self):
        encoder = SceneEncoder(DZ, DS, width=DZ, num_blocks=0)
        slots = torch.randn(K, DZ)
        torch.testing.assert_close(encoder(slots), encoder.project(slots.sum(0) + encoder.scene_token))

    def test_without_sum_pooling_its_own_token_is_read_alone(self):
        slots, alone = torch.randn(K, DZ), SceneEncoder(DZ, DS, width=DZ, num_blocks=0, pooling=token_pooling)
        torch.testing.assert_close(alone(slots), alone.project(alone.scene_token))
        attending = SceneEncoder(DZ, DS, width=DZ, num_blocks=1, pooling=token_pooling)
        assert torch.autograd.functional.jacobian(attending, slots).any(0).any(-1).all()

    def test_it_takes_any_number_of_slots(self):
        encoder, _ = make("g")
        assert encoder(torch.randn(2, 2 * K, DZ)).shape == (2, DS)


class TestCausality:
    @pytest.mark.parametrize("position", range(K))
    def test_an_output_does_not_move_when_later_tokens_change(self, position):
        network = CausalTransformer(DS, width=WIDTH, num_blocks=3)
        scene, tokens = torch.randn(DS), torch.randn(K, WIDTH)
        changed = tokens.clone()
        changed[position:] = torch.randn(K - position, WIDTH)
        before, after = (network.run(scene, x, K) for x in (tokens, changed))  # output i + 1 belongs to token i
        assert torch.equal(before[: position + 1], after[: position + 1])
        assert (before[position + 1 :] != after[position + 1 :]).any(-1).all()

    def test_h_k_is_the_same_when_the_sequence_stops_at_k(self):
        network, draw = make("f")
        (scene,) = draw()
        full = network(scene)
        for k in range(1, K + 1):
            stopped = network.run(scene, network.token.expand(k, -1), K)[1:]
            torch.testing.assert_close(stopped, full[:k])

    def test_posterior_output_k_has_seen_exactly_the_slots_before_k(self):
        network, draw = make("f'")
        scene, slots = draw()
        jacobian = torch.autograd.functional.jacobian(lambda x: network(scene, x), slots)  # (K, D, K, Dz)
        sees = jacobian.any(-1).any(1)
        assert torch.equal(sees, torch.ones(K, K, dtype=torch.bool).tril(-1))

    @pytest.mark.parametrize("kind", ["f", "f'"])
    def test_every_output_depends_on_the_scene(self, kind):
        network, draw = make(kind)
        scene, *rest = draw()
        jacobian = torch.autograd.functional.jacobian(lambda s: network(s, *rest), scene)
        assert jacobian.any(-1).any(-1).all()

    def test_prior_outputs_differ_from_place_to_place(self):
        network = PriorOrder(DS, num_slots=K, width=WIDTH, num_blocks=2)
        outputs = network(torch.randn(DS))
        assert torch.cdist(outputs, outputs).fill_diagonal_(1).min() > 1e-3


def test_a_shared_network_has_the_weights_of_the_other_and_owns_none():
    owner = PriorOrder(DS, num_slots=K, width=WIDTH, num_blocks=2)
    borrower = PosteriorOrder(DS, WIDTH, width=WIDTH, num_blocks=2, shared=owner)
    alike = PosteriorOrder(DS, WIDTH, width=WIDTH, num_blocks=2)
    alike.load_state_dict({name: value for name, value in owner.state_dict().items() if name != "token"})
    scene, slots = torch.randn(3, DS), torch.randn(3, K, WIDTH)
    torch.testing.assert_close(borrower(scene, slots), alike(scene, slots))
    assert not borrower.state_dict()


def test_token_i_carries_a_linear_map_of_its_place():
    network = CausalTransformer(DS, width=WIDTH, num_blocks=0)
    scene, tokens = torch.randn(DS), torch.randn(K, WIDTH)
    places = torch.arange(K + 1).unsqueeze(-1) / (K + 1)
    expected = torch.cat([network.project_scene(scene).unsqueeze(0), tokens]) + network.position(places)
    torch.testing.assert_close(network.run(scene, tokens, K), expected)


class TestInitialisation:
    def test_weights_are_xavier_normal_and_biases_zero(self):
        layer = xavier_(nn.Sequential(nn.Linear(300, 500)))[0]
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 800), rel=0.02)
        assert not layer.bias.any()

    def test_queries_keys_and_values_are_initialised_as_square_matrices(self):
        for projection in SelfAttentionBlock(200, causal=True).qkv.weight.chunk(3):
            assert projection.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.03)

    @pytest.mark.parametrize(
        "network",
        [
            SceneEncoder(DZ, DS, width=WIDTH, num_blocks=2),
            PriorOrder(DS, num_slots=K, width=WIDTH, num_blocks=2),
            PosteriorOrder(DS, DZ, width=WIDTH, num_blocks=2),
        ],
        ids=["g", "f", "f'"],
    )
    def test_every_bias_and_trainable_token_starts_at_zero(self, network):
        for name, parameter in network.named_parameters():
            assert not (name.endswith(("bias", "token")) and parameter.any()), name
