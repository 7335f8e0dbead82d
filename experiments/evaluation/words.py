"""Titles, units and digits of the keys of `summary.json` and `evaluation.json`.

A key consists of the name of a quantity and the name of its subject, such as a pair: `rmse_ordered`.
"""

import re
from typing import NamedTuple


class Quantity(NamedTuple):
    title: str
    unit: str = ""
    digits: int = 3
    factor: float = 1.0
    note: str = ""
    """Remark below tables with such a column."""


QUANTITIES = {
    "ari_fg": Quantity("ARI-FG ↑", digits=2),
    "ari_all": Quantity("ARI ↑", digits=2),
    "mean_iou": Quantity("mean IoU ↑", digits=2),
    "sc": Quantity("SC ↑", digits=2),
    "msc": Quantity("mSC ↑", digits=2, note="mSC is what the field also calls mBO, the mean best overlap of objects."),
    "binding": Quantity("binding", digits=2),
    "rmse": Quantity("RMSE ↓", "per pixel and channel"),
    "explained_variance": Quantity("explained variance of pixels ↑"),
    "structure": Quantity("structure ↑", "% of scenes", 1, 100),
    "stacks": Quantity("stacks ↑", "% of scenes", 1, 100),
    "fd_pca64": Quantity("FD-PCA64 ↓", digits=1),
    "fd_efficientnet": Quantity("FD-EfficientNet ↓", digits=1),
    "fid": Quantity("FID ↓", digits=1),
    "dci": Quantity("DCI ↑", digits=2),
    "kl_scene": Quantity("KL of the scene", "nats per scene", 1),
    "kl_slots": Quantity("KL of the slots", "nats per scene", 1),
    "kl": Quantity("KL", "nats per scene", 1),
    "elbo": Quantity("ELBO ↑", "nats per scene", 1),
    "elbo_gap": Quantity(
        "training minus held-out ELBO ↓",
        "nats per scene",
        1,
        note="A large gap shows that scenes were learned by heart: train on more.",
    ),
    "log_likelihood": Quantity("log p(x) ↑", "nats per scene", 1),
    "slot_order": Quantity("slot order ↑", digits=2),
    "train_minutes": Quantity("training", "minutes", 2),
    "images_per_second": Quantity("training", "images per second", 1),
    "parameters": Quantity("parameters", digits=0),
    "seed": Quantity("seed", digits=0),
}
"""Quantities by the first words of a key. An arrow shows the direction of better values."""


_WORDS = {"kmeans_rgb": "k-means on RGB", "samples_tau1": "samples at tau 1"}
OF_MASKS = {"ari_fg", "ari_all", "mean_iou", "sc", "msc"}
"""Quantities that compare masks with labels."""
_NOT_TO_IMPROVE = r"kmeans|untrained|broken|cut_and_paste|chance"  # what the other numbers are compared with


def split(key: str) -> tuple[str, str]:
    """Split a key into the quantity and its subject; return the subject in words, such as "samples at tau 1"."""
    name = max((name for name in QUANTITIES if f"{key}_".startswith(f"{name}_")), key=len, default=key)
    rest = key[len(name) :].strip("_")
    words = _WORDS.get(rest, rest.replace("_", " "))
    if name in OF_MASKS and rest not in ("", "encoder", "untrained", "kmeans_rgb"):
        words += " decoder"
    return name, words


def title(key: str, *, unit: bool = True) -> str:
    """Return the title of a key, with its unit in brackets."""
    name, of = split(key)
    quantity = QUANTITIES.get(name, Quantity(name))
    head = quantity.title.rstrip(" ↑↓") if re.search(_NOT_TO_IMPROVE, key) else quantity.title
    words = f"{head}, {of}" if of else head
    return f"{words} ({quantity.unit})" if unit and quantity.unit else words


def number(key: str, value: float) -> str:
    """Format a value with the factor and the digits of its quantity."""
    quantity = QUANTITIES.get(split(key)[0], Quantity(key))
    return f"{quantity.factor * value:,.{quantity.digits}f}"
