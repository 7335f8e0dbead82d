"""A numbered contact sheet of samples beside a CSV, for those who count structure by hand, as the paper did."""

import csv
from pathlib import Path

import numpy as np
import torch

from experiments.held_out import HeldOut, segment
from pyro_lom.figures import save_sheet
from pyro_lom.metrics.stacks import stacks_stand
from pyro_lom.runs import replacing


def write_sheet(held_out: HeldOut, num_samples: int, tau: float) -> list[Path]:
    """Write `figures/structure.png` and `structure.csv` into the run; the column `by_hand` is to be filled in."""
    images, stands = [], []
    for sample in held_out.samples(held_out.system.final, num_samples, tau, "sampling for the sheet"):
        images.append(sample.image.cpu())
        stands.append(stacks_stand(segment(sample.log_masks)))
    picture, table = held_out.run.figures / "structure.png", held_out.run.folder / "structure.csv"
    save_sheet(picture, torch.cat(images), f"Samples at tau = {tau:g}, numbered as in {table.name}")
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sample", "stands_by_rule", "stands_by_hand"])
        writer.writerows([number, int(verdict), ""] for number, verdict in enumerate(np.concatenate(stands)))
    return [picture, table]
