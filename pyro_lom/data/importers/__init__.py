"""Readers of published data sets, one module per format. `experiments/data.py import` uses them."""
