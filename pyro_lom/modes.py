"""Sampling by modes: an effect handler that sets some sites to the modes of their distributions."""

from pyro.poutine.messenger import Messenger


class modes(Messenger):
    """Effect handler that sets sites to the modes of their distributions, given the values of earlier sites.

        with modes(*model.mode_sites):
            images = model(num_scenes=4)

    Sites that have a value, such as observed and conditioned ones, do not change.
    """

    def __init__(self, *sites: str):
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg) -> None:
        if msg["name"] in self.sites and msg["value"] is None:
            msg["value"] = msg["fn"].mode
