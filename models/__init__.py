"""Generative models p, one file per system. Each guide is in the file of the same name under `guides/`."""
