"""Guides q, one file per system. A guide is built from its model, as in `AutoNormal(model)`."""
