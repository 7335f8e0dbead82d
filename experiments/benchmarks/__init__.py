"""Timing of training steps, for `benchmark.py`."""
