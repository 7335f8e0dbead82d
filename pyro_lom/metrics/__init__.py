"""Metrics for segmentations, slots, samples and likelihoods."""
