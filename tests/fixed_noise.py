"""Noise that belongs to the rows of a batch, so that parts of a batch and processes receive the noise of the whole."""

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample


class FixedNoise(Messenger):
    """Latents are loc + scale times noise that depends on the site's name and the row in the batch alone.

    Each site receives rows in order, from `first` on. After the last row, a site starts again from `first`.
    """

    def __init__(self, num_rows: int, first: int = 0):
        super().__init__()
        self.num_rows, self.first = num_rows, first
        self.used: dict[str, int] = {}

    def _pyro_sample(self, msg):
        is_sampled = type(msg["fn"]) is not _Subsample and not msg["infer"].get("_deterministic")
        if msg["is_observed"] or msg["value"] is not None or not is_sampled:
            return
        name, fn = msg["name"], msg["fn"]
        start = self.used.get(name, self.first)
        if start == self.num_rows:
            start = self.first
        self.used[name] = start + fn.batch_shape[0]
        generator = torch.Generator().manual_seed(sum(name.encode()))
        shape = (self.num_rows, *fn.batch_shape[1:], *fn.event_shape)
        uniform = torch.rand(shape, generator=generator)[start : self.used[name]].to(fn.mean.device)
        msg["value"] = uniform if name == "seed_scores" else fn.mean + fn.stddev * (uniform - 0.5)
