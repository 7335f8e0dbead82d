"""Devices and processes of `fit.py` and `ablate.py`."""
