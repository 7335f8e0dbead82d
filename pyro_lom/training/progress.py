"""The progress bars of trainings, and the text that they show for a pair."""

import sys
from typing import Any

from tqdm import tqdm


def step_bar(total: int, done: int, **options: Any) -> tqdm:
    """Return a progress bar over training steps. It is printed every 0.5 s on a terminal and every 15 s in a file."""
    interval = 0.5 if sys.stderr.isatty() else 15.0
    text = "{desc} {n_fmt}/{total_fmt} steps {bar:12} {elapsed}<{remaining}{postfix}"
    return tqdm(
        total=total, initial=done, mininterval=interval, miniters=0, dynamic_ncols=True, bar_format=text, **options
    )


def pair_line(name: str, report: dict[str, float], terms: dict[str, float]) -> str:
    """Return a pair's numbers as text: its criterion's report, with targets, and its terms in nats per scene."""
    targets = {key: f"/{value:.3f}" for key, value in report.items() if key.endswith("_target")}
    values = {key: value for key, value in report.items() if key not in targets}
    numbers = [f"{key} {value:.3g}{targets.get(key + '_target', '')}" for key, value in values.items()]
    return " ".join([name, *numbers, "nats", *(f"{site} {value:.0f}" for site, value in terms.items())])
