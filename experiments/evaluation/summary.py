"""The summary at the end of a run: some metrics of `evaluate.py` on its held-out scenes."""

from experiments.evaluation.held_out import HeldOut, Values
from experiments.evaluation.metrics import measure
from experiments.evaluation.reading import TEMPERATURE
from experiments.evaluation.words import QUANTITIES, number, split
from pyro_lom.errors import UserError

METRICS = ("ari", "baselines", "binding", "reconstruction", "kl", "gap", "structure", "fd-pca64")


def summarise(held_out: HeldOut) -> Values:
    """Return the values of `METRICS` by key. Metrics that the data do not support are omitted or None."""
    summary: Values = {}
    for name in METRICS:
        try:
            summary |= measure(name, held_out, {"temperature": TEMPERATURE})
        except UserError:  # the data lack labels, variety, or towers
            continue
    return {key: None if isinstance(value, str) else value for key, value in summary.items()}


def summary_lines(summary: Values) -> list[str]:
    """Format one line per quantity: its title and unit, then each subject with its number."""
    lines: dict[str, list[str]] = {}
    for key, value in summary.items():
        name, of = split(key)
        if value is not None and name in QUANTITIES:
            lines.setdefault(name, []).append(f"{of} {number(key, value)}".strip())
    heads = {name: ", ".join(filter(None, QUANTITIES[name][:2])) for name in lines}
    width = max(map(len, heads.values()), default=0)
    return [f"{heads[name]:{width}}  {'; '.join(parts)}" for name, parts in lines.items()]
