"""Readers of published data sets, one file per format; `experiments/data.py import` drives them."""
