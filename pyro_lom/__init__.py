"""Latent Object Models in Pyro: the parts that know nothing of any particular model."""

__version__ = "0.1.0"
