"""Renderers of substitutes for the published data sets, with the label of each pixel and factors of each object."""
