"""Disentanglement, completeness and informativeness of slots (Eastwood and Williams, 2018).

A slot that draws an object is a code c. The properties of the object are factors z. For each factor, a gradient
boosting model is fitted on one half of the objects to predict z_j from c. R_ij is the importance of c_i for z_j:

    disentanglement = sum_i rho_i (1 - H_M(R_i. / sum_j R_ij)),   rho_i = sum_j R_ij / sum R     over M factors
    completeness    = mean_j (1 - H_D(R_.j / sum_i R_ij))                                          over D dimensions

H_M and H_D are entropies to the bases M and D. Informativeness is the mean over factors of the score on the other half
of the objects: accuracy for a factor of integers, R^2 (at least 0) for a factor of real numbers.

The numbers in the paper's Table 3 cannot be compared with these. The script that computed them fits every factor with
the kind of model that suits the first factor, and it scores real numbers by exact equality, which never holds.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy.optimize import linear_sum_assignment
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from torch import Tensor

from pyro_lom.errors import UserError
from pyro_lom.metrics.iou import pairwise_iou

MIN_IOU = 0.1  # a slot with a smaller IoU with an object does not draw it
MIN_OBJECTS = 20


class DCI(NamedTuple):
    """The three scores, each in [0, 1]; 1 is best.

    Disentanglement is nan with one factor, completeness with one dimension. Otherwise both are 0 if R is 0.
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
    """Return the codes and factors of all objects that a slot draws.

    Slots and objects are matched one-to-one with the largest total IoU. `segments` contains the slot index of each
    pixel. Column j of a factor belongs to label `num_background + j`. Objects without a column are left out.
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


def in_order_of_attributes(
    factors: dict[str, Shaped[np.ndarray, "B max_objects"]],
) -> dict[str, Shaped[np.ndarray, "B"]]:
    """Return the factors of a whole scene: `NAME_j` for object j, with each scene's objects sorted by their factors."""
    order = np.lexsort([values for values in reversed(factors.values())], axis=1)
    placed = {name: np.take_along_axis(values, order, axis=1) for name, values in factors.items()}
    return {f"{name}_{j}": values[:, j] for name, values in placed.items() for j in range(values.shape[1])}


def dci(codes: Float[np.ndarray, "N D"], factors: dict[str, Shaped[np.ndarray, "N"]], *, seed: int = 0) -> DCI:
    """Compute the three scores of N codes.

    Factors of integers or booleans are classified, all others regressed. Factors that do not vary are left out.

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
    return DCI(*_structure(np.stack(importance, axis=1)), float(np.mean(scores)))


def _structure(importance: Float[np.ndarray, "D M"]) -> tuple[float, float]:
    """Disentanglement and completeness from the table R of importances."""
    weights = importance.sum(1) / max(importance.sum(), np.finfo(float).tiny)
    return float(weights @ _concentration(importance)), float(_concentration(importance.T).mean())


def _concentration(rows: Float[np.ndarray, "R C"]) -> Float[np.ndarray, "R"]:
    """1 - entropy of each row, to the base of the row's length; 0 for a row of zeros, nan for rows of length one."""
    if rows.shape[1] == 1:
        return np.full(len(rows), np.nan)
    return 1 - entropy(rows + np.finfo(float).tiny, base=rows.shape[1], axis=1)  # a row of zeros is a uniform one
