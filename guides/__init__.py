"""Guides q: one file per system; a guide is built from its model, as `AutoNormal(model)` is."""
