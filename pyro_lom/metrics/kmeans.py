"""The segmentation that needs no learning: k-means on colours."""

import warnings

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor


def kmeans_rgb(images: Float[Tensor, "B C H W"], num_clusters: int, seed: int) -> Int[Tensor, "B H W"]:
    """Cluster the pixels of each image by colour alone, the best of four starts.

    An image with fewer colours than `num_clusters` gets fewer labels. The labels of an image do not depend on the
    others in its batch.
    """
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2).cpu().numpy()
    kmeans = KMeans(num_clusters, n_init=4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # says that an image has too few colours
        labels = [torch.from_numpy(kmeans.fit_predict(image)) for image in pixels]
    return torch.stack(labels).long().unflatten(1, images.shape[2:])
