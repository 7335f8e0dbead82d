"""Segmentation by k-means on colours, a baseline without training."""

import warnings

import torch
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor


def kmeans_rgb(images: Float[Tensor, "B C H W"], num_clusters: int, seed: int) -> Int[Tensor, "B H W"]:
    """Cluster the pixels of each image by colour, with the best of four initialisations.

    An image with fewer colours than `num_clusters` has fewer labels. Each image is clustered independently.
    """
    pixels = images.permute(0, 2, 3, 1).flatten(1, 2).cpu().numpy()
    kmeans = KMeans(num_clusters, n_init=4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raised for an image with too few colours
        labels = [torch.from_numpy(kmeans.fit_predict(image)) for image in pixels]
    return torch.stack(labels).long().unflatten(1, images.shape[2:])
