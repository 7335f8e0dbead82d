"""Generative models p: one file per system, its guide in the file of the same name under `guides/`."""
