"""Renderers of stand-ins for the published data sets, with the truth about every pixel and object."""
