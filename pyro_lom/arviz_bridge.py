"""Conversion of a fitted model to ArviZ: samples of its latents, and statistics of observed and predicted images.

Each image is reduced to a few statistics, because a plot of pixels shows little. A statistic is a function of images
and of the segments that the guide infers from them. Observed and predicted images have the same statistics:

    def redness(images, segments):                           # (N, C, H, W) in [0, 1], (N, H, W) -> (N,)
        return images[:, 0].mean((1, 2))

    data = inference_data(model, guide, images, statistics=STATISTICS | {"redness": redness})
    data.to_netcdf("scenes.nc", engine="h5netcdf")
    bayesian_p_values(data)
"""

from collections import defaultdict
from collections.abc import Callable

import arviz as az
import numpy as np
import torch
from jaxtyping import Float, Int, Real
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from tqdm import trange

from pyro_lom.checks import check_evaluation, check_images
from pyro_lom.errors import UserError

Statistic = Callable[[Float[Tensor, "N C H W"], Int[Tensor, "N H W"]], Real[Tensor, "N"]]

_DIMENSIONS = ("chain", "draw", "scene", "slot")
_OWNED = 0.01  # smallest share of the pixels at which a slot counts as used


def brightness(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Mean of each image over pixels and channels, in [0, 1]."""
    return images.mean((1, 2, 3))


def contrast(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Standard deviation of each image over pixels and channels."""
    return images.flatten(1).std(1)


def detail(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Mean absolute difference between a pixel and the pixel below it, which measures edges, noise and texture."""
    return images.diff(dim=2).abs().mean((1, 2, 3))


def active_slots(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Int[Tensor, "N"]:
    """Number of segments with at least 1 % of the pixels."""
    return (_areas(segments) >= _OWNED).sum(1)


def num_objects(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Int[Tensor, "N"]:
    """Number of objects: active slots whose segments touch no edge of the image, unlike the background."""
    return _is_object(segments).sum(1)


def mask_area(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Mean area of the objects, as a share of the pixels; 0 without objects."""
    is_object = _is_object(segments)
    return (_areas(segments) * is_object).sum(1) / is_object.sum(1).clamp_min(1)


def stack_height(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Height from the foot of the lowest object to the top of the highest, as a share of the image; 0 if none."""
    rows = _is_object(segments).gather(1, segments.flatten(1)).view_as(segments).any(2)
    height = rows.shape[1]
    index = torch.arange(height, device=rows.device)
    top = torch.where(rows, index, height).amin(1)
    foot = torch.where(rows, index + 1, 0).amax(1)
    return (foot - top).clamp_min(0) / height


STATISTICS: dict[str, Statistic] = {
    statistic.__name__: statistic
    for statistic in (brightness, contrast, detail, active_slots, num_objects, mask_area, stack_height)
}


def reconstruction_error(model, guide) -> Statistic:
    """Return a statistic: the RMSE of an image's reconstruction, in [0, 1], which is large for anomalous scenes."""

    def error(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
        check_evaluation(model, guide)
        found = poutine.trace(guide).get_trace(images)
        explained = poutine.trace(poutine.replay(model, trace=found)).get_trace(images).nodes["x"]["fn"].mean
        return (explained.squeeze(-4) - images).square().mean((1, 2, 3)).sqrt()

    return error


@torch.no_grad()
def inference_data(
    model,
    guide,
    images: Float[Tensor, "B C H W"],
    *,
    num_draws: int = 100,
    statistics: dict[str, Statistic] = STATISTICS,
    progressbar: bool = True,
):
    """Compute the ArviZ data of `images` and of a model and guide in evaluation mode.

    | group | variables | dimensions after chain and draw |
    |---|---|---|
    | prior, posterior | the model's latents, such as `s` and `z` | scene, slot (for slot latents), `s_dim`, `z_dim` |
    | prior_predictive | the statistics of scenes sampled from the model | scene |
    | posterior_predictive | the statistics of the reconstructions of `images` | scene |
    | log_likelihood | `x`: log p(image given latents), in nats | scene |
    | observed_data | the statistics of `images`, without chain and draw dimensions | scene |

    A predicted image is the likelihood's mean, as in the paper, because `image_scale` weighs errors and is not the
    noise of a camera. All draws form one chain. Leave-one-out comparisons (`az.loo`) are meaningless here, because each
    scene's latents are inferred from its own image alone.

    Returns:
        `arviz.InferenceData`, or with ArviZ 1 an `xarray.DataTree`. Both have `to_netcdf`.

    Raises:
        UserError: images are wrong, a program is in training mode (`pyro_lom/checks.py: check_images`), the guide has
            no masks, or a statistic has the name of a site or of a dimension, or does not return (N,) values.
    """
    check_images(images, model, guide)

    def statistics_of(pictures: Tensor) -> dict[str, Tensor]:
        segments = _segments(guide, pictures)
        values = {name: statistic(pictures, segments) for name, statistic in statistics.items()}
        for name, value in values.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if shape != (len(pictures),):
                raise UserError(
                    f"the statistic {name} of {len(pictures)} images is {shape}: return one value per image"
                )
        return values

    groups: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    dims = {name: ["scene"] for name in (*statistics, "x")}
    for _ in trange(num_draws, desc="drawing", leave=False, unit="draw", disable=not progressbar):
        prior = poutine.trace(model).get_trace(num_scenes=len(images))
        if taken := statistics.keys() & {*_DIMENSIONS, *prior.nodes}:
            raise UserError(
                f"the statistic {min(taken)} has the name of a site or of a dimension: give it another name"
            )
        found = poutine.trace(guide).get_trace(images)
        posterior = poutine.trace(poutine.replay(model, trace=found)).get_trace(images)
        for group, trace in (("prior", prior), ("posterior", posterior)):
            for name in trace.stochastic_nodes:
                site = trace.nodes[name]
                if name != "x" and not site_is_subsample(site) and not site["infer"].get("_deterministic"):
                    of_slots = any(frame.name == "slots" for frame in site["cond_indep_stack"])
                    dims[name] = ["scene", "slot", f"{name}_dim"] if of_slots else ["scene", f"{name}_dim"]
                    groups[group][name].append(site["value"] if of_slots else site["value"].squeeze(-2))
            for name, values in statistics_of(trace.nodes["x"]["fn"].mean.squeeze(-4)).items():
                groups[f"{group}_predictive"][name].append(values)
        site = posterior.nodes["x"]
        groups["log_likelihood"]["x"].append(site["fn"].log_prob(site["value"]).squeeze(-1))
    arrays = {
        group: {name: torch.stack(draws)[None].cpu().numpy() for name, draws in variables.items()}
        for group, variables in groups.items()
    }
    arrays["observed_data"] = {name: values.cpu().numpy() for name, values in statistics_of(images).items()}
    return _from_dict(arrays, {}, dims)


def bayesian_p_values(data, group: str = "prior_predictive") -> dict[str, float]:
    """Return P(T(predicted) > T(observed)) for each statistic T, averaged over scenes, with ties counted half.

    A value near 0 means that observed values exceed nearly all predicted values. A value near 1 means the opposite, and
    0.5 means no difference. The group "prior_predictive" compares with scenes sampled from the model. The group
    "posterior_predictive" compares each scene with its own reconstructions, which vary little: small biases count.
    """
    observed, predicted = data["observed_data"], data[group]
    return {
        name: float(((predicted[name] > observed[name]) + 0.5 * (predicted[name] == observed[name])).mean())
        for name in predicted.data_vars
    }


def _from_dict(groups: dict[str, dict[str, np.ndarray]], coords: dict, dims: dict):
    """Return the ArviZ data. An axis without an entry in `coords` is numbered from 0."""
    if az.__version__.startswith("0."):
        return az.from_dict(**groups, coords=coords, dims=dims)
    return az.from_dict(groups, coords=coords, dims=dims)


def _segments(guide, images: Float[Tensor, "N C H W"]) -> Int[Tensor, "N H W"]:
    """Return the slot with the largest mask at each pixel, by the guide's masks."""
    log_masks = guide.log_masks(guide.infer(images)) if hasattr(guide, "log_masks") else None
    if log_masks is None:
        raise UserError(
            f"{type(guide).__name__} has no masks, which statistics need: pass the guide of a model with slots"
        )
    return log_masks.argmax(-4).squeeze(-3)


def _areas(segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N K"]:
    """Area of each segment as a share of the pixels."""
    flat = segments.flatten(1)
    counts = torch.zeros(len(flat), int(flat.max()) + 1, device=flat.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype)) / flat.shape[1]


def _is_object(segments: Int[Tensor, "N H W"]) -> Tensor:
    """Return whether each segment is large enough and touches no edge, shape (N, K)."""
    areas = _areas(segments)
    edges = torch.cat([segments[:, 0], segments[:, -1], segments[:, :, 0], segments[:, :, -1]], dim=1)
    return (areas >= _OWNED).scatter(1, edges, False)
