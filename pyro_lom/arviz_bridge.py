"""A fitted model as ArviZ sees it: draws of its latents, and statistics of the scenes that it draws.

Pixels say little in a plot, so each predicted image is told by a few numbers. A statistic is a function of images and
of the segments that the guide finds in them; it is computed in the same way of observed and of predicted images:

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
from jaxtyping import Float, Int
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from tqdm import trange

Statistic = Callable[[Float[Tensor, "N C H W"], Int[Tensor, "N H W"]], Float[Tensor, "N"]]

_OWNED = 0.01  # share of the pixels from which on a slot counts as used


def brightness(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Mean of all pixels and channels, in [0, 1]."""
    return images.mean((1, 2, 3))


def contrast(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Standard deviation of all pixels and channels."""
    return images.flatten(1).std(1)


def detail(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Mean difference between a pixel and the one below it: edges, noise and texture."""
    return images.diff(dim=2).abs().mean((1, 2, 3))


def active_slots(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Number of segments of at least a hundredth of the pixels."""
    return (_areas(segments) >= _OWNED).sum(1).float()


def num_objects(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Number of those that touch no edge of the image, as background does."""
    return _is_object(segments).sum(1).float()


def mask_area(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Mean area of these objects, a share of the pixels; 0 without objects."""
    is_object = _is_object(segments)
    return (_areas(segments) * is_object).sum(1) / is_object.sum(1).clamp_min(1)


def stack_height(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
    """Rows from the top of the highest object to the foot of the lowest, a share of the image's; 0 without objects."""
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
    """RMSE between an image and what the pair makes of it, in [0, 1]: large where a scene is none of the model's."""

    def error(images: Float[Tensor, "N C H W"], segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N"]:
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
    """Everything that ArviZ plots and compares, of a pair in evaluation mode and of images.

    | group | variables | dimensions after chain and draw |
    |---|---|---|
    | prior, posterior | the model's latents, such as `s` and `z` | scene, slot where it has one, `s_dim` |
    | prior_predictive | the statistics, of scenes that the model draws | scene |
    | posterior_predictive | the same of scenes as the guide explains them: reconstructions | scene |
    | log_likelihood | `x`, log p(image given latents), nats | scene |
    | observed_data | the statistics of `images`; no chain, no draw | scene |

    Predicted images are the likelihood's mean, as in the paper: `image_scale` weighs errors, it is no noise of cameras.
    The images of one call share a chain, and latents of one scene are drawn anew each time, not learned from others:
    leave-one-out comparisons (`az.loo`) mean nothing here.

    Returns:
        `arviz.InferenceData`, or with ArviZ 1 an `xarray.DataTree`. Both have `to_netcdf`.
    """
    segmenter = getattr(guide, "orderless_guide", guide)

    def told(pictures: Tensor) -> dict[str, Tensor]:
        segments = segmenter.infer(pictures).log_masks.argmax(-4).squeeze(-3)
        return {name: statistic(pictures, segments) for name, statistic in statistics.items()}

    groups: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    dims = {name: ["scene"] for name in (*statistics, "x")}
    for _ in trange(num_draws, desc="drawing", leave=False, unit="draw", disable=not progressbar):
        prior = poutine.trace(model).get_trace(num_scenes=len(images))
        found = poutine.trace(guide).get_trace(images)
        posterior = poutine.trace(poutine.replay(model, trace=found)).get_trace(images)
        for group, trace in (("prior", prior), ("posterior", posterior)):
            for name in trace.stochastic_nodes:
                site = trace.nodes[name]
                if name != "x" and not site_is_subsample(site):
                    of_slots = any(frame.name == "slots" for frame in site["cond_indep_stack"])
                    dims[name] = ["scene", "slot", f"{name}_dim"] if of_slots else ["scene", f"{name}_dim"]
                    groups[group][name].append(site["value"] if of_slots else site["value"].squeeze(-2))
            for name, values in told(trace.nodes["x"]["fn"].mean.squeeze(-4)).items():
                groups[f"{group}_predictive"][name].append(values)
        site = posterior.nodes["x"]
        groups["log_likelihood"]["x"].append(site["fn"].log_prob(site["value"]).squeeze(-1))
    arrays = {
        group: {name: torch.stack(draws)[None].cpu().numpy() for name, draws in variables.items()}
        for group, variables in groups.items()
    }
    arrays["observed_data"] = {name: values.cpu().numpy() for name, values in told(images).items()}
    sizes = {"scene": len(images)}
    for name, axes in dims.items():
        if name in arrays["prior"]:
            sizes |= dict(zip(axes, arrays["prior"][name].shape[2:], strict=True))
    return _from_dict(arrays, {axis: np.arange(size) for axis, size in sizes.items()}, dims)


def bayesian_p_values(data, group: str = "prior_predictive") -> dict[str, float]:
    """P(T(predicted) > T(observed)) of each statistic T, ties counted half, averaged over scenes; in [0, 1].

    Near 0, observed scenes have more of it than nearly all predicted ones, near 1 less; 0.5 says that neither is so.
    "prior_predictive" compares them with scenes that the model draws, "posterior_predictive" each with its own
    reconstruction, where a small bias tells: reconstructions of one scene hardly differ from each other.
    """
    observed, predicted = data["observed_data"], data[group]
    return {
        name: float(((predicted[name] > observed[name]) + 0.5 * (predicted[name] == observed[name])).mean())
        for name in predicted.data_vars
    }


def _from_dict(groups: dict[str, dict[str, np.ndarray]], coords: dict, dims: dict):
    if az.__version__.startswith("0."):
        return az.from_dict(**groups, coords=coords, dims=dims)
    return az.from_dict(groups, coords=coords, dims=dims)


def _areas(segments: Int[Tensor, "N H W"]) -> Float[Tensor, "N K"]:
    """Share of the pixels of each segment."""
    flat = segments.flatten(1)
    counts = torch.zeros(len(flat), int(flat.max()) + 1, device=flat.device)
    return counts.scatter_add_(1, flat, torch.ones_like(flat, dtype=counts.dtype)) / flat.shape[1]


def _is_object(segments: Int[Tensor, "N H W"]) -> Tensor:
    """Which segments (N, K) are large enough and touch no edge."""
    areas = _areas(segments)
    edges = torch.cat([segments[:, 0], segments[:, -1], segments[:, :, 0], segments[:, :, -1]], dim=1)
    at_edge = torch.zeros_like(areas).scatter_(1, edges, 1.0).bool()
    return (areas >= _OWNED) & ~at_edge
