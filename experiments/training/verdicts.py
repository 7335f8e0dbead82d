"""What a run tells a person about its training: whether slots bind, and which targets were relaxed or missed."""

from typing import Any

import numpy as np

from experiments.config import Config
from experiments.evaluation.reading import signs_of_binding
from pyro_lom.data.minibatches import float_images
from pyro_lom.system import System

_JUDGED = 128  # scenes
_MISSED = 1.25  # times the target, above which an RMSE has missed it


class Verdicts:
    """Lines about a system in training.

    Args:
        images: held-out scenes (N, H, W, C), uint8.
    """

    def __init__(self, config: Config, system: System, images: np.ndarray):
        self._config, self._system = config, system
        self._images = float_images(images[:_JUDGED])
        self._targets = self._current_targets()  # the last ones that were told

    def after(self, step: int) -> list[str]:
        """Return lines for a preview: the first verdict on binding, later complaints, and targets that were relaxed."""
        lines = []
        signs = signs_of_binding(self._system, self._images)
        if complaint := signs and signs.complaint():
            lines.append(f"warning: after step {step} {complaint}")
        elif signs and step == self._config.train.preview_every:
            lines.append(
                f"after step {step} slots seem to bind: smooth colours in segments explain {signs.explained:.0%}"
            )
        for name, rmse in self._current_targets().items():
            if rmse != self._targets[name]:
                self._targets[name] = rmse
                lines.append(f"by step {step} the target of the {name} pair was relaxed to an RMSE of {rmse:.4f}")
        return lines

    def at_end(self, summary: dict[str, Any]) -> list[str]:
        """Return a line for each pair whose RMSE has missed its target."""
        if getattr(self._config.model, "likelihood", "gaussian") != "gaussian":
            return []  # the target of a mixture is not one of the mean image
        errors = {name: summary.get(f"rmse_{name}", 0.0) for name in self._system}
        return [
            f"warning: the RMSE of the {name} pair is {errors[name]:.4f}, and its target {target:.4f}; another --seed "
            "or more --train.steps may help"
            for name, target in self._current_targets().items()
            if target and errors[name] > _MISSED * target
        ]

    def _current_targets(self) -> dict[str, float | None]:
        """Return by pair the target of its criterion as an RMSE, or None without one."""
        return {name: pair.criterion.report(0.0).get("rmse_target") for name, pair in self._system.items()}
