"""Disentanglement, completeness and informativeness of slots (Eastwood and Williams, 2018).

Each slot that draws an object is a code c, that object's properties are factors z. A gradient boosting model per factor
predicts z_j from c on one half of the objects; R_ij is the importance of code dimension i to it. Then

    disentanglement = sum_i rho_i (1 - H_M(R_i. / sum_j R_ij)),   rho_i = sum_j R_ij / sum R     over M factors
    completeness    = mean_j (1 - H_D(R_.j / sum_i R_ij))                                          over D dimensions

with entropies H to the base of the number of outcomes, and informativeness is the mean over factors of the score on the
other half of the objects: accuracy for a factor of integers, R^2 (at least 0) for one of real numbers.

The script behind the paper's Table 3 differs twice, so its numbers cannot be compared with these: it fits every factor
with the kind of model that suits the first one, and it scores real numbers by exact equality, which never holds.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy.optimize import linear_sum_assignment
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from torch import Tensor

from pyro_lom.errors import UserError
from pyro_lom.metrics.iou import pairwise_iou

MIN_IOU = 0.1  # a slot that overlaps less with an object does not draw it
MIN_OBJECTS = 20


class DCI(NamedTuple):
    """Each in [0, 1], 1 is best. Disentanglement is nan with one factor, completeness with one dimension.

    Both are 0 where no dimension tells anything about any factor.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def match_objects(
    slots: Float[Tensor, "B K Dz"],
    segments: Integer[Tensor, "B H W"],
    labels: Integer[Tensor, "B H W"],
    factors: dict[str, Shaped[np.ndarray, "B max_objects"]],
    *,
    num_background: int,
) -> tuple[Float[np.ndarray, "N Dz"], dict[str, Shaped[np.ndarray, "N"]]]:
    """Codes and factors of all objects that a slot draws: one-to-one by the largest IoU of `segments` with `labels`.

    `segments` has the index of a pixel's slot; column j of a factor belongs to label `num_background + j`.
    Objects without such a column are left out.
    """
    max_objects = min(values.shape[1] for values in factors.values())
    iou = pairwise_iou(segments, labels)[:, :, num_background : num_background + max_objects].cpu().numpy()
    scenes, places, objects = [], [], []
    for scene, table in enumerate(iou):
        slot, entity = linear_sum_assignment(table, maximize=True)
        drawn = table[slot, entity] >= MIN_IOU
        scenes += [scene] * drawn.sum()
        places += slot[drawn].tolist()
        objects += entity[drawn].tolist()
    codes = slots.cpu().numpy()[scenes, places]
    return codes, {name: values[scenes, objects] for name, values in factors.items()}


def dci(codes: Float[np.ndarray, "N D"], factors: dict[str, Shaped[np.ndarray, "N"]], *, seed: int = 0) -> DCI:
    """The three scores of N codes; factors that never vary are left out.

    Factors of integers or truth values are classes, all others are numbers.

    Raises:
        UserError: there are fewer than 20 objects, a factor is NaN or infinite, or no factor varies.
    """
    if len(codes) < MIN_OBJECTS:
        raise UserError(f"DCI needs {MIN_OBJECTS} objects or more that a slot draws, not {len(codes)}: use more images")
    order = np.random.default_rng(seed).permutation(len(codes))
    train, test = order[: len(order) // 2], order[len(order) // 2 :]
    importance, scores = [], []
    for name, values in factors.items():
        if not np.isfinite(values).all():
            raise UserError(f"DCI needs finite factors: factors/{name} is NaN or infinite for some object")
        if len(np.unique(values[train])) < 2 or len(np.unique(values[test])) < 2:
            continue
        is_class = values.dtype.kind in "biu"
        kind = GradientBoostingClassifier if is_class else GradientBoostingRegressor
        predictor = kind(random_state=seed).fit(codes[train], values[train])
        importance.append(predictor.feature_importances_)
        scores.append(max(predictor.score(codes[test], values[test]), 0.0))
    if not scores:
        raise UserError("DCI needs a factor that differs between objects: the data have none")
    disentanglement, completeness = _structure(np.stack(importance, axis=1))
    return DCI(disentanglement, completeness, float(np.mean(scores)))


def _structure(importance: Float[np.ndarray, "D M"]) -> tuple[float, float]:
    """Disentanglement and completeness of a table of importances, code dimensions by factors."""
    weights = importance.sum(1) / max(importance.sum(), np.finfo(float).tiny)
    return float(weights @ _concentration(importance)), float(_concentration(importance.T).mean())


def _concentration(rows: Float[np.ndarray, "R C"]) -> Float[np.ndarray, "R"]:
    """One less the entropy of each row, to the base of its length; 0 for a row of zeros, nan for rows of length one."""
    if rows.shape[1] == 1:
        return np.full(len(rows), np.nan)
    share = rows / np.maximum(rows.sum(1, keepdims=True), np.finfo(float).tiny)
    entropy = -(share * np.log(share, where=share > 0, out=np.zeros_like(share))).sum(1) / np.log(rows.shape[1])
    return np.where(rows.sum(1) > 0, 1 - entropy, 0.0)
